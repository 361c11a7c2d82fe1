"""Layouts of paged caches: shapes, refusals, and that what is stored is what is loaded."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from op_base import Rng, normal, same_bits

from custom_calls.errors import ShapeError
from custom_calls.kv_cache_layout import (
    KV_CACHE_LAYOUTS,
    KVCacheSizes,
    check_kv_caches,
    kv_cache_shapes,
    load_kv,
    store_kv,
)

SIZES = KVCacheSizes(2, 3, 16, 2, 32, 5)
DTYPES = ("float32", "bfloat16", "float8_e4m3fn")


@pytest.mark.parametrize(
    ("cache_layout", "dtype", "key", "value"),
    [
        ("flash", "float8_e4m3fn", (2, 3, 16, 2, 32), (2, 3, 16, 2, 5)),
        ("split_k", "float32", (2, 3, 2, 8, 16, 4), (2, 3, 2, 5, 16)),
        ("split_k", "bfloat16", (2, 3, 2, 4, 16, 8), (2, 3, 2, 5, 16)),
        ("split_kv", "bfloat16", (2, 3, 2, 4, 16, 8), (2, 3, 2, 2, 5, 8)),
        ("split_kv", "float8_e4m3fn", (2, 3, 2, 2, 16, 16), (2, 3, 2, 1, 5, 16)),
    ],
)
def test_shapes(cache_layout: Any, dtype: str, key: tuple[int, ...], value: tuple[int, ...]) -> None:
    assert kv_cache_shapes(SIZES, jnp.dtype(dtype), cache_layout) == (key, value)


@pytest.mark.parametrize("cache_layout", KV_CACHE_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_come_back_from_shapes(dtype: str, cache_layout: Any) -> None:
    shapes = kv_cache_shapes(SIZES, jnp.dtype(dtype), cache_layout)
    k, v = (jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
    assert check_kv_caches("op", k, v, cache_layout) == SIZES


@pytest.mark.parametrize("got", KV_CACHE_LAYOUTS)
@pytest.mark.parametrize("said", KV_CACHE_LAYOUTS)
def test_a_cache_is_not_taken_for_another_layout(said: Any, got: Any) -> None:
    """Sizes at which every axis that two layouts could share agrees."""
    sizes = KVCacheSizes(4, 4, 4, 4, 4, 4)
    k, v = (jax.ShapeDtypeStruct(shape, "float32") for shape in kv_cache_shapes(sizes, jnp.float32, got))
    if said == got:
        assert check_kv_caches("op", k, v, said) == sizes
    else:
        with pytest.raises(ShapeError, match="op: argument '[kv]_cache': expected shape"):
            check_kv_caches("op", k, v, said)


@pytest.mark.parametrize(
    ("sizes", "dtype", "cache_layout", "message"),
    [
        (
            SIZES._replace(key_width=36), "bfloat16", "split_k",
            "argument 'key_width': cache_layout 'split_k' needs a size that is a multiple of 8, got 36",
        ),
        (
            SIZES._replace(page_size=20), "bfloat16", "split_kv",
            "argument 'page_size': cache_layout 'split_kv' needs a size that is a multiple of 8, got 20",
        ),
        (
            SIZES, "bfloat16", "paged",
            "argument 'cache_layout': expected 'flash' or 'split_k' or 'split_kv', got 'paged'",
        ),
    ],
    ids=["key-width", "page-size", "layout"],
)  # fmt: skip
def test_shapes_that_do_not_exist(sizes: Any, dtype: str, cache_layout: Any, message: str) -> None:
    with pytest.raises(ShapeError) as raised:
        kv_cache_shapes(sizes, jnp.dtype(dtype), cache_layout)
    assert str(raised.value) == f"kv_cache_shapes: {message}"


@pytest.mark.parametrize(
    ("k", "v", "cache_layout", "message"),
    [
        (
            (2, 3, 2, 4, 20, 8), (2, 3, 2, 2, 5, 8), "split_kv",
            "argument 'k_cache': cache_layout 'split_kv' needs a page size that is a multiple of 8, got 20",
        ),
        (
            (2, 3, 2, 4, 16, 4), (2, 3, 2, 5, 16), "split_k",
            "argument 'k_cache': expected shape (L, num_pages, Hk, D / 8, page_size, 8), got (2, 3, 2, 4, 16, 4)",
        ),
        (
            (2, 3, 2, 4, 16, 8), (2, 3, 2, 5, 8), "split_k",
            "argument 'v_cache': expected shape (2, 3, 2, Dv, 16), got (2, 3, 2, 5, 8)",
        ),
        (
            (2, 3, 2, 4, 16, 8), (2, 3, 2, 1, 5, 16), "split_kv",
            "argument 'v_cache': expected shape (2, 3, 2, 2, Dv, 8), got (2, 3, 2, 1, 5, 16)",
        ),
        (
            (2, 3, 0, 2, 8), (2, 3, 0, 2, 8), "flash",
            "argument 'k_cache': expected a positive page size, number of heads and width, got shape (2, 3, 0, 2, 8)",
        ),
        (
            (2, 3, 4, 0, 8), (2, 3, 4, 0, 8), "flash",
            "argument 'k_cache': expected a positive page size, number of heads and width, got shape (2, 3, 4, 0, 8)",
        ),
        (
            (2, 3, 4, 2, 8), (2, 3, 4, 2, 0), "flash",
            "argument 'v_cache': expected a positive page size, number of heads and width, got shape (2, 3, 4, 2, 0)",
        ),
    ],
    ids=["page-size", "pack", "slots-of-v", "pack-of-v", "no-slots", "no-heads", "no-width"],
)  # fmt: skip
def test_caches_that_are_refused(k: Any, v: Any, cache_layout: Any, message: str) -> None:
    caches = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (k, v))
    with pytest.raises(ShapeError) as raised:
        check_kv_caches("op", *caches, cache_layout)
    assert str(raised.value) == f"op: {message}"


@pytest.mark.parametrize("cache_layout", KV_CACHE_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_stored_is_loaded(dtype: str, cache_layout: Any, rng: Rng) -> None:
    k_cache, v_cache = (
        jnp.asarray(normal(rng, shape, dtype))
        for shape in kv_cache_shapes(SIZES, jnp.dtype(dtype), cache_layout)
    )
    keys, values = normal(rng, (3, 2, 32), dtype), normal(rng, (3, 2, 5), dtype)
    slots = jnp.array([2 * 16 + 5, 0, -1], jnp.int32)
    caches = jax.jit(store_kv, static_argnums=6)(
        k_cache, v_cache, keys, values, jnp.int32(1), slots, cache_layout
    )
    pages = jnp.array([2, -5, 99, 0], jnp.int32)
    for which, loaded, rows in zip(
        "kv", load_kv(*caches, jnp.int32(1), pages, cache_layout), (keys, values), strict=True
    ):
        loaded = np.asarray(loaded)
        assert same_bits(loaded[0, 5], rows[0])
        assert same_bits(loaded[3, 0], rows[1])
        assert same_bits(loaded[1], loaded[3]), "pages outside the pool are clamped"
        assert same_bits(loaded[2], loaded[0])
        cache = np.asarray(caches["kv".index(which)])
        assert same_bits(loaded, oracle.kv_rows(cache, cache_layout, which)[1][[2, 0, 2, 0]])
    # A layer outside the pool is clamped too; who loads it must not use it.
    for layer, clamped in ((-1, 0), (2, 1)):
        for got, want in zip(
            load_kv(*caches, jnp.int32(layer), pages, cache_layout),
            load_kv(*caches, jnp.int32(clamped), pages, cache_layout),
            strict=True,
        ):
            assert same_bits(got, want)
