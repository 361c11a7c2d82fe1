"""The attention layer against a float64 evaluation of the paper's formulas, in every form and any chunking."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mla_jax.cache import init_cache
from mla_jax.config import RopeConfig, YarnConfig
from mla_jax.layers import MLAAttention, RopeState, attention, expanded_is_cheaper
from mla_jax.paging import AttentionMetadata, PageTable
from mla_jax.parameters import attention_table, random_parameters
from mla_jax.rope import RopeTable, softmax_scale

KERNELS = ["reference", "native"]
LENGTHS = (9, 5)

VARIANTS = {
    "lora": {},
    "no_lora": {"q_lora_rank": None},
    "bias_half": {"attention_bias": True, "rope": RopeConfig(1e4, 6, "half")},
    "yarn": {
        "rope": RopeConfig(1e4, 6, "interleaved", YarnConfig(40.0, 8, mscale=1.0, mscale_all_dim=0.707))
    },
    "latent_eps": {"latent_norm_eps": 0.3},
}


def layer_of(config, kernels="reference"):
    params = random_parameters(attention_table(config), jax.random.key(5), "float32")
    # No norm weight is 1 and no bias is 0, so that leaving one out shows.
    params = jax.tree.map(
        lambda leaf: leaf if leaf.ndim == 2 else leaf + jnp.linspace(0, 0.2, leaf.size, dtype=leaf.dtype),
        params,
    )
    rope = RopeState(RopeTable.from_config(config.rope, config.max_position_embeddings))
    return MLAAttention(config, params, rope, kernels=kernels), params


def paper(config, params, x):
    """DeepSeek-V2, equations 37 to 47, one sequence, expanded, in float64."""
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x, length = np.asarray(x, np.float64), len(x)
    heads, nope, rope, rank = (
        config.num_attention_heads,
        config.qk_nope_head_dim,
        config.qk_rope_head_dim,
        config.kv_lora_rank,
    )

    def dense(name, values):
        return values @ exact[name]["weight"].T + exact[name].get("bias", 0.0)

    def norm(name, values):
        scaled = values / np.sqrt((values**2).mean(-1, keepdims=True) + config.latent_norm_eps)
        return scaled * exact[name]["weight"]

    table = RopeTable.from_config(config.rope, length)
    cos, sin = np.asarray(table.cos, np.float64), np.asarray(table.sin, np.float64)

    def rotate(values):
        even = slice(0, rope // 2) if config.rope.layout == "half" else slice(0, None, 2)
        odd = slice(rope // 2, None) if config.rope.layout == "half" else slice(1, None, 2)
        shape = (length,) + (1,) * (values.ndim - 2) + (rope // 2,)
        turned = (values[..., even] + 1j * values[..., odd]) * (cos + 1j * sin).reshape(shape)
        out = np.empty_like(values)
        out[..., even], out[..., odd] = turned.real, turned.imag
        return out

    q = (
        dense("q_proj", x)
        if config.q_lora_rank is None
        else dense("q_b_proj", norm("q_a_layernorm", dense("q_a_proj", x)))
    )
    q = q.reshape(length, heads, nope + rope)
    kv_a = dense("kv_a_proj_with_mqa", x)
    kv = dense("kv_b_proj", norm("kv_a_layernorm", kv_a[:, :rank])).reshape(length, heads, -1)
    key = np.concatenate([kv[..., :nope], np.repeat(rotate(kv_a[:, None, rank:]), heads, 1)], -1)
    query = np.concatenate([q[..., :nope], rotate(q[..., nope:])], -1)
    score = np.einsum("qhd,khd->hqk", query, key) * softmax_scale(config)
    score = np.where(np.tri(length, dtype=bool), score, -np.inf)
    weight = np.exp(score - score.max(-1, keepdims=True))
    out = np.einsum("hqk,khd->qhd", weight / weight.sum(-1, keepdims=True), kv[..., nope:])
    return dense("o_proj", out.reshape(length, -1))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_layer_is_the_paper(rng, config, variant, kernels):
    config = dataclasses.replace(config, **VARIANTS[variant])
    layer, params = layer_of(config, kernels)
    parts = [rng.standard_normal((n, 18)).astype(np.float32) for n in LENGTHS]
    expected = np.concatenate([paper(config, params, part) for part in parts])
    x = jnp.asarray(np.concatenate(parts))

    alone, none = jax.jit(lambda x: layer(x, None, AttentionMetadata.dense(1, LENGTHS[0])))(x[: LENGTHS[0]])
    assert none is None
    np.testing.assert_allclose(alone, expected[: LENGTHS[0]], atol=2e-5)

    @jax.jit
    def paged(x):
        cache = init_cache(config, num_tokens=32, page_size=3)
        cache = cache.with_kv(jnp.full_like(cache.kv, jnp.nan))
        table = PageTable.allocate(cache, 2, 9)
        meta = AttentionMetadata.extend(
            table, jnp.zeros(2, jnp.int32), jnp.array(LENGTHS), num_tokens=x.shape[0]
        )
        return layer(x, cache, meta)

    out, cache = paged(x)
    np.testing.assert_allclose(out, expected, atol=2e-5)
    assert cache.kv.shape[0] == config.num_hidden_layers


@pytest.mark.parametrize("kernels", KERNELS)
def test_absorbed_expanded_and_chunked_agree(rng, config, kernels, monkeypatch):
    layer, _ = layer_of(config, kernels)
    x = jnp.asarray(rng.standard_normal((sum(LENGTHS), 18)), jnp.float32)

    def run(chunks):
        """chunks: new tokens of (first, second) sequence, step by step."""
        cache = init_cache(config, num_tokens=32, page_size=4)
        cache = cache.with_kv(jnp.full_like(cache.kv, jnp.nan))
        table = PageTable.allocate(cache, 2, 9)
        held, out = [0, 0], [[], []]
        for new in chunks:
            meta = AttentionMetadata.extend(table, jnp.array(held), jnp.array(new), num_tokens=sum(new))
            starts = (0, LENGTHS[0])
            rows = np.concatenate([starts[i] + held[i] + np.arange(new[i]) for i in range(2)]).astype(
                np.int32
            )
            y, cache = layer(x[rows], cache, meta)
            for i, part in enumerate(jnp.split(y, [new[0]])):
                out[i].append(part)
                held[i] += new[i]
        return jnp.concatenate(out[0] + out[1])

    results = {}
    for form in (True, False):
        monkeypatch.setattr(attention, "expanded_is_cheaper", lambda *_, form=form: form)
        results[form, "whole"] = jax.jit(lambda: run([LENGTHS]))()
        results[form, "chunks"] = jax.jit(lambda: run([(4, 0), (1, 2), (4, 3)]))()
    whole = results[True, "whole"]
    for name, got in results.items():
        np.testing.assert_allclose(got, whole, atol=1e-5, err_msg=str(name))
    # Otherwise the two forms would not both have run.
    assert (np.asarray(results[False, "whole"]) != np.asarray(whole)).any()


def test_expanded_is_cheaper_from_where_the_formula_says(config):
    v3 = dataclasses.replace(
        config,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        v_head_dim=128,
        qk_rope_head_dim=64,
        rope=RopeConfig(1e4, 64),
    )
    # n (2 * 512 - 256) >= 2 * 512 * 256
    assert not expanded_is_cheaper(v3, 1)
    assert not expanded_is_cheaper(v3, 341)
    assert expanded_is_cheaper(v3, 342)
    # Where the heads are wider than the latent pair, expanding never pays.
    wide = dataclasses.replace(config, kv_lora_rank=8, qk_nope_head_dim=16, v_head_dim=16)
    assert not expanded_is_cheaper(wide, 10**9)


def test_init_makes_a_layer_of_the_configs_dtype(config):
    layer = MLAAttention.init(
        dataclasses.replace(config, dtype="bfloat16"), jax.random.key(0), max_positions=7
    )
    assert layer.rope.get_value().cos.shape == (7, 3)
    assert layer.kv_b_proj.weight[...].dtype == jnp.bfloat16
    assert layer.kv_b_proj.weight[...].shape == (3 * 12, 10)
    assert layer.kv_a_layernorm.eps == config.latent_norm_eps
    whole = MLAAttention.init(config, jax.random.key(0))
    assert whole.rope.get_value().cos.shape == (config.max_position_embeddings, 3)


def test_padding_rows_are_not_read(rng, config):
    layer, _ = layer_of(config, "native")
    cache = init_cache(config, num_tokens=32, page_size=4)
    table = PageTable.allocate(cache, 2, 9)
    meta = AttentionMetadata.extend(table, [0, 0], [3, 4], num_tokens=10)
    x = jnp.asarray(rng.standard_normal((10, 18)), jnp.float32)
    clean, _ = layer(x, cache, meta)
    poisoned, after = layer(x.at[7:].set(jnp.nan), cache, meta)
    np.testing.assert_array_equal(poisoned[:7], clean[:7])
    assert np.isfinite(np.asarray(after.kv)).all()


def test_expanded_is_chosen_from_where_it_costs_no_more(config):
    # R = 10, nope = 5, v = 7: 30 (2 R - nope - v) = 240 = 2 R (nope + v).
    assert [expanded_is_cheaper(config, rows) for rows in (0, 29, 30, 31)] == [False, False, True, True]
