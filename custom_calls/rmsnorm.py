"""`rmsnorm`: root-mean-square norm of a column range of a fused buffer, with an optional residual."""

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.checks import COMPUTE_DTYPES, check_dtype, check_range, check_shape
from custom_calls.op import Arrays, Native, Op, map_rows
from custom_calls.registry import Kernels

TARGET = "mla_jax.rmsnorm.v1"
TARGET_RESIDUAL = "mla_jax.rmsnorm_residual.v1"


MAX_NATIVE_ROWS = 127
"""With more rows than this the native form on CPUs is XLA's own fusion: it can reuse an operand's memory in
place, and fresh results of that size cost more in page faults than the arithmetic does."""

_NOTE = f"more than {MAX_NATIVE_ROWS} rows go to XLA's own fusion, which is faster there"


def rmsnorm(
    x: jax.Array, weight: jax.Array, *, eps: float, offset: int = 0, kernels: Kernels = "auto"
) -> jax.Array:
    """y = v / sqrt(mean(v^2) + eps) * weight with v = x[:, offset : offset + N], one final rounding.

    Args:
      x: (T, W) float32 or bfloat16; a whole projection, so that no slice has to be copied.
      weight: (N,) float32 or bfloat16.
      eps: added to the mean of squares.
      offset: first column of the normed range.

    Returns:
      (T, N) of x's dtype; all arithmetic in float32.

    Raises:
      ShapeError: naming argument, expected and got.
    """
    _check("rmsnorm", x, weight, offset)
    return RMSNORM(x, weight, kernels=kernels, eps=float(eps), offset=int(offset))[0]


def rmsnorm_residual(
    x: jax.Array,
    residual: jax.Array,
    weight: jax.Array,
    *,
    eps: float,
    offset: int = 0,
    kernels: Kernels = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Norm of s = x[:, offset : offset + N] + residual (unrounded), and s itself, rounded.

    Args: as `rmsnorm`, and residual: (T, N) of x's dtype.

    Returns:
      (norm (T, N), sum (T, N)), both of x's dtype.
    """
    _check("rmsnorm_residual", x, weight, offset)
    check_shape("rmsnorm_residual", "residual", residual, (x.shape[0], weight.shape[0]))
    check_dtype("rmsnorm_residual", "residual", residual, (jnp.dtype(x.dtype).name,))
    y, total = RMSNORM_RESIDUAL(x, residual, weight, kernels=kernels, eps=float(eps), offset=int(offset))
    return y, total


def normalise(values: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """The formula itself over the last axis, float32 in and out."""
    mean_square = jnp.mean(values * values, axis=-1, keepdims=True)
    scaled = values * jax.lax.rsqrt(mean_square + np.float32(eps))
    return scaled * jnp.expand_dims(weight.astype(jnp.float32), tuple(range(values.ndim - 1)))


def _check(op: str, x: jax.Array, weight: jax.Array, offset: int) -> None:
    check_shape(op, "x", x, ("T", "W"))
    check_dtype(op, "x", x, COMPUTE_DTYPES)
    check_shape(op, "weight", weight, ("N",))
    check_dtype(op, "weight", weight, COMPUTE_DTYPES)
    check_range(op, "offset", offset, weight.shape[0], x.shape[1], "x's columns")


def _reference(x: jax.Array, weight: jax.Array, *, eps: float, offset: int) -> Arrays:
    values = x[:, offset : offset + weight.shape[0]].astype(jnp.float32)
    return (normalise(values, weight, eps).astype(x.dtype),)


def _reference_residual(
    x: jax.Array, residual: jax.Array, weight: jax.Array, *, eps: float, offset: int
) -> Arrays:
    values = x[:, offset : offset + weight.shape[0]].astype(jnp.float32) + residual.astype(jnp.float32)
    return normalise(values, weight, eps).astype(x.dtype), values.astype(x.dtype)


def _abstract(x: jax.Array, *rest: jax.Array, eps: float, offset: int) -> list[jax.ShapeDtypeStruct]:
    del eps, offset
    out = jax.ShapeDtypeStruct((x.shape[0], rest[-1].shape[0]), x.dtype)
    return [out] * len(rest)


def _native(x: jax.Array, *rest: jax.Array, eps: float, offset: int) -> Arrays:
    if x.shape[0] > MAX_NATIVE_ROWS:
        reference = _reference if len(rest) == 1 else _reference_residual
        return reference(x, *rest, eps=eps, offset=offset)
    return _call(x, *rest, eps=eps, offset=offset)


def _call(x: jax.Array, *rest: jax.Array, eps: float, offset: int) -> Arrays:
    outs = _abstract(x, *rest, eps=eps, offset=offset)
    target = TARGET if len(outs) == 1 else TARGET_RESIDUAL
    return tuple(jax.ffi.ffi_call(target, outs)(x, *rest, offset=np.int64(offset), eps=np.float32(eps)))


RMSNORM: Op = Op(
    "mla_jax.rmsnorm",
    targets=(TARGET,),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    batch=lambda arrays, batched, static: map_rows(RMSNORM, arrays, batched, static),
    native_note=_NOTE,
    gpu=Native((TARGET,), _call),
)

RMSNORM_RESIDUAL: Op = Op(
    "mla_jax.rmsnorm_residual",
    targets=(TARGET_RESIDUAL,),
    abstract=_abstract,
    reference=_reference_residual,
    native=_native,
    batch=lambda arrays, batched, static: map_rows(RMSNORM_RESIDUAL, arrays, batched, static),
    native_note=_NOTE,
    gpu=Native((TARGET_RESIDUAL,), _call),
)
