"""`rope_append_latent`: norm of the latent, RoPE of query and key, write of the row into its slot.

One op does all three, so there is no moment at which a key is rotated but not stored, or stored but not
rotated. `rope_latent_rows` is the same op without a pool: it returns the rows instead (training, tests).
"""

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.cache_rows import from_cache_dtype, store, to_cache_dtype
from custom_calls.checks import (
    CACHE_DTYPES,
    COMPUTE_DTYPES,
    check_dtype,
    check_range,
    check_shape,
)
from custom_calls.op import Arrays, Op, map_rows
from custom_calls.registry import Kernels
from custom_calls.rmsnorm import normalise
from custom_calls.rope_contract import LAYOUT_CODE, RopeLayout, check_rope_layout, rotate

TARGET = "mla_jax.rope_append_latent.v1"
TARGET_ROWS = "mla_jax.rope_latent_rows.v1"


def rope_append_latent(
    q: jax.Array,
    kv_a: jax.Array,
    norm_weight: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    positions: jax.Array,
    slots: jax.Array,
    kv: jax.Array,
    layer: jax.Array,
    scales: jax.Array,
    *,
    eps: float,
    layout: RopeLayout,
    q_offset: int,
    kv_offset: int = 0,
    kernels: Kernels = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Rotates the query's RoPE part and stores this step's latent rows, in place under donation.

    Row t is [rmsnorm(kv_a[t, kv_offset : kv_offset+R]) * norm_weight | rope(next P columns)].

    Args:
      q: (T, H, D) float32 or bfloat16, not rotated; columns [q_offset, q_offset + P) are rotated.
      kv_a: (T, W) of q's dtype, not normed and not rotated.
      norm_weight: (R,) float32 or bfloat16.
      cos, sin: (M, P / 2) float32.
      positions: (T,) int32, token positions; clamped to [0, M).
      slots: (T,) int32; a slot outside [0, num_pages * page_size) stores nothing, checked before the
        layer's offset is added. Live slots are distinct.
      kv: (L, num_pages, page_size, R + P) float32, bfloat16 or float8_e4m3fn: the pool.
      layer: () int32; outside [0, L) nothing is stored.
      scales: (2,) float32, value = stored * scale for latent and RoPE part; only float8 uses them.
      layout: "interleaved" rotates pairs (2i, 2i+1), "half" pairs (i, i + P/2); order is kept.

    Returns:
      (q_rope (T, H, P) of q's dtype, the pool). Arithmetic in float32, one rounding.

    Raises:
      ShapeError, LayoutError: naming argument, expected and got.
    """
    op = "rope_append_latent"
    check_shape(op, "kv", kv, ("L", "num_pages", "page_size", "R + P"))
    check_dtype(op, "kv", kv, CACHE_DTYPES)
    rank = norm_weight.shape[0] if norm_weight.ndim == 1 else 0
    _check_rotation(op, q, kv_a, norm_weight, cos, sin, positions, layout, q_offset, kv_offset)
    check_shape(op, "kv", kv, ("L", "num_pages", "page_size", rank + 2 * cos.shape[1]))
    check_shape(op, "slots", slots, (q.shape[0],))
    check_dtype(op, "slots", slots, ("int32",))
    check_shape(op, "layer", layer, ())
    check_dtype(op, "layer", layer, ("int32",))
    check_shape(op, "scales", scales, (2,))
    check_dtype(op, "scales", scales, ("float32",))
    q_rope, pool = ROPE_APPEND_LATENT(
        q, kv_a, norm_weight, cos, sin, positions, slots, kv, layer, scales,
        kernels=kernels, **_static(eps, layout, q_offset, kv_offset),
    )  # fmt: skip
    return q_rope, pool


def rope_latent_rows(
    q: jax.Array,
    kv_a: jax.Array,
    norm_weight: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    positions: jax.Array,
    *,
    eps: float,
    layout: RopeLayout,
    q_offset: int,
    kv_offset: int = 0,
    kernels: Kernels = "auto",
) -> tuple[jax.Array, jax.Array]:
    """`rope_append_latent` without a pool: returns (q_rope (T, H, P), rows (T, R + P)) of q's dtype."""
    _check_rotation(
        "rope_latent_rows", q, kv_a, norm_weight, cos, sin, positions, layout, q_offset, kv_offset
    )
    q_rope, rows = ROPE_LATENT_ROWS(
        q, kv_a, norm_weight, cos, sin, positions,
        kernels=kernels, **_static(eps, layout, q_offset, kv_offset),
    )  # fmt: skip
    return q_rope, rows


def dequantise_rows(rows: jax.Array, scales: jax.Array, rank: int) -> jax.Array:
    """Rows (..., R + P) of a pool as float32; only float8 rows are scaled."""
    return from_cache_dtype(rows, _row_scale(scales, rank, rows))


def _row_scale(scales: jax.Array, rank: int, rows: jax.Array) -> jax.Array:
    widths = (rank, rows.shape[-1] - rank)
    per_column = jnp.concatenate([jnp.broadcast_to(scales[i], (width,)) for i, width in enumerate(widths)])
    return jnp.expand_dims(per_column, tuple(range(rows.ndim - 1)))


def _static(eps: float, layout: RopeLayout, q_offset: int, kv_offset: int) -> dict[str, object]:
    return {"eps": float(eps), "layout": layout, "q_offset": int(q_offset), "kv_offset": int(kv_offset)}


def _check_rotation(
    op: str,
    q: jax.Array,
    kv_a: jax.Array,
    norm_weight: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    positions: jax.Array,
    layout: RopeLayout,
    q_offset: int,
    kv_offset: int,
) -> None:
    check_rope_layout(op, layout)
    check_shape(op, "q", q, ("T", "H", "D"))
    check_dtype(op, "q", q, COMPUTE_DTYPES)
    check_shape(op, "kv_a", kv_a, (q.shape[0], "W"))
    check_dtype(op, "kv_a", kv_a, (jnp.dtype(q.dtype).name,))
    check_shape(op, "norm_weight", norm_weight, ("R",))
    check_dtype(op, "norm_weight", norm_weight, COMPUTE_DTYPES)
    check_shape(op, "cos", cos, ("M", "P / 2"))
    check_shape(op, "sin", sin, cos.shape)
    check_dtype(op, "cos", cos, ("float32",))
    check_dtype(op, "sin", sin, ("float32",))
    check_range(op, "cos", 0, cos.shape[0], cos.shape[0], "positions")
    check_shape(op, "positions", positions, (q.shape[0],))
    check_dtype(op, "positions", positions, ("int32",))
    width = 2 * cos.shape[1]
    check_range(op, "q_offset", q_offset, width, q.shape[2], "q's columns")
    check_range(op, "kv_offset", kv_offset, norm_weight.shape[0] + width, kv_a.shape[1], "kv_a's columns")


def _rows_float32(
    q: jax.Array,
    kv_a: jax.Array,
    norm_weight: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    positions: jax.Array,
    *,
    eps: float,
    layout: RopeLayout,
    q_offset: int,
    kv_offset: int,
) -> Arrays:
    rank, width = norm_weight.shape[0], 2 * cos.shape[1]
    at = jnp.clip(positions, 0, cos.shape[0] - 1)
    cos_t, sin_t = cos[at], sin[at]
    q_pe = q[:, :, q_offset : q_offset + width].astype(jnp.float32)
    q_rope = rotate(q_pe, cos_t[:, None, :], sin_t[:, None, :], layout).astype(q.dtype)
    latent = normalise(kv_a[:, kv_offset : kv_offset + rank].astype(jnp.float32), norm_weight, eps)
    k_pe = kv_a[:, kv_offset + rank : kv_offset + rank + width].astype(jnp.float32)
    return q_rope, jnp.concatenate([latent, rotate(k_pe, cos_t, sin_t, layout)], axis=-1)


def _reference_rows(q: jax.Array, *rest: jax.Array, **static: object) -> Arrays:
    q_rope, rows = _rows_float32(q, *rest, **static)  # type: ignore[arg-type]
    return q_rope, rows.astype(q.dtype)


def _reference(*arrays: jax.Array, **static: object) -> Arrays:
    *rotation, slots, kv, layer, scales = arrays
    q_rope, rows = _rows_float32(*rotation, **static)  # type: ignore[arg-type]
    stored = to_cache_dtype(rows, kv.dtype, _row_scale(scales, rotation[2].shape[0], rows))
    num_layers, num_pages, page_size, width = kv.shape
    pool = kv.reshape(num_layers, num_pages * page_size, width)
    return q_rope, store(pool, stored, (layer, slots)).reshape(kv.shape)


def _q_rope(q: jax.Array, cos: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*q.shape[:2], 2 * cos.shape[1]), q.dtype)


def _abstract(*arrays: jax.Array, **_: object) -> list[jax.ShapeDtypeStruct]:
    kv = arrays[7]
    return [_q_rope(arrays[0], arrays[3]), jax.ShapeDtypeStruct(kv.shape, kv.dtype)]


def _abstract_rows(*arrays: jax.Array, **_: object) -> list[jax.ShapeDtypeStruct]:
    q, _kv_a, norm_weight, cos = arrays[:4]
    rows = jax.ShapeDtypeStruct((q.shape[0], norm_weight.shape[0] + 2 * cos.shape[1]), q.dtype)
    return [_q_rope(q, cos), rows]


def _attributes(eps: float, layout: RopeLayout, q_offset: int, kv_offset: int) -> dict[str, np.generic]:
    return {
        "q_offset": np.int64(q_offset),
        "kv_offset": np.int64(kv_offset),
        "eps": np.float32(eps),
        "layout": np.int64(LAYOUT_CODE[layout]),
    }


def _native(*arrays: jax.Array, **static: object) -> Arrays:
    call = jax.ffi.ffi_call(TARGET, _abstract(*arrays), input_output_aliases={7: 1})
    return tuple(call(*arrays, **_attributes(**static)))  # type: ignore[arg-type]


def _native_rows(*arrays: jax.Array, **static: object) -> Arrays:
    return tuple(jax.ffi.ffi_call(TARGET_ROWS, _abstract_rows(*arrays))(*arrays, **_attributes(**static)))  # type: ignore[arg-type]


ROPE_APPEND_LATENT = Op(
    "mla_jax.rope_append_latent",
    targets=(TARGET,),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    # vmap over tokens would need one pool per batch element, which is what paging exists to avoid.
    batch=None,
    not_differentiable="it writes the pool in place; pass cache=None to differentiate the same computation",
)

ROPE_LATENT_ROWS: Op = Op(
    "mla_jax.rope_latent_rows",
    targets=(TARGET_ROWS,),
    abstract=_abstract_rows,
    reference=_reference_rows,
    native=_native_rows,
    batch=lambda arrays, batched, static: map_rows(ROPE_LATENT_ROWS, arrays, batched, static),
)
