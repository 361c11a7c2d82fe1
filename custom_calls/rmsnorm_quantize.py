"""`rmsnorm_quantize`: root-mean-square norm whose float32 result is quantised before anything is rounded."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.checks import COMPUTE_DTYPES, check_dtype, check_range, check_shape
from custom_calls.element_formats import Rounding
from custom_calls.errors import ShapeError
from custom_calls.group_quantize import Format, GroupQuantizer, float32_bits
from custom_calls.op import Arrays, Op, map_rows
from custom_calls.quantized_tensor import QuantizedTensor, ScaleLayout
from custom_calls.registry import Kernels
from custom_calls.rmsnorm import normalise

TARGET = "mla_jax.rmsnorm_quantize.v1"


class RmsNormQuantized(NamedTuple):
    """Results of `rmsnorm_quantize`.

    Attributes:
      quantized: the normed rows (T, N), quantised.
      unquantized: (T, N) of x's dtype, the same rows rounded once; None unless asked for.
      residual_sum: (T, N) of x's dtype, what was normed, rounded once; None without a residual.
    """

    quantized: QuantizedTensor
    unquantized: jax.Array | None
    residual_sum: jax.Array | None


def rmsnorm_quantize(
    x: jax.Array,
    weight: jax.Array,
    residual: jax.Array | None = None,
    *,
    eps: float,
    format: Format,
    group_size: int,
    scale_layout: ScaleLayout,
    rounding: Rounding | None = None,
    offset: int = 0,
    weight_offset: float = 0.0,
    return_unquantized: bool = False,
    kernels: Kernels = "auto",
) -> RmsNormQuantized:
    """Quantises y = v / sqrt(mean(v^2) + eps) * (weight + weight_offset), v = x[:, offset : offset + N] + residual.

    y is float32 and quantised as it is, without a rounding to x's dtype in between, and v is the unrounded
    sum (AITER's fused_rms_fp8_group_quant and fused_rms_mxfp4_quant). `custom_calls.group_quantize` states
    how a row is quantised and what becomes of NaN, infinities, zeros and subnormal numbers.

    The bytes follow exactly from y: of two calls with the same y, native or reference, every byte is the
    same, and with float32 x the native bytes are those of quantising the native `unquantized`. y itself
    carries the float32 rounding of the norm, and the mean of squares is summed in another order by the
    kernel than by XLA, so that between the two a scale may differ in its last bits and a value near a
    rounding boundary may get the neighbouring code.

    Args:
      x: (T, W) float32 or bfloat16; a whole projection, so that no slice has to be copied. T may be 0.
      weight: (N,) float32 or bfloat16.
      residual: (T, N) of x's dtype, or None.
      eps: added to the mean of squares.
      format, group_size, scale_layout, rounding: as in `flatten_quantize`, over the N columns; with mxfp4
        N must be even.
      offset: first column of the normed range.
      weight_offset: added to the weight in float32: 1.0 for Gemma's weights.
      return_unquantized: also return y rounded to x's dtype.
      kernels: see `custom_calls.registry.choose`.

    Returns:
      `RmsNormQuantized`.

    Raises:
      ShapeError: naming argument, expected and got.
    """
    op = "rmsnorm_quantize"
    check_shape(op, "x", x, ("T", "W"))
    check_dtype(op, "x", x, COMPUTE_DTYPES)
    check_shape(op, "weight", weight, ("N",))
    check_dtype(op, "weight", weight, COMPUTE_DTYPES)
    width = weight.shape[0]
    check_range(op, "offset", offset, width, x.shape[1], "x's columns")
    quantizer = GroupQuantizer.checked(op, format, group_size, scale_layout, rounding)
    if format == "mxfp4" and width % 2:
        raise ShapeError(
            f"{op}: argument 'weight': expected an even number of values with format 'mxfp4', got {width}"
        )
    if not abs(weight_offset) <= float(np.finfo(np.float32).max):
        raise ShapeError(f"{op}: argument 'weight_offset': expected a finite float32, got {weight_offset}")
    arrays: Arrays = (x, weight)
    if residual is not None:
        check_shape(op, "residual", residual, (x.shape[0], width))
        check_dtype(op, "residual", residual, (jnp.dtype(x.dtype).name,))
        arrays += (residual,)
    data, scale, *rest = RMSNORM_QUANTIZE(
        *arrays,
        kernels=kernels,
        eps=float(eps),
        offset=int(offset),
        weight_offset=float(weight_offset),
        unquantized=bool(return_unquantized),
        quantizer=quantizer,
    )
    return RmsNormQuantized(
        quantizer.tensor(data, scale),
        rest[0] if return_unquantized else None,
        rest[-1] if residual is not None else None,
    )


def _abstract(
    x: jax.Array,
    weight: jax.Array,
    *residual: jax.Array,
    eps: float,
    offset: int,
    weight_offset: float,
    unquantized: bool,
    quantizer: GroupQuantizer,
) -> list[jax.ShapeDtypeStruct]:
    del eps, offset, weight_offset
    shape = (x.shape[0], weight.shape[0])
    rows = jax.ShapeDtypeStruct(shape, x.dtype)
    return quantizer.abstract(*shape) + [rows] * (unquantized + len(residual))


def _reference(
    x: jax.Array,
    weight: jax.Array,
    *residual: jax.Array,
    eps: float,
    offset: int,
    weight_offset: float,
    unquantized: bool,
    quantizer: GroupQuantizer,
) -> Arrays:
    values = x[:, offset : offset + weight.shape[0]].astype(jnp.float32)
    if residual:
        values = values + residual[0].astype(jnp.float32)
    rows = normalise(values, weight.astype(jnp.float32) + np.float32(weight_offset), eps)
    results = quantizer.reference(float32_bits(rows))
    if unquantized:
        results += (rows.astype(x.dtype),)
    if residual:
        results += (values.astype(x.dtype),)
    return results


def _native(
    x: jax.Array,
    weight: jax.Array,
    *residual: jax.Array,
    eps: float,
    offset: int,
    weight_offset: float,
    unquantized: bool,
    quantizer: GroupQuantizer,
) -> Arrays:
    outs = _abstract(
        x,
        weight,
        *residual,
        eps=eps,
        offset=offset,
        weight_offset=weight_offset,
        unquantized=unquantized,
        quantizer=quantizer,
    )
    call = jax.ffi.ffi_call(TARGET, outs)
    return tuple(
        call(
            x,
            weight,
            *residual,
            eps=np.float32(eps),
            offset=np.int64(offset),
            weight_offset=np.float32(weight_offset),
            unquantized=np.int64(unquantized),
            **quantizer.attributes(),
        )
    )


RMSNORM_QUANTIZE: Op = Op(
    "mla_jax.rmsnorm_quantize",
    targets=(TARGET,),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    batch=lambda arrays, batched, static: map_rows(RMSNORM_QUANTIZE, arrays, batched, static),
    not_differentiable="its rounding to codes has no useful derivative",
)
