"""What both forms of `absorb` compute: per-head products with a row range of the weight."""

from typing import Literal

import jax
import jax.numpy as jnp

from custom_calls.op import Arrays

Contract = Literal["rows", "columns"]
CONTRACT_CODES: dict[Contract, int] = {"rows": 0, "columns": 1}
"""The native kernels' attribute `contract`."""


def per_head_product(
    x: jax.Array, weight: jax.Array, *, contract: Contract, row_offset: int, rows: int, x_offset: int
) -> Arrays:
    """The pure-JAX form of `absorb`, with its arguments."""
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
