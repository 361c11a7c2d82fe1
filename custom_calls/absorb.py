"""`absorb`: the per-head product that moves kv_b_proj from the cached side to the query and output side.

kv_b_proj stays one weight, viewed as (heads, rows, kv_lora_rank) with rows = qk_nope_head_dim key rows
followed by v_head_dim value rows. Both products read it whole, with a static row range, because a slice
in front of a custom call would be a copy; both write token-major (tokens, heads, dim), so that the
reshape in front of o_proj is free.
"""

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.absorb_contract import CONTRACT_CODES, Contract, per_head_product
from custom_calls.absorb_quantized import ABSORB_QUANTIZED
from custom_calls.checks import COMPUTE_DTYPES, check_choice, check_dtype, check_range, check_shape
from custom_calls.errors import ShapeError
from custom_calls.op import Arrays, Native, Op, map_rows
from custom_calls.quantized_tensor import QuantizedTensor, check_weight
from custom_calls.registry import Kernels

TARGET = "mla_jax.absorb.v1"


def absorb(
    x: jax.Array,
    weight: jax.Array | QuantizedTensor,
    *,
    contract: Contract,
    row_offset: int,
    rows: int,
    x_offset: int = 0,
    kernels: Kernels = "auto",
) -> jax.Array:
    """Per-head product with a row range of `weight`.

    contract="rows":    y[t,h,r] = sum_d x[t,h,x_offset+d] * weight[h,row_offset+d,r], d < rows
                        (queries into the latent space; result (T, H, R));
    contract="columns": y[t,h,d] = sum_r x[t,h,x_offset+r] * weight[h,row_offset+d,r], r < R
                        (attention output out of it; result (T, H, rows)).

    Args:
      x: (T, H, D) float32 or bfloat16.
      weight: (H, W, R) of x's dtype; or a `QuantizedTensor` (H * W, R), whose groups run along R for both
        products: no requantisation is needed.
      row_offset, rows: the row range [row_offset, row_offset + rows) of `weight`.
      x_offset: first used column of x.

    Returns:
      float32 accumulation, one rounding to x's dtype.

    Raises:
      ShapeError: naming argument, expected and got.
    """
    check_shape("absorb", "x", x, ("T", "H", "D"))
    check_dtype("absorb", "x", x, COMPUTE_DTYPES)
    check_choice("absorb", "contract", contract, tuple(CONTRACT_CODES))
    heads = x.shape[1]
    if isinstance(weight, QuantizedTensor):
        check_shape("absorb", "weight", weight, ("H * W", "R"))
        check_weight("absorb", "weight", weight)
        if heads == 0 or weight.shape[0] % heads:
            raise ShapeError(
                f"absorb: argument 'weight': expected rows in a multiple of x's {heads} heads, got {weight.shape}"
            )
        of_head, rank = weight.shape[0] // heads, weight.shape[1]
    else:
        check_shape("absorb", "weight", weight, (heads, "W", "R"))
        check_dtype("absorb", "weight", weight, (jnp.dtype(x.dtype).name,))
        of_head, rank = weight.shape[1:]
    check_range("absorb", "row_offset, rows", row_offset, rows, of_head, "weight's rows")
    used = rows if contract == "rows" else rank
    check_range("absorb", "x_offset", x_offset, used, x.shape[2], "x's columns")
    static = {
        "contract": contract,
        "row_offset": int(row_offset),
        "rows": int(rows),
        "x_offset": int(x_offset),
    }
    if isinstance(weight, QuantizedTensor):
        layout = {"container": weight.container, "block": weight.block}
        return ABSORB_QUANTIZED(x, weight.data, weight.scale, kernels=kernels, **static, **layout)[0]
    return ABSORB(x, weight, kernels=kernels, **static)[0]


def _abstract(
    x: jax.Array, weight: jax.Array, *, contract: Contract, row_offset: int, rows: int, x_offset: int
) -> list[jax.ShapeDtypeStruct]:
    del row_offset, x_offset
    width = weight.shape[2] if contract == "rows" else rows
    return [jax.ShapeDtypeStruct((*x.shape[:2], width), x.dtype)]


def _native(
    x: jax.Array, weight: jax.Array, *, contract: Contract, row_offset: int, rows: int, x_offset: int
) -> Arrays:
    static = {"contract": contract, "row_offset": row_offset, "rows": rows, "x_offset": x_offset}
    call = jax.ffi.ffi_call(TARGET, _abstract(x, weight, **static)[0])  # type: ignore[arg-type]
    y = call(
        x,
        weight,
        x_offset=np.int64(x_offset),
        row_offset=np.int64(row_offset),
        rows_used=np.int64(rows),
        contract=np.int64(CONTRACT_CODES[contract]),
    )
    return (y,)


ABSORB: Op = Op(
    "mla_jax.absorb",
    targets=(TARGET,),
    abstract=_abstract,
    reference=per_head_product,
    native=_native,
    gpu=Native((), per_head_product, "it is XLA's own batched dot there"),
    batch=lambda arrays, batched, static: map_rows(ABSORB, arrays, batched, static),
)
