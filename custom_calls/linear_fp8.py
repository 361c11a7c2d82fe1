"""`linear_fp8`: rows in FP8 groups times a weight in FP8 blocks."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from custom_calls import linear_quantized
from custom_calls.checks import COMPUTE_DTYPES, check_dtype, check_shape
from custom_calls.errors import LayoutError
from custom_calls.op import Arrays, Native, Op, map_rows
from custom_calls.quantized_tensor import QuantizedTensor, check_weight, dequantize, native_attributes
from custom_calls.registry import Kernels

TARGET = "mla_jax.linear_fp8.v1"

GROUP = 128
"""Columns that share a scale, of rows and of weights."""

ALIGNED_CODES = 16
"""On GPUs, rows of a multiple of this many codes are multiplied as codes; others are decoded first."""


def linear_fp8(
    x: QuantizedTensor,
    weight: QuantizedTensor,
    bias: jax.Array | None = None,
    *,
    out_dtype: str = "bfloat16",
    kernels: Kernels = "auto",
) -> jax.Array:
    """y[m,n] = sum_g x_scale[m,g] * w_scale[n//b,g] * (sum_{k in g} x_code[m,k] * w_code[n,k]) (+ bias[n]).

    g are groups of 128 columns, the last of which may be ragged. What `linear` does with `activations="fp8"` after it
    has quantised its rows, and what DeepSeek's own inference and AITER's gemm_a8w8_blockscale compute; for rows that
    are codes already, from `rmsnorm_quantize` or `flatten_quantize`. AMD's matrix cores multiply codes: gfx950's where
    both are e4m3fn, gfx942's all, of which e4m3fn ones become e4m3fnuz on the way. Elsewhere both are decoded.

    On GPUs the two scales meet each other before they meet a group's sum: where their product is beyond float32 the
    result is infinite, zero or NaN. There the order of sums differs between up to 16 rows and more.

    Args:
      x: "fp8_block" (M, K) in blocks of (1, 128), scales row-major or column-major; M may be 0.
      weight: "fp8_block" (N, K) in blocks of (b, 128), any b, row-major scales. The codes of x and of weight may each
        be e4m3fn or e4m3fnuz: the dtype says which.
      bias: (N,) float32 or bfloat16, or None.
      out_dtype: "float32" or "bfloat16".
      kernels: see `custom_calls.registry.choose`.

    Returns:
      (M, N) of `out_dtype`, accumulated in float32, rounded once.

    Raises:
      ShapeError, LayoutError: naming argument, expected and got.
    """
    _check_blocks("x", x, 1)
    _check_blocks("weight", weight, None)
    check_shape("linear_fp8", "x", x, ("M", "K"))
    check_shape("linear_fp8", "weight", weight, ("N", x.shape[1]))
    check_weight("linear_fp8", "weight", weight)
    check_dtype("linear_fp8", "out_dtype", jax.ShapeDtypeStruct((), out_dtype), COMPUTE_DTYPES)
    x_scale = x.scale if x.scale_layout == "row_major" else jnp.swapaxes(x.scale, 0, 1)
    arrays = (x.data, x_scale, weight.data, weight.scale)
    if bias is None:
        return LINEAR_FP8(*arrays, kernels=kernels, out_dtype=out_dtype, block=weight.block)[0]
    check_shape("linear_fp8", "bias", bias, (weight.shape[0],))
    check_dtype("linear_fp8", "bias", bias, COMPUTE_DTYPES)
    y = LINEAR_FP8(*arrays, kernels=kernels, out_dtype="float32", block=weight.block)[0]
    return (y + bias.astype(jnp.float32)[None, :]).astype(out_dtype)


def _check_blocks(name: str, tensor: QuantizedTensor, rows: int | None) -> None:
    """`rows`: how many of them share a scale; None is any number."""
    container = tensor.container if isinstance(tensor, QuantizedTensor) else type(tensor).__name__
    if container != "fp8_block":
        raise LayoutError(f"linear_fp8: argument '{name}': expected an fp8_block tensor, got {container}")
    if tensor.block != (rows or tensor.block[0], GROUP):
        raise LayoutError(
            f"linear_fp8: argument '{name}': expected blocks of ({rows or 'b'}, {GROUP}), got {tensor.block}"
        )


def _abstract(
    x: jax.Array, x_scale: jax.Array, data: jax.Array, *_: jax.Array, out_dtype: str, block: tuple[int, int]
) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((x.shape[0], data.shape[0]), out_dtype)]


def _rows(x: jax.Array, x_scale: jax.Array) -> jax.Array:
    return dequantize(QuantizedTensor(x, x_scale, "fp8_block", (1, GROUP)))


def _reference(
    x: jax.Array,
    x_scale: jax.Array,
    data: jax.Array,
    scale: jax.Array,
    *,
    out_dtype: str,
    block: tuple[int, int],
) -> Arrays:
    weight = dequantize(QuantizedTensor(data, scale, "fp8_block", block))
    y = jax.lax.dot_general(
        _rows(x, x_scale), weight, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST
    )
    return (y.astype(out_dtype),)


def _native(
    x: jax.Array,
    x_scale: jax.Array,
    data: jax.Array,
    scale: jax.Array,
    *,
    out_dtype: str,
    block: tuple[int, int],
) -> Arrays:
    """The kernel of plain rows, in float32: bfloat16 does not hold a code times its scale."""
    (call,) = linear_quantized.LINEAR_QUANTIZED.natives.values()
    (y,) = call(_rows(x, x_scale), data, scale, out_dtype="float32", container="fp8_block", block=block)
    return (y.astype(out_dtype),)


def _native_gpu(
    x: jax.Array,
    x_scale: jax.Array,
    data: jax.Array,
    scale: jax.Array,
    *,
    out_dtype: str,
    block: tuple[int, int],
) -> Arrays:
    if x.shape[1] % ALIGNED_CODES:
        return _native(x, x_scale, data, scale, out_dtype=out_dtype, block=block)
    result = jax.ShapeDtypeStruct((x.shape[0], data.shape[0]), out_dtype)
    attributes = native_attributes(x, "fp8_block", (1, GROUP), prefix="x_")
    attributes |= native_attributes(data, "fp8_block", block)
    return (jax.ffi.ffi_call(TARGET, result)(x, x_scale, data, scale, **attributes),)


def _batch(arrays: Arrays, batched: Sequence[bool], static: dict[str, Any]) -> Arrays:
    return map_rows(LINEAR_FP8, arrays, batched, static)


LINEAR_FP8: Op = Op(
    "mla_jax.linear_fp8",
    targets=(linear_quantized.TARGET,),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    native_note="rows are decoded to float32",
    gpu=Native(
        (TARGET, linear_quantized.TARGET),
        _native_gpu,
        f"rows of no multiple of {ALIGNED_CODES} codes are decoded to float32 first",
    ),
    batch=_batch,
    not_differentiable="its operands are codes",
)
