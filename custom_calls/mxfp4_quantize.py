"""`mxfp4_quantize`: float rows to MXFP4 (e2m1 codes, one e8m0 scale a group of 32)."""

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.checks import COMPUTE_DTYPES, check_choice, check_dtype
from custom_calls.element_formats import MXFP4_GROUP, ROUNDINGS, Rounding
from custom_calls.errors import ShapeError
from custom_calls.group_quantize import float32_bits, mxfp4_groups
from custom_calls.op import Arrays, Op, map_rows
from custom_calls.quantized_tensor import QuantizedTensor
from custom_calls.registry import Kernels

TARGET = "mla_jax.mxfp4_quantize.v1"


def mxfp4_quantize(
    x: jax.Array, *, rounding: Rounding = "even", kernels: Kernels = "auto"
) -> QuantizedTensor:
    """Quantises groups of 32 along the last axis.

    The group's scale follows from its largest magnitude by `rounding` (see `element_formats.Rounding`),
    clamped to [2^-127, 2^127]; elements are rounded to nearest, ties to the even code, and saturate at +-6.
    A group of zeros gets byte 0. An infinity counts as 2^128 in the choice of the scale (one step more for
    rceil) and becomes +-6 times it, which is an infinity again; the numbers beside it lose precision.
    A group with a NaN gets byte 255 (NaN) and codes 0.

    Args:
      x: (..., K) float32 or bfloat16, K even; a last group shorter than 32 is filled up with zeros.
      rounding: "floor", "even", "ceil" or "rceil".
      kernels: see `custom_calls.registry.choose`.

    Returns:
      `QuantizedTensor` "mxfp4" with data (..., K/2) and scale (..., ceil(K/32)), both uint8. Bit-exact:
      native and reference agree in every byte.

    Raises:
      ShapeError: naming argument, expected and got.
    """
    op = "mxfp4_quantize"
    check_dtype(op, "x", x, COMPUTE_DTYPES)
    check_choice(op, "rounding", rounding, ROUNDINGS)
    if x.ndim < 1 or x.shape[-1] % 2 or not x.shape[-1]:
        raise ShapeError(
            f"{op}: argument 'x': expected shape (..., K) with K even and positive, got {x.shape}"
        )
    data, scale = MXFP4_QUANTIZE(x, kernels=kernels, rounding=rounding)
    return QuantizedTensor(data, scale, "mxfp4", rounding=rounding)


def _abstract(x: jax.Array, *, rounding: Rounding) -> list[jax.ShapeDtypeStruct]:
    del rounding
    groups = -(-x.shape[-1] // MXFP4_GROUP)
    return [
        jax.ShapeDtypeStruct((*x.shape[:-1], x.shape[-1] // 2), jnp.uint8),
        jax.ShapeDtypeStruct((*x.shape[:-1], groups), jnp.uint8),
    ]


def _reference(x: jax.Array, *, rounding: Rounding) -> Arrays:
    return mxfp4_groups(float32_bits(x), rounding)


def _native(x: jax.Array, *, rounding: Rounding) -> Arrays:
    outs = _abstract(x, rounding=rounding)
    return tuple(jax.ffi.ffi_call(TARGET, outs)(x, rounding=np.int64(ROUNDINGS.index(rounding))))


MXFP4_QUANTIZE: Op = Op(
    "mla_jax.mxfp4_quantize",
    targets=(TARGET,),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    batch=lambda arrays, batched, static: map_rows(MXFP4_QUANTIZE, arrays, batched, static),
    not_differentiable="its rounding to codes has no useful derivative",
)
