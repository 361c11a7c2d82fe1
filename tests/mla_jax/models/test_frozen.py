"""`freeze` and `thaw`: the same arrays in another shape, never a copy."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from mla_jax.layers import RopeState
from mla_jax.models import FrozenModel, MLAForCausalLM, forward, freeze
from mla_jax.parameters import ParamInfo, parameter_table


def leaves_by_id(tree):
    return [id(leaf) for leaf in jax.tree.leaves(tree)]


def test_freeze_and_thaw_share_every_array(native_model):
    module = native_model.thaw()
    frozen = freeze(module)
    assert isinstance(frozen, FrozenModel)
    owned = {id(leaf) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))}
    assert set(leaves_by_id(frozen.params)) == owned
    assert frozen.rope_cos is module.rope.get_value().cos
    again = freeze(frozen.thaw())
    assert leaves_by_id(again) == leaves_by_id(frozen)
    assert jax.tree.structure(again) == jax.tree.structure(frozen)
    assert freeze(frozen) is frozen


@pytest.mark.parametrize(
    "change",
    [{}, {"tie_word_embeddings": True}, {"q_lora_rank": None}, {"attention_bias": False, "mlp_bias": False}],
    ids=str,
)
def test_params_are_nested_as_the_table(config, change):
    config = dataclasses.replace(config, **change)
    frozen = freeze(MLAForCausalLM.abstract(config))
    table = jax.tree.structure(parameter_table(config), is_leaf=lambda node: isinstance(node, ParamInfo))
    assert jax.tree.structure(frozen.params) == table


def test_thawed_model_keeps_settings_and_gives_the_same_answer(native_model):
    module = native_model.thaw()
    assert isinstance(module, MLAForCausalLM)
    assert (module.config, module.kernels) == (native_model.config, "native")
    assert isinstance(module.rope, RopeState)
    assert module.rope.get_value().layout == native_model.config.rope.layout
    tokens = np.array([[1, 2, 3]], np.int32)
    run = jax.jit(forward)
    np.testing.assert_array_equal(run(freeze(module), tokens), run(native_model, tokens))


def test_settings_are_structure(native_model):
    """Another config or kernels choice is another compilation, never a stale one."""
    structure = jax.tree.structure(native_model)
    assert structure != jax.tree.structure(dataclasses.replace(native_model, kernels="reference"))
    other = dataclasses.replace(native_model.config, rms_norm_eps=1e-4)
    assert structure != jax.tree.structure(dataclasses.replace(native_model, config=other))
    assert hash(structure) == hash(jax.tree.structure(dataclasses.replace(native_model)))


def test_frozen_model_survives_tree_map_and_scan(native_model):
    zeros = jax.tree.map(np.zeros_like, native_model)
    assert isinstance(zeros, FrozenModel)
    assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))
    total, _ = jax.lax.scan(lambda model, _: (model, None), native_model, None, length=2)
    assert jax.tree.structure(total) == jax.tree.structure(native_model)
