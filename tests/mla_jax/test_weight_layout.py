"""weight_layout: which weights are shuffled at load, where, and that the model answers the same."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mla_jax
from custom_calls.quantized_tensor import QuantizedTensor, unshuffle
from mla_jax import weight_layout
from mla_jax.errors import ConfigError
from mla_jax.models import freeze
from mla_jax.parameters import parameter_table
from mla_jax.quant import MXFP4, random_tensor
from mla_jax.weight_layout import LEAST_SHUFFLED, in_weight_layout, resolve_weight_layout

GOLDENS = Path(__file__).resolve().parents[1] / "goldens_quantized"
TOKENS = jnp.arange(9, dtype=jnp.int32)[None]
CASES = ("quark_mxfp4", "quark_mixed", "ct_mxfp4")


def weights(model):
    is_weight = lambda node: isinstance(node, QuantizedTensor)  # noqa: E731
    return jax.tree_util.tree_flatten_with_path(model.params, is_leaf=is_weight)[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_auto_is_for_gpus_that_compute_in_bfloat16(platform, dtype):
    device = SimpleNamespace(platform=platform)
    wanted = "auto" if (platform, dtype) == ("gpu", "bfloat16") else "row_major"
    assert resolve_weight_layout("auto", dtype, device) == wanted
    for choice in ("row_major", "shuffled"):
        assert resolve_weight_layout(choice, dtype, device) == choice


@pytest.mark.parametrize("choice", ["tiled", "", None, 3])
def test_other_choices_are_refused(choice):
    message = "weight_layout: expected one of auto, row_major, shuffled, got "
    with pytest.raises(ConfigError, match=message):
        resolve_weight_layout(choice, "bfloat16")
    with pytest.raises(ConfigError, match=message):
        mla_jax.load(GOLDENS / "quark_mxfp4", weight_layout=choice, progress=False)


@pytest.mark.parametrize("case", CASES)
def test_weights_of_linear_are_shuffled_and_others_are_not(case):
    plain, made = (
        freeze(mla_jax.load(GOLDENS / case, weight_layout=layout, progress=False)[0])
        for layout in ("row_major", "shuffled")
    )
    layouts = set()
    for (path, before), (_, after) in zip(weights(plain), weights(made), strict=True):
        if not isinstance(before, QuantizedTensor):
            continue
        name = jax.tree_util.keystr(path)
        wanted = before.container == "mxfp4" and "kv_b_proj" not in name and before.ndim == 2
        assert after.data_layout == ("shuffled" if wanted else "row_major"), name
        layouts.add(after.data_layout)
        back = unshuffle(after)
        assert np.array_equal(back.data, before.data) and np.array_equal(back.scale, before.scale), name
    # ct_mxfp4 has only experts in MXFP4.
    assert ("shuffled" in layouts) == (case != "ct_mxfp4")


def test_auto_shuffles_large_weights_only(monkeypatch):
    table = parameter_table(freeze(mla_jax.load(GOLDENS / "quark_mxfp4", progress=False)[0]).config)
    info = table["model"]["layers"][0]["self_attn"]["o_proj"]["weight"]
    small = random_tensor(MXFP4, (7, 96), jax.random.key(0), 1.0)
    assert LEAST_SHUFFLED > 10944 * 2048 and LEAST_SHUFFLED < 18432 * 7168
    assert in_weight_layout(small, info, "auto") is small
    assert in_weight_layout(small, info, "shuffled").data_layout == "shuffled"
    for least, layout in ((7 * 96, "shuffled"), (7 * 96 + 1, "row_major")):
        monkeypatch.setattr(weight_layout, "LEAST_SHUFFLED", least)
        assert in_weight_layout(small, info, "auto").data_layout == layout
        assert in_weight_layout(small, info, "row_major") is small


@pytest.mark.parametrize("case", CASES)
def test_models_answer_the_same(case):
    plain, made = (
        freeze(mla_jax.load(GOLDENS / case, dtype="float32", weight_layout=layout, progress=False)[0])
        for layout in ("row_major", "shuffled")
    )
    wanted, got = (np.asarray(jax.jit(mla_jax.forward)(model, TOKENS)) for model in (plain, made))
    # The same kernel of the same rows.
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize("layout", ["row_major", "shuffled"])
def test_described_and_loaded_models_agree(layout):
    described = freeze(mla_jax.load(GOLDENS / "quark_mixed", abstract=True, weight_layout=layout)[0]).params
    loaded = freeze(mla_jax.load(GOLDENS / "quark_mixed", progress=False, weight_layout=layout)[0]).params
    assert jax.tree.structure(described) == jax.tree.structure(loaded)
    for one, other in zip(jax.tree.leaves(described), jax.tree.leaves(loaded), strict=True):
        assert (one.shape, one.dtype) == (other.shape, jnp.dtype(other.dtype))
