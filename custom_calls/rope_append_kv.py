"""`rope_append_kv`: RoPE of queries and keys, write of keys and values into their slots.

The form of `rope_append_latent` for multi-head and grouped-query attention, where every key head has a key and
a value of its own. One op does both, so there is no moment at which a key is rotated but not stored, or stored
but not rotated.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.cache_rows import to_cache_dtype
from custom_calls.checks import COMPUTE_DTYPES, check_dtype, check_range, check_shape
from custom_calls.errors import ShapeError
from custom_calls.kv_cache_layout import (
    KV_CACHE_LAYOUTS,
    KVCacheLayout,
    check_kv_caches,
    check_scale,
    store_kv,
)
from custom_calls.op import Arrays, Op
from custom_calls.registry import Kernels
from custom_calls.rope_contract import LAYOUT_CODE, RopeLayout, check_rope_layout, rotate

TARGET = "mla_jax.rope_append_kv.v1"
TARGET_MAPPED = "mla_jax.rope_append_kv_mapped.v1"


def rope_append_kv(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    positions: jax.Array,
    slots: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    layer: jax.Array,
    k_scale: jax.Array,
    v_scale: jax.Array,
    slot_map: jax.Array | None = None,
    *,
    layout: RopeLayout,
    cache_layout: KVCacheLayout,
    kernels: Kernels = "auto",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotates queries and keys and stores this step's keys and values, in place under donation.

    The number of key heads Hk and the widths D and Dv are the caches'. The first R columns of every head of q
    and k are rotated, the others pass through. q, k and v may have their heads apart (three axes) or together
    (two axes), each as it likes.

    Args:
      q: (T, Hq, D) or (T, Hq * D) float32 or bfloat16, not rotated; Hq is a multiple of Hk.
      k: (T, Hk, D) or (T, Hk * D) of q's dtype, not rotated.
      v: (T, Hk, Dv) or (T, Hk * Dv) of q's dtype.
      cos, sin: (M, R / 2) float32, 2 <= R <= D.
      positions: (T,) int32, token positions; clamped to [0, M).
      slots: (T,) int32; a slot outside [0, num_pages * page_size) stores nothing, checked before the layer's
        offset is added. Live slots are distinct: with two equal ones it is open whose elements remain.
      k_cache, v_cache: float32, bfloat16 or float8_e4m3fn, both alike, of the shapes that
        `kv_cache_layout.kv_cache_shapes` gives; `custom_calls.kv_cache_layout` says where an element lies.
      layer: () int32; outside [0, L) nothing is stored.
      k_scale, v_scale: () or (1,) float32, value = stored * scale of the keys and of the values; only float8
        caches use them. Results are multiplied by 1 / scale; magnitudes above 448 saturate, NaN stays NaN.
      slot_map: (N,) int32 or None: the caches' slot of every slot, for a layer with a pool of its own (a sliding
        window). Then `slots` outside [0, N) store nothing, and the range above holds for what the map says. A
        slot that has no place in the pool is -1 there; 0 is a slot like any other.
      layout: "interleaved" rotates pairs (2i, 2i+1), "half" pairs (i, i + R/2); order is kept.
      cache_layout: "flash", "split_k" or "split_kv", see `custom_calls.kv_cache_layout`.
      kernels: see `custom_calls.registry.choose`.

    Returns:
      (the rotated q, in q's shape and dtype and never scaled, the key cache, the value cache). Every row of q is
      rotated, whether its slot is live or not. Arithmetic in float32, one rounding.

    Raises:
      ShapeError, LayoutError: naming argument, expected and got.
    """
    op = "rope_append_kv"
    check_rope_layout(op, layout)
    sizes = check_kv_caches(op, k_cache, v_cache, cache_layout)
    heads, width = sizes.num_heads, sizes.key_width
    check_dtype(op, "q", q, COMPUTE_DTYPES)
    query_heads = _num_heads(q, width)
    if query_heads < 1 or query_heads % heads:
        raise ShapeError(
            f"{op}: argument 'q': expected shape (T, Hq, {width}) or (T, Hq * {width}) with Hq a positive multiple "
            f"of the caches' {heads} heads, got {tuple(q.shape)}"
        )
    tokens = q.shape[0]
    for name, array, size in (("k", k, width), ("v", v, sizes.value_width)):
        check_dtype(op, name, array, (jnp.dtype(q.dtype).name,))
        if tuple(array.shape) not in ((tokens, heads, size), (tokens, heads * size)):
            raise ShapeError(
                f"{op}: argument '{name}': expected shape ({tokens}, {heads}, {size}) or "
                f"({tokens}, {heads * size}), got {tuple(array.shape)}"
            )
    check_shape(op, "cos", cos, ("M", "R / 2"))
    check_shape(op, "sin", sin, cos.shape)
    check_dtype(op, "cos", cos, ("float32",))
    check_dtype(op, "sin", sin, ("float32",))
    check_range(op, "cos", 0, cos.shape[0], cos.shape[0], "positions")
    check_range(op, "cos", 0, 2 * cos.shape[1], width, "the key's columns")
    for name, array, shape in (
        ("positions", positions, (tokens,)),
        ("slots", slots, (tokens,)),
        ("layer", layer, ()),
    ):
        check_shape(op, name, array, shape)
        check_dtype(op, name, array, ("int32",))
    check_scale(op, "k_scale", k_scale)
    check_scale(op, "v_scale", v_scale)
    arrays: Arrays = (q, k, v, cos, sin, positions, slots, k_cache, v_cache, layer, k_scale, v_scale)
    if slot_map is not None:
        check_shape(op, "slot_map", slot_map, ("N",))
        check_dtype(op, "slot_map", slot_map, ("int32",))
        arrays += (slot_map,)
    q_rotated, k_cache, v_cache = ROPE_APPEND_KV(
        *arrays, kernels=kernels, layout=layout, cache_layout=cache_layout
    )
    return q_rotated, k_cache, v_cache


def _num_heads(array: jax.Array, width: int) -> int:
    """n of an array (T, n, width) or (T, n * width); 0 where it is neither."""
    if array.ndim == 3 and array.shape[2] == width:
        return array.shape[1]
    return array.shape[1] // width if array.ndim == 2 and array.shape[1] % width == 0 else 0


def _apart(array: jax.Array, width: int) -> jax.Array:
    """(T, n, width) of an array whose heads may be together."""
    return array.reshape(array.shape[0], _num_heads(array, width), width)


def _rotated_columns(heads: jax.Array, cos: jax.Array, sin: jax.Array, layout: RopeLayout) -> jax.Array:
    """The first R columns of (T, n, D), rotated, in float32."""
    first = heads[..., : 2 * cos.shape[1]].astype(jnp.float32)
    return rotate(first, cos[:, None, :], sin[:, None, :], layout)


def _reference(*arrays: jax.Array, layout: RopeLayout, cache_layout: KVCacheLayout) -> Arrays:
    q, k, v, cos, sin, positions, slots, k_cache, v_cache, layer, k_scale, v_scale, *slot_map = arrays
    sizes = check_kv_caches("rope_append_kv", k_cache, v_cache, cache_layout)
    at = jnp.clip(positions, 0, cos.shape[0] - 1)
    cos, sin = cos[at], sin[at]
    kept = 2 * cos.shape[1]
    queries, keys = _apart(q, sizes.key_width), _apart(k, sizes.key_width)
    first = _rotated_columns(queries, cos, sin, layout).astype(q.dtype)
    q_rotated = jnp.concatenate([first, queries[..., kept:]], axis=-1).reshape(q.shape)
    first = _rotated_columns(keys, cos, sin, layout)
    keys = jnp.concatenate([first, keys[..., kept:].astype(jnp.float32)], axis=-1)
    values = _apart(v, sizes.value_width)
    if slot_map:
        size = slot_map[0].shape[0]
        known = (slots >= 0) & (slots < size)
        # The entry behind the last one stands for every slot that the map does not have.
        slots = jnp.pad(slot_map[0], (0, 1), constant_values=-1)[jnp.where(known, slots, size)]
    keys = to_cache_dtype(keys, k_cache.dtype, k_scale.reshape(()))
    values = to_cache_dtype(values, v_cache.dtype, v_scale.reshape(()))
    return q_rotated, *store_kv(k_cache, v_cache, keys, values, layer, slots, cache_layout)


def _abstract(*arrays: jax.Array, layout: RopeLayout, cache_layout: KVCacheLayout) -> list[Any]:
    del layout, cache_layout
    return [jax.ShapeDtypeStruct(arrays[i].shape, arrays[i].dtype) for i in (0, 7, 8)]


def _native(*arrays: jax.Array, layout: RopeLayout, cache_layout: KVCacheLayout) -> Arrays:
    q, k, v, cos, sin, positions, slots, k_cache, v_cache, layer, k_scale, v_scale, *slot_map = arrays
    sizes = check_kv_caches("rope_append_kv", k_cache, v_cache, cache_layout)
    queries, keys, values = (
        _apart(q, sizes.key_width),
        _apart(k, sizes.key_width),
        _apart(v, sizes.value_width),
    )
    results = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (queries, k_cache, v_cache)]
    call = jax.ffi.ffi_call(TARGET_MAPPED if slot_map else TARGET, results, input_output_aliases={7: 1, 8: 2})
    q_rotated, k_cache, v_cache = call(
        queries, keys, values, cos, sin, positions, slots, k_cache, v_cache, layer,
        k_scale.reshape(()), v_scale.reshape(()), *slot_map,
        layout=np.int64(LAYOUT_CODE[layout]), cache_layout=np.int64(KV_CACHE_LAYOUTS.index(cache_layout)),
    )  # fmt: skip
    return q_rotated.reshape(q.shape), k_cache, v_cache


ROPE_APPEND_KV = Op(
    "mla_jax.rope_append_kv",
    targets=(TARGET, TARGET_MAPPED),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    # As for the latent form: one pair of caches per batch element is what paging exists to avoid.
    batch=None,
    not_differentiable="it writes the caches in place",
)
