"""`linear_quantized`: x (M,K) times a quantised weight (N,K); what `linear` calls for a `QuantizedTensor`."""

from typing import Any

import jax
import jax.numpy as jnp

from custom_calls.op import Arrays, Native, Op, join_rows
from custom_calls.quantized_tensor import Container, QuantizedTensor, dequantize, native_attributes

TARGET = "mla_jax.linear_quantized.v2"
TARGET_BIAS = "mla_jax.linear_quantized_bias.v2"
TARGET_DEQUANTIZE = "mla_jax.mxfp4_dequantize.v1"

MAX_GPU_ROWS = 96
"""On GPUs, with more bfloat16 rows than this, weights that bfloat16 holds exactly go through XLA's own dot."""

MAX_MXFP4_GPU_ROWS = 128
"""The same for MXFP4, whose one decoded copy costs more."""


def _abstract(
    x: jax.Array, data: jax.Array, *_: jax.Array, out_dtype: str, **__: Any
) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((x.shape[0], data.shape[0]), out_dtype)]


def _reference(
    x: jax.Array,
    data: jax.Array,
    scale: jax.Array,
    *bias: jax.Array,
    out_dtype: str,
    container: Container,
    block: tuple[int, int],
) -> Arrays:
    y = jax.lax.dot_general(
        x.astype(jnp.float32),
        dequantize(QuantizedTensor(data, scale, container, block)),
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
    )
    if bias:
        y = y + bias[0].astype(jnp.float32)[None, :]
    return (y.astype(out_dtype),)


def _native(
    x: jax.Array,
    data: jax.Array,
    scale: jax.Array,
    *bias: jax.Array,
    out_dtype: str,
    container: Container,
    block: tuple[int, int],
) -> Arrays:
    result = jax.ShapeDtypeStruct((x.shape[0], data.shape[0]), out_dtype)
    call = jax.ffi.ffi_call(TARGET_BIAS if bias else TARGET, result)
    return (call(x, data, scale, *bias, **native_attributes(data, container, block)),)


def native_gpu(
    x: jax.Array,
    data: jax.Array,
    scale: jax.Array,
    *bias: jax.Array,
    out_dtype: str,
    container: Container,
    block: tuple[int, int],
) -> Arrays:
    """The op's native form on GPUs."""
    exact = container in ("mxfp4", "fp8_channel", "fp8_tensor")
    most = MAX_MXFP4_GPU_ROWS if container == "mxfp4" else MAX_GPU_ROWS
    if x.dtype != jnp.bfloat16 or x.shape[0] <= most or not exact:
        return _native(x, data, scale, *bias, out_dtype=out_dtype, container=container, block=block)
    if container == "mxfp4":
        values = jax.ShapeDtypeStruct((data.shape[0], x.shape[1]), jnp.bfloat16)
        weight = jax.ffi.ffi_call(TARGET_DEQUANTIZE, values)(data, scale)
    else:
        weight = data.astype(jnp.bfloat16)
    y = jax.lax.dot_general(x, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    if container != "mxfp4":
        y = y * jnp.broadcast_to(scale, (data.shape[0],))[None, :]
    if bias:
        y = y + bias[0].astype(jnp.float32)[None, :]
    return (y.astype(out_dtype),)


LINEAR_QUANTIZED: Op = Op(
    "mla_jax.linear_quantized",
    targets=(TARGET, TARGET_BIAS),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    gpu=Native(
        (TARGET, TARGET_BIAS, TARGET_DEQUANTIZE),
        native_gpu,
        f"more than {MAX_GPU_ROWS} rows ({MAX_MXFP4_GPU_ROWS} of MXFP4) go to XLA's own dot, "
        "for exact weights",
    ),
    batch=lambda arrays, batched, static: join_rows(LINEAR_QUANTIZED, arrays, batched, static),
)
