"""`linear_shuffled`: x (M,K) times a shuffled MXFP4 weight (N,K); what `linear` calls for data_layout "shuffled"."""

from typing import Any

import jax
import jax.numpy as jnp

from custom_calls import linear_quantized
from custom_calls.element_formats import MXFP4_GROUP
from custom_calls.op import Arrays, Native, Op, join_rows
from custom_calls.quantized_tensor import TILE_ROWS, QuantizedTensor, in_rows

TARGET = "mla_jax.linear_shuffled.v1"
TARGET_BIAS = "mla_jax.linear_shuffled_bias.v1"
TARGET_DEQUANTIZE = "mla_jax.shuffled_dequantize.v1"

MAX_GPU_ROWS = 128
"""With more bfloat16 rows than this the weight goes through one decoded copy to XLA's own dot."""

MAX_FEW_ROWS = 8
"""Up to this many rows the kernels need no scratch."""

_LAYOUT: dict[str, Any] = {"container": "mxfp4", "block": (1, MXFP4_GROUP)}


def _weight(data: jax.Array, scale: jax.Array, outputs: int) -> QuantizedTensor:
    padding = data.shape[0] * TILE_ROWS - outputs
    return QuantizedTensor(data, scale, "mxfp4", data_layout="shuffled", padding_rows=padding)


def _abstract(
    x: jax.Array, *_: jax.Array, out_dtype: str, outputs: int, **__: Any
) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((x.shape[0], outputs), out_dtype)]


def _reference(
    x: jax.Array, data: jax.Array, scale: jax.Array, *bias: jax.Array, out_dtype: str, outputs: int
) -> Arrays:
    weight = in_rows(_weight(data, scale, outputs))
    reference = linear_quantized.LINEAR_QUANTIZED.reference
    return reference(x, weight.data, weight.scale, *bias, out_dtype=out_dtype, **_LAYOUT)


def _native(
    x: jax.Array, data: jax.Array, scale: jax.Array, *bias: jax.Array, out_dtype: str, outputs: int
) -> Arrays:
    """The kernels of row-major weights: the CPU's, and a GPU's for float32 rows."""
    weight = in_rows(_weight(data, scale, outputs))
    (call,) = linear_quantized.LINEAR_QUANTIZED.natives.values()
    return call(x, weight.data, weight.scale, *bias, out_dtype=out_dtype, **_LAYOUT)


def _native_gpu(
    x: jax.Array, data: jax.Array, scale: jax.Array, *bias: jax.Array, out_dtype: str, outputs: int
) -> Arrays:
    rows = x.shape[0]
    if x.dtype != jnp.bfloat16:
        return _native(x, data, scale, *bias, out_dtype=out_dtype, outputs=outputs)
    if rows <= MAX_GPU_ROWS:
        result = jax.ShapeDtypeStruct((rows, outputs), out_dtype)
        scratch = jax.ShapeDtypeStruct((_arranged_bytes(rows, data.shape[1]),), jnp.uint8)
        call = jax.ffi.ffi_call(TARGET_BIAS if bias else TARGET, (result, scratch))
        return (call(x, data, scale, *bias)[0],)
    values = jax.ShapeDtypeStruct((outputs, x.shape[1]), jnp.bfloat16)
    weight = jax.ffi.ffi_call(TARGET_DEQUANTIZE, values)(data, scale)
    y = jax.lax.dot_general(x, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    if bias:
        y = y + bias[0].astype(jnp.float32)[None, :]
    return (y.astype(out_dtype),)


def _arranged_bytes(rows: int, groups: int) -> int:
    """What the kernels for many rows need to put x into an order: pairs of steps of 128 values, 2 bytes each."""
    if rows <= MAX_FEW_ROWS:
        return 0
    taken = 32 if rows <= 32 else 64 if rows <= 64 else MAX_GPU_ROWS
    return -(-groups // 8) * 512 * taken


LINEAR_SHUFFLED: Op = Op(
    "mla_jax.linear_shuffled",
    targets=(linear_quantized.TARGET, linear_quantized.TARGET_BIAS),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    native_note="weights are brought into rows at every call: hold them row_major here",
    gpu=Native(
        (TARGET, TARGET_BIAS, TARGET_DEQUANTIZE, linear_quantized.TARGET, linear_quantized.TARGET_BIAS),
        _native_gpu,
        f"more than {MAX_GPU_ROWS} rows go to XLA's own dot; for float32 rows weights are brought into rows at every "
        "call",
    ),
    batch=lambda arrays, batched, static: join_rows(LINEAR_SHUFFLED, arrays, batched, static),
)
