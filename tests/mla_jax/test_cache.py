"""`LatentCache` and `init_cache`: sizes computed next to what they size, dtypes, and named errors."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mla_jax.cache import LatentCache, cache_dtype, init_cache
from mla_jax.config import ModelConfig, RopeConfig
from mla_jax.errors import ShapeError

CONFIG = ModelConfig(
    model_type="deepseek_v3",
    vocab_size=8,
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=1,
    q_lora_rank=None,
    kv_lora_rank=10,
    qk_nope_head_dim=4,
    qk_rope_head_dim=6,
    v_head_dim=8,
    intermediate_size=8,
    moe_intermediate_size=0,
    n_routed_experts=0,
    num_experts_per_tok=0,
    n_shared_experts=0,
    mlp_layer_types=("dense",) * 3,
    router=None,
    rope=RopeConfig(1e4, 6, "half"),
    rms_norm_eps=1e-6,
    latent_norm_eps=1e-6,
    max_position_embeddings=64,
    dtype="bfloat16",
)


@pytest.mark.parametrize(
    ("num_tokens", "page_size", "pages"),
    [(1, 1, 1), (1, 16, 1), (16, 16, 1), (17, 16, 2), (10, 3, 4), (64, 64, 1)],
)
def test_pages_are_rounded_up(num_tokens, page_size, pages):
    cache = init_cache(CONFIG, num_tokens=num_tokens, page_size=page_size)
    assert cache.kv.shape == (3, pages, page_size, 16)
    assert (cache.num_layers, cache.num_pages, cache.page_size) == (3, pages, page_size)
    assert cache.num_slots == pages * page_size >= num_tokens
    assert cache.nbytes == 3 * pages * page_size * 16 * 2 == cache.kv.nbytes
    assert (cache.kv_lora_rank, cache.rope_layout) == (10, "half")


def test_a_new_pool_is_zero_with_scales_of_one():
    cache = init_cache(CONFIG, num_tokens=5, page_size=2)
    assert not np.asarray(cache.kv).any()
    np.testing.assert_array_equal(cache.scales, np.ones((3, 2)))
    assert cache.scales.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "compute", "expected"),
    [
        ("auto", "float32", "float32"),
        ("auto", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "float32"),
        ("fp32", "bfloat16", "float32"),
        ("bf16", "float32", "bfloat16"),
        ("bfloat16", "float32", "bfloat16"),
        ("fp8", "bfloat16", "float8_e4m3fn"),
        ("float8_e4m3fn", "float32", "float8_e4m3fn"),
        (jnp.bfloat16, "float32", "bfloat16"),
        (np.float32, "bfloat16", "float32"),
        (jnp.dtype("bfloat16"), "float32", "bfloat16"),
        (jnp.float8_e4m3fn, "float32", "float8_e4m3fn"),
    ],
)
def test_cache_dtype(name, compute, expected):
    assert cache_dtype(name, compute) == jnp.dtype(expected)
    assert (
        init_cache(dataclasses.replace(CONFIG, dtype=compute), num_tokens=1, dtype=name).kv.dtype == expected
    )


@pytest.mark.parametrize(
    ("name", "compute"),
    [
        *(("float16", "float32"), ("int8", "float32"), ("auto", "float16"), ("float8_e5m2", "float32")),
        *((bad, "float32") for bad in ("", None, 8, float, ["fp8"], {}, np.float16, np.ones(2))),
    ],
)
def test_unusable_cache_dtype_is_named(name, compute):
    with pytest.raises(ShapeError, match=f"cache dtype: expected 'auto', .*, got {re.escape(repr(name))}"):
        cache_dtype(name, compute)


@pytest.mark.parametrize("bad", [0, -1, 1.0, True, "4", None])
@pytest.mark.parametrize("argument", ["num_tokens", "page_size"])
def test_sizes_are_positive_integers(argument, bad):
    sizes = {"num_tokens": 4, "page_size": 4, argument: bad}
    with pytest.raises(ShapeError, match=f"init_cache: argument '{argument}': expected an integer >= 1"):
        init_cache(CONFIG, **sizes)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array, jnp.int32])
def test_sizes_may_be_any_kind_of_integer(kind):
    assert init_cache(CONFIG, num_tokens=kind(5), page_size=kind(2)).kv.shape == (3, 3, 2, 16)


def test_scales_are_checked():
    scales = jnp.full((3, 2), 0.5, jnp.float32)
    np.testing.assert_array_equal(init_cache(CONFIG, num_tokens=1, dtype="fp8", scales=scales).scales, scales)
    for wrong in (scales[:2], scales[:, :1], scales.astype(jnp.bfloat16), jnp.float32(1)):
        with pytest.raises(ShapeError, match=r"argument 'scales': expected float32 of shape \(3, 2\)"):
            init_cache(CONFIG, num_tokens=1, scales=wrong)


def test_with_kv_keeps_everything_else():
    cache = init_cache(CONFIG, num_tokens=4, page_size=2)
    other = cache.with_kv(cache.kv + 1)
    assert isinstance(other, LatentCache)
    # Field by field: comparing the dataclasses would compare arrays.
    for field in dataclasses.fields(cache):
        if field.name != "kv":
            assert getattr(other, field.name) is getattr(cache, field.name)
    assert float(other.kv[0, 0, 0, 0]) == 1


def test_cache_plans_without_memory():
    abstract = jax.eval_shape(lambda: init_cache(CONFIG, num_tokens=10**7, page_size=64, dtype="fp8"))
    assert abstract.num_slots == 10**7
    assert abstract.nbytes == 3 * 10**7 * 16
    assert abstract.kv.dtype == ml_dtypes.float8_e4m3fn


def test_layout_and_rank_are_structure():
    half = init_cache(CONFIG, num_tokens=4)
    pairs = dataclasses.replace(half, rope_layout="interleaved")
    assert jax.tree.structure(half) != jax.tree.structure(pairs)
    assert len(jax.tree.leaves(half)) == 2
