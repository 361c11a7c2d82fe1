"""`linear_vnni`: x (M,K) times an MXFP4 weight (N,K) in the vnni layout; what `linear` calls for it."""

from typing import Any

import jax

from custom_calls import linear_quantized
from custom_calls.element_formats import MXFP4_GROUP
from custom_calls.op import Arrays, Native, Op, join_rows
from custom_calls.quantized_tensor import TILE_ROWS, QuantizedTensor, in_rows

TARGET = "mla_jax.linear_vnni.v1"
TARGET_BIAS = "mla_jax.linear_vnni_bias.v1"

_LAYOUT: dict[str, Any] = {"container": "mxfp4", "block": (1, MXFP4_GROUP)}


def _in_rows(data: jax.Array, scale: jax.Array, outputs: int) -> QuantizedTensor:
    padding = data.shape[0] * TILE_ROWS - outputs
    return in_rows(QuantizedTensor(data, scale, "mxfp4", data_layout="vnni", padding_rows=padding))


def _abstract(
    x: jax.Array, *_: jax.Array, out_dtype: str, outputs: int, **__: Any
) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((x.shape[0], outputs), out_dtype)]


def _reference(
    x: jax.Array, data: jax.Array, scale: jax.Array, *bias: jax.Array, out_dtype: str, outputs: int
) -> Arrays:
    weight = _in_rows(data, scale, outputs)
    reference = linear_quantized.LINEAR_QUANTIZED.reference
    return reference(x, weight.data, weight.scale, *bias, out_dtype=out_dtype, **_LAYOUT)


def _native(
    x: jax.Array, data: jax.Array, scale: jax.Array, *bias: jax.Array, out_dtype: str, outputs: int
) -> Arrays:
    result = jax.ShapeDtypeStruct((x.shape[0], outputs), out_dtype)
    return (jax.ffi.ffi_call(TARGET_BIAS if bias else TARGET, result)(x, data, scale, *bias),)


def _native_gpu(
    x: jax.Array, data: jax.Array, scale: jax.Array, *bias: jax.Array, out_dtype: str, outputs: int
) -> Arrays:
    weight = _in_rows(data, scale, outputs)
    call = linear_quantized.native_gpu
    return call(x, weight.data, weight.scale, *bias, out_dtype=out_dtype, **_LAYOUT)


LINEAR_VNNI: Op = Op(
    "mla_jax.linear_vnni",
    targets=(TARGET, TARGET_BIAS),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    gpu=Native(
        (linear_quantized.TARGET, linear_quantized.TARGET_BIAS, linear_quantized.TARGET_DEQUANTIZE),
        _native_gpu,
        "weights are brought into rows at every call: hold them row_major or shuffled here",
    ),
    batch=lambda arrays, batched, static: join_rows(LINEAR_VNNI, arrays, batched, static),
)
