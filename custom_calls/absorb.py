"""`absorb`: the per-head product that moves kv_b_proj from the cached side to the query and output side.

kv_b_proj stays one weight, viewed as (heads, rows, kv_lora_rank) with rows = qk_nope_head_dim key rows
followed by v_head_dim value rows. Both products read it whole, with a static row range, because a slice
in front of a custom call would be a copy; both write token-major (tokens, heads, dim), so that the
reshape in front of o_proj is free.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.checks import COMPUTE_DTYPES, check_dtype, check_range, check_shape
from custom_calls.errors import ShapeError
from custom_calls.op import Arrays, Op, map_rows
from custom_calls.registry import Kernels

TARGET = "mla_jax.absorb.v1"

Contract = Literal["rows", "columns"]
_CONTRACT_CODE = {"rows": 0, "columns": 1}


def absorb(
    x: jax.Array,
    weight: jax.Array,
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
      weight: (H, W, R) of x's dtype.
      row_offset, rows: the row range [row_offset, row_offset + rows) of `weight`.
      x_offset: first used column of x.

    Returns:
      float32 accumulation, one rounding to x's dtype.

    Raises:
      ShapeError: naming argument, expected and got.
    """
    check_shape("absorb", "x", x, ("T", "H", "D"))
    check_dtype("absorb", "x", x, COMPUTE_DTYPES)
    check_shape("absorb", "weight", weight, (x.shape[1], "W", "R"))
    check_dtype("absorb", "weight", weight, (jnp.dtype(x.dtype).name,))
    check_range("absorb", "row_offset, rows", row_offset, rows, weight.shape[1], "weight's rows")
    if contract not in _CONTRACT_CODE:
        raise ShapeError(f"absorb: argument 'contract': expected 'rows' or 'columns', got {contract!r}")
    used = rows if contract == "rows" else weight.shape[2]
    check_range("absorb", "x_offset", x_offset, used, x.shape[2], "x's columns")
    static = {
        "contract": contract,
        "row_offset": int(row_offset),
        "rows": int(rows),
        "x_offset": int(x_offset),
    }
    return ABSORB(x, weight, kernels=kernels, **static)[0]


def _abstract(
    x: jax.Array, weight: jax.Array, *, contract: Contract, row_offset: int, rows: int, x_offset: int
) -> list[jax.ShapeDtypeStruct]:
    del row_offset, x_offset
    width = weight.shape[2] if contract == "rows" else rows
    return [jax.ShapeDtypeStruct((*x.shape[:2], width), x.dtype)]


def _reference(
    x: jax.Array, weight: jax.Array, *, contract: Contract, row_offset: int, rows: int, x_offset: int
) -> Arrays:
    used = weight[:, row_offset : row_offset + rows, :]
    # XLA:CPU cannot run a batched bfloat16 dot with a float32 result whose contraction is not last in
    # both operands, so the "rows" product contracts a transposed weight.
    if contract == "rows":
        used = jnp.swapaxes(used, 1, 2)
    width = used.shape[2]
    y = jnp.einsum(
        "htk,hnk->htn",
        jnp.swapaxes(x[:, :, x_offset : x_offset + width], 0, 1),
        used,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return (jnp.swapaxes(y, 0, 1).astype(x.dtype),)


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
        contract=np.int64(_CONTRACT_CODE[contract]),
    )
    return (y,)


ABSORB: Op = Op(
    "mla_jax.absorb",
    targets=(TARGET,),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    batch=lambda arrays, batched, static: map_rows(ABSORB, arrays, batched, static),
)
