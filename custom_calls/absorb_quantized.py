"""`absorb_quantized`: `absorb` over a quantised kv_b_proj, in the checkpoint's own bytes.

The weight stays two-dimensional, (heads * rows, kv_lora_rank): blocks of scales may span heads.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.absorb_contract import CONTRACT_CODES, Contract, per_head_product
from custom_calls.op import Arrays, Op, map_rows
from custom_calls.quantized_tensor import Container, QuantizedTensor, dequantize, native_attributes

TARGET = "mla_jax.absorb_quantized.v2"


def _abstract(
    x: jax.Array,
    data: jax.Array,
    scale: jax.Array,
    *,
    contract: Contract,
    rows: int,
    container: Container,
    block: tuple[int, int],
    **_: Any,
) -> list[jax.ShapeDtypeStruct]:
    width = QuantizedTensor(data, scale, container, block).shape[1] if contract == "rows" else rows
    return [jax.ShapeDtypeStruct((*x.shape[:2], width), x.dtype)]


def _reference(
    x: jax.Array,
    data: jax.Array,
    scale: jax.Array,
    *,
    container: Container,
    block: tuple[int, int],
    **static: Any,
) -> Arrays:
    values = dequantize(QuantizedTensor(data, scale, container, block))
    weight = values.reshape(x.shape[1], values.shape[0] // x.shape[1], values.shape[1])
    return (per_head_product(x.astype(jnp.float32), weight, **static)[0].astype(x.dtype),)


def _native(
    x: jax.Array,
    data: jax.Array,
    scale: jax.Array,
    *,
    contract: Contract,
    row_offset: int,
    rows: int,
    x_offset: int,
    container: Container,
    block: tuple[int, int],
) -> Arrays:
    result = _abstract(x, data, scale, contract=contract, rows=rows, container=container, block=block)[0]
    y = jax.ffi.ffi_call(TARGET, result)(
        x,
        data,
        scale,
        x_offset=np.int64(x_offset),
        row_offset=np.int64(row_offset),
        rows_used=np.int64(rows),
        contract=np.int64(CONTRACT_CODES[contract]),
        **native_attributes(data, container, block),
    )
    return (y,)


ABSORB_QUANTIZED: Op = Op(
    "mla_jax.absorb_quantized",
    targets=(TARGET,),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    batch=lambda arrays, batched, static: map_rows(ABSORB_QUANTIZED, arrays, batched, static),
)
