"""Where a paged cache keeps the key and the value of a slot and a head.

A slot is a token's place in its layer: page = slot // page_size, o = slot % page_size. With x = 16 bytes /
element size (4 float32, 8 bfloat16, 16 float8), element d of head h is

| cache_layout | key | value |
|---|---|---|
| "flash" | [layer, page, o, h, d] | [layer, page, o, h, d] |
| "split_k" | [layer, page, h, d // x, o, d % x] | [layer, page, h, d, o] |
| "split_kv" | [layer, page, h, d // x, o, d % x] | [layer, page, h, o // x, d, o % x] |

The name is an argument wherever a cache is one: an order is never inferred from a shape.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.cache_rows import store
from custom_calls.checks import CACHE_DTYPES, check_choice, check_dtype, check_shape
from custom_calls.errors import ShapeError

KVCacheLayout = Literal["flash", "split_k", "split_kv"]
KV_CACHE_LAYOUTS: tuple[KVCacheLayout, ...] = ("flash", "split_k", "split_kv")

PACK_BYTES = 16
"""Bytes that the split layouts keep together."""


class KVCacheSizes(NamedTuple):
    """Sizes of a pair of caches; key_width is D, value_width is Dv."""

    num_layers: int
    num_pages: int
    page_size: int
    num_heads: int
    key_width: int
    value_width: int


def kv_cache_shapes(
    sizes: KVCacheSizes, dtype: Any, cache_layout: KVCacheLayout
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the key cache and the value cache.

    Raises:
      ShapeError: a split layout and D (or, for "split_kv", the page size) that is no multiple of x.
    """
    op = "kv_cache_shapes"
    check_choice(op, "cache_layout", cache_layout, KV_CACHE_LAYOUTS)
    layers, pages, page_size, heads, key_width, value_width = sizes
    if cache_layout == "flash":
        return (layers, pages, page_size, heads, key_width), (layers, pages, page_size, heads, value_width)
    pack = _pack(dtype)
    _check_multiple(op, "key_width", key_width, pack, cache_layout)
    key = (layers, pages, heads, key_width // pack, page_size, pack)
    if cache_layout == "split_k":
        return key, (layers, pages, heads, value_width, page_size)
    _check_multiple(op, "page_size", page_size, pack, cache_layout)
    return key, (layers, pages, heads, page_size // pack, value_width, pack)


def check_kv_caches(op: str, k_cache: Any, v_cache: Any, cache_layout: KVCacheLayout) -> KVCacheSizes:
    """The sizes of two caches.

    Raises:
      ShapeError: naming argument, expected and got, unless both are of `cache_layout`.
    """
    check_choice(op, "cache_layout", cache_layout, KV_CACHE_LAYOUTS)
    check_dtype(op, "k_cache", k_cache, CACHE_DTYPES)
    check_dtype(op, "v_cache", v_cache, (jnp.dtype(k_cache.dtype).name,))
    if cache_layout == "flash":
        check_shape(op, "k_cache", k_cache, ("L", "num_pages", "page_size", "Hk", "D"))
        check_shape(op, "v_cache", v_cache, (*k_cache.shape[:4], "Dv"))
        layers, pages, page_size, heads, key_width = k_cache.shape
        value_width = v_cache.shape[4]
    else:
        pack = _pack(k_cache.dtype)
        check_shape(op, "k_cache", k_cache, ("L", "num_pages", "Hk", f"D / {pack}", "page_size", pack))
        layers, pages, heads, packs, page_size, _ = k_cache.shape
        key_width = packs * pack
        if cache_layout == "split_k":
            check_shape(op, "v_cache", v_cache, (layers, pages, heads, "Dv", page_size))
            value_width = v_cache.shape[3]
        else:
            _check_multiple(op, "k_cache", page_size, pack, cache_layout, "a page size")
            check_shape(op, "v_cache", v_cache, (layers, pages, heads, page_size // pack, "Dv", pack))
            value_width = v_cache.shape[4]
    for name, array, size in (("k_cache", k_cache, key_width), ("v_cache", v_cache, value_width)):
        if min(page_size, heads, size) < 1:
            raise ShapeError(
                f"{op}: argument '{name}': expected a positive page size, number of heads and width, "
                f"got shape {tuple(array.shape)}"
            )
    return KVCacheSizes(layers, pages, page_size, heads, key_width, value_width)


def check_scale(op: str, name: str, scale: Any) -> None:
    """Raises `ShapeError` unless `scale` is one float32 number, of shape () or (1)."""
    if tuple(scale.shape) not in ((), (1,)):
        raise ShapeError(f"{op}: argument '{name}': expected shape () or (1), got {tuple(scale.shape)}")
    check_dtype(op, name, scale, ("float32",))


def store_kv(
    k_cache: jax.Array,
    v_cache: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    layer: jax.Array,
    slots: jax.Array,
    cache_layout: KVCacheLayout,
) -> tuple[jax.Array, jax.Array]:
    """Stores keys (T, Hk, D) and values (T, Hk, Dv) of the caches' dtype; a bad slot or layer stores nothing."""
    sizes = check_kv_caches("store_kv", k_cache, v_cache, cache_layout)
    # A negative slot has a negative page, which is outside like one beyond the last.
    page, o = slots // np.int32(sizes.page_size), slots % np.int32(sizes.page_size)
    every = slice(None)
    if cache_layout == "flash":
        return store(k_cache, keys, (layer, page, o)), store(v_cache, values, (layer, page, o))
    pack = _pack(k_cache.dtype)
    packs = keys.reshape(*keys.shape[:2], sizes.key_width // pack, pack)
    k_cache = store(k_cache, packs, (layer, page, every, every, o))
    if cache_layout == "split_k":
        return k_cache, store(v_cache, values, (layer, page, every, every, o))
    at = (layer, page, every, o // np.int32(pack), every, o % np.int32(pack))
    return k_cache, store(v_cache, values, at)


def load_kv(
    k_cache: jax.Array, v_cache: jax.Array, layer: jax.Array, pages: jax.Array, cache_layout: KVCacheLayout
) -> tuple[jax.Array, jax.Array]:
    """Stored keys (n, page_size, Hk, D) and values (n, page_size, Hk, Dv) of pages (n,), clamped to the pool."""
    sizes = check_kv_caches("load_kv", k_cache, v_cache, cache_layout)
    at = (
        jnp.clip(layer, 0, max(sizes.num_layers - 1, 0)),
        jnp.clip(pages, 0, max(sizes.num_pages - 1, 0)),
    )
    k, v = k_cache[at], v_cache[at]
    if cache_layout == "flash":
        return k, v
    count = (pages.shape[0], sizes.page_size, sizes.num_heads)
    k = jnp.transpose(k, (0, 3, 1, 2, 4)).reshape(*count, sizes.key_width)
    if cache_layout == "split_k":
        return k, jnp.transpose(v, (0, 3, 1, 2))
    return k, jnp.transpose(v, (0, 2, 4, 1, 3)).reshape(*count, sizes.value_width)


def _pack(dtype: Any) -> int:
    return PACK_BYTES // jnp.dtype(dtype).itemsize


def _check_multiple(
    op: str, name: str, size: int, pack: int, cache_layout: str, what: str = "a size"
) -> None:
    if size % pack:
        raise ShapeError(
            f"{op}: argument '{name}': cache_layout {cache_layout!r} needs {what} that is a multiple of {pack}, "
            f"got {size}"
        )
