"""`linear_mxfp4`: rows in MXFP4 times a weight in MXFP4."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from custom_calls import linear_quantized
from custom_calls.checks import COMPUTE_DTYPES, check_dtype, check_shape
from custom_calls.element_formats import MXFP4_GROUP
from custom_calls.errors import LayoutError
from custom_calls.op import Arrays, Native, Op, map_rows
from custom_calls.quantized_tensor import QuantizedTensor, check_weight, dequantize
from custom_calls.registry import Kernels

TARGET = "mla_jax.linear_mxfp4.v1"


def linear_mxfp4(
    x: QuantizedTensor,
    weight: QuantizedTensor,
    bias: jax.Array | None = None,
    *,
    out_dtype: str = "bfloat16",
    kernels: Kernels = "auto",
) -> jax.Array:
    """y[m,n] = sum_k x[m,k] * weight[n,k] (+ bias[n]) of values that both are stored as codes.

    What `linear` does with `activations="mxfp4"` after it has quantised its rows; for rows that are codes already,
    from `rmsnorm_quantize` or `flatten_quantize`. gfx950 multiplies the codes as they are; elsewhere they are
    decoded to bfloat16 on the way, which holds all of their values.

    Args:
      x: "mxfp4" (M, K), scales row-major or column-major; M may be 0.
      weight: "mxfp4" (N, K), row-major scales; K is a multiple of 32.
      bias: (N,) float32 or bfloat16, or None.
      out_dtype: "float32" or "bfloat16".
      kernels: see `custom_calls.registry.choose`.

    Returns:
      (M, N) of `out_dtype`, accumulated in float32, rounded once.

    Raises:
      ShapeError, LayoutError: naming argument, expected and got.
    """
    for name, tensor in (("x", x), ("weight", weight)):
        container = tensor.container if isinstance(tensor, QuantizedTensor) else type(tensor).__name__
        if container != "mxfp4":
            raise LayoutError(f"linear_mxfp4: argument '{name}': expected an MXFP4 tensor, got {container}")
    check_shape("linear_mxfp4", "x", x, ("M", "K"))
    check_shape("linear_mxfp4", "weight", weight, ("N", x.shape[1]))
    check_weight("linear_mxfp4", "weight", weight)
    check_dtype("linear_mxfp4", "out_dtype", jax.ShapeDtypeStruct((), out_dtype), COMPUTE_DTYPES)
    x_scale = x.scale if x.scale_layout == "row_major" else jnp.swapaxes(x.scale, 0, 1)
    arrays = (x.data, x_scale, weight.data, weight.scale)
    if bias is None:
        return LINEAR_MXFP4(*arrays, kernels=kernels, out_dtype=out_dtype)[0]
    check_shape("linear_mxfp4", "bias", bias, (weight.shape[0],))
    check_dtype("linear_mxfp4", "bias", bias, COMPUTE_DTYPES)
    y = LINEAR_MXFP4(*arrays, kernels=kernels, out_dtype="float32")[0]
    return (y + bias.astype(jnp.float32)[None, :]).astype(out_dtype)


_WEIGHT: dict[str, Any] = {"container": "mxfp4", "block": (1, MXFP4_GROUP)}


def _abstract(
    x: jax.Array, x_scale: jax.Array, data: jax.Array, *_: jax.Array, out_dtype: str
) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((x.shape[0], data.shape[0]), out_dtype)]


def _reference(
    x: jax.Array, x_scale: jax.Array, data: jax.Array, scale: jax.Array, *, out_dtype: str
) -> Arrays:
    rows, weight = (dequantize(QuantizedTensor(*each, "mxfp4")) for each in ((x, x_scale), (data, scale)))
    y = jax.lax.dot_general(rows, weight, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST)
    return (y.astype(out_dtype),)


def _native(x: jax.Array, x_scale: jax.Array, data: jax.Array, scale: jax.Array, *, out_dtype: str) -> Arrays:
    """The kernel of plain rows: bfloat16 holds every value of MXFP4."""
    rows = dequantize(QuantizedTensor(x, x_scale, "mxfp4"), "bfloat16")
    (call,) = linear_quantized.LINEAR_QUANTIZED.natives.values()
    return call(rows, data, scale, out_dtype=out_dtype, **_WEIGHT)


def _native_gpu(
    x: jax.Array, x_scale: jax.Array, data: jax.Array, scale: jax.Array, *, out_dtype: str
) -> Arrays:
    result = jax.ShapeDtypeStruct((x.shape[0], data.shape[0]), out_dtype)
    return (jax.ffi.ffi_call(TARGET, result)(x, x_scale, data, scale),)


def _batch(arrays: Arrays, batched: Sequence[bool], static: dict[str, Any]) -> Arrays:
    return map_rows(LINEAR_MXFP4, arrays, batched, static)


LINEAR_MXFP4: Op = Op(
    "mla_jax.linear_mxfp4",
    targets=(linear_quantized.TARGET,),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    native_note="rows are decoded to bfloat16, which holds all of their values",
    gpu=Native((TARGET,), _native_gpu),
    batch=_batch,
    not_differentiable="its operands are codes",
)
