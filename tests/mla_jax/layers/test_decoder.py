"""The pre-norm residual block: its wiring, and that padding reaches no expert."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mla_jax.cache import init_cache
from mla_jax.layers import MLP, DecoderLayer, MoE, RopeState
from mla_jax.paging import AttentionMetadata, PageTable
from mla_jax.parameters import parameter_table, random_parameters
from mla_jax.rope import RopeTable

KERNELS = ["reference", "native"]


def layer_of(config, index, kernels):
    params = random_parameters(
        parameter_table(config)["model"]["layers"][index], jax.random.key(2), "float32"
    )
    return DecoderLayer(
        config, params, RopeState(RopeTable.from_config(config.rope, 64)), index, kernels=kernels
    )


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("index", [0, 1], ids=["dense", "sparse"])
def test_block_is_two_pre_norm_residuals(rng, config, index, kernels):
    layer = layer_of(config, index, kernels)
    assert isinstance(layer.mlp, (MLP, MoE)[index])
    assert layer.self_attn.layer == index
    assert layer.input_layernorm.eps == layer.post_attention_layernorm.eps == config.rms_norm_eps
    x = jnp.asarray(rng.standard_normal((8, 18)), jnp.float32)
    meta = AttentionMetadata.dense(2, 4)
    middle = x + layer.self_attn(layer.input_layernorm(x), None, meta)[0]
    expected = middle + layer.mlp(layer.post_attention_layernorm(middle))
    out, cache = layer(x, None, meta)
    assert cache is None
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("index", [0, 1], ids=["dense", "sparse"])
def test_a_layer_writes_its_own_rows_only_and_ignores_padding(rng, config, index, kernels):
    layer = layer_of(config, index, kernels)
    cache = init_cache(config, num_tokens=16, page_size=4)
    cache = cache.with_kv(jnp.full_like(cache.kv, jnp.nan))
    meta = AttentionMetadata.extend(PageTable.allocate(cache, 2, 8), [0, 0], [3, 2], num_tokens=7)
    x = jnp.asarray(rng.standard_normal((7, 18)), jnp.float32)
    run = jax.jit(layer.__call__)
    clean, after = run(x, cache, meta)
    poisoned, again = run(x.at[5:].set(jnp.nan), cache, meta)
    np.testing.assert_array_equal(poisoned[:5], clean[:5])
    np.testing.assert_array_equal(again.kv, after.kv)
    rows = np.asarray(after.kv).reshape(2, 16, -1)
    written = np.isfinite(rows).all(-1)
    assert np.flatnonzero(written[index]).tolist() == [0, 1, 2, 8, 9]
    assert not written[1 - index].any()


@pytest.mark.parametrize("slot", [-1, -(2**31), 16, 2**31 - 1])
def test_rows_that_are_stored_nowhere_choose_no_expert(rng, config, slot, monkeypatch):
    layer, seen = layer_of(config, 1, "reference"), []
    monkeypatch.setattr(MoE, "__call__", lambda self, x, live: seen.append(live) or x)
    cache = init_cache(config, num_tokens=16, page_size=4)
    meta = AttentionMetadata.extend(PageTable.allocate(cache, 1, 8), [0], [3])
    slots = dataclasses.replace(meta.slot_mapping, slots=jnp.array([0, slot, 15], jnp.int32))
    x = jnp.asarray(rng.standard_normal((3, 18)), jnp.float32)
    layer(x, cache, dataclasses.replace(meta, slot_mapping=slots))
    assert seen[0].tolist() == [True, False, True]
