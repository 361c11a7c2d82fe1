"""`flatten_quantize`: a token's heads side by side, quantised for a quantised projection behind attention."""

import jax

from custom_calls.checks import COMPUTE_DTYPES, check_dtype, check_shape
from custom_calls.element_formats import MXFP4_GROUP, Rounding
from custom_calls.errors import ShapeError
from custom_calls.group_quantize import Format, GroupQuantizer, float32_bits
from custom_calls.op import Arrays, Op, map_rows
from custom_calls.quantized_tensor import QuantizedTensor, ScaleLayout
from custom_calls.registry import Kernels

TARGET = "mla_jax.flatten_quantize.v1"


def flatten_quantize(
    x: jax.Array,
    *,
    format: Format,
    group_size: int,
    scale_layout: ScaleLayout,
    rounding: Rounding | None = None,
    kernels: Kernels = "auto",
) -> QuantizedTensor:
    """Quantises (T, H, D) as rows of H * D values, in groups along the flattened axis.

    `custom_calls.group_quantize` states the arithmetic and what becomes of NaN, infinities, zeros and
    subnormal numbers.

    Args:
      x: (T, H, D) float32 or bfloat16, token-major as attention writes it; T may be 0. With mxfp4 D must be
        a multiple of 32, so that no group crosses a head; with fp8 groups may cross heads.
      format: "mxfp4" (OCP e2m1 with e8m0 scales) or "fp8" (OCP e4m3fn with float32 scales; gfx942's
        e4m3fnuz is not offered).
      group_size: values that share a scale: 32 with mxfp4, any positive number with fp8 (AMD's runtimes take
        128). A last group that is not whole has a scale of its own, as if filled up with zeros.
      scale_layout: "row_major": scale (T, G); "column_major": the transposed array (G, T).
      rounding: with mxfp4 the rule of the scales, "floor", "even" (which None stands for), "ceil" or "rceil";
        with fp8 None.
      kernels: see `custom_calls.registry.choose`.

    Returns:
      `QuantizedTensor` of values (T, H * D), container "mxfp4", or "fp8_block" with block (1, group_size).
      Bit-exact: native and reference agree in every byte, but for FP8 codes of the reference on a GPU: XLA divides
      there to within one unit in the last place, and a value on the border of two codes may become the other.

    Raises:
      ShapeError: naming argument, expected and got.
    """
    op = "flatten_quantize"
    check_shape(op, "x", x, ("T", "H", "D"))
    check_dtype(op, "x", x, COMPUTE_DTYPES)
    quantizer = GroupQuantizer.checked(op, format, group_size, scale_layout, rounding)
    if not x.shape[1] * x.shape[2]:
        raise ShapeError(f"{op}: argument 'x': expected shape (T, H, D) with H and D positive, got {x.shape}")
    if format == "mxfp4" and x.shape[2] % MXFP4_GROUP:
        raise ShapeError(
            f"{op}: argument 'x': expected D to be a multiple of {MXFP4_GROUP} with format 'mxfp4', "
            f"got {x.shape[2]}"
        )
    return quantizer.tensor(*FLATTEN_QUANTIZE(x, kernels=kernels, quantizer=quantizer))


def _abstract(x: jax.Array, *, quantizer: GroupQuantizer) -> list[jax.ShapeDtypeStruct]:
    return quantizer.abstract(x.shape[0], x.shape[1] * x.shape[2])


def _reference(x: jax.Array, *, quantizer: GroupQuantizer) -> Arrays:
    return quantizer.reference(float32_bits(x.reshape(x.shape[0], x.shape[1] * x.shape[2])))


def _native(x: jax.Array, *, quantizer: GroupQuantizer) -> Arrays:
    outs = _abstract(x, quantizer=quantizer)
    return tuple(jax.ffi.ffi_call(TARGET, outs)(x, **quantizer.attributes()))


FLATTEN_QUANTIZE: Op = Op(
    "mla_jax.flatten_quantize",
    targets=(TARGET,),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    batch=lambda arrays, batched, static: map_rows(FLATTEN_QUANTIZE, arrays, batched, static),
    not_differentiable="its rounding to codes has no useful derivative",
)
