"""`fused_qk_rmsnorm`: the norms of both latents, the query's and the cached one, in one call.

Two contracts of its native form are spoken, as one AMD library had both of them one after the other:

- v1, positional: operands (q, q_weight, q_eps, k, k_weight, k_eps), results of their own for q and k; the
  latent part of kv_a must be cut out before the call and put back after it.
- v2, in place: operands (q_a, kv_a, q_weight, kv_weight), attributes q_eps and kv_eps, results in the memory of
  q_a and kv_a where their caller gives it away.
"""

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.checks import COMPUTE_DTYPES, check_dtype, check_range, check_shape
from custom_calls.op import Arrays, Op, map_rows
from custom_calls.registry import Kernels
from custom_calls.rmsnorm import normalise

TARGET = "mla_jax.fused_qk_rmsnorm.v2"
TARGET_V1 = "mla_jax.fused_qk_rmsnorm.v1"


def fused_qk_rmsnorm(
    q_a: jax.Array,
    kv_a: jax.Array,
    q_weight: jax.Array,
    kv_weight: jax.Array,
    *,
    q_eps: float,
    kv_eps: float | None = None,
    kernels: Kernels = "auto",
) -> tuple[jax.Array, jax.Array]:
    """`rmsnorm` of q_a and of kv_a's first R columns, each with its own weight; the other columns stay.

    Args:
      q_a: (T, N) float32 or bfloat16.
      kv_a: (T, W) of q_a's dtype: the latent in its first R columns, behind it the key's RoPE part.
      q_weight: (N,) float32 or bfloat16.
      kv_weight: (R,) float32 or bfloat16, R <= W.
      q_eps: added to the mean of squares of q_a.
      kv_eps: of kv_a; None is q_eps.

    Returns:
      (q_a normed (T, N), kv_a with its latent normed (T, W)), of their dtype; arithmetic in float32, one
      rounding. Under jit with both donated they are written in place.

    Raises:
      ShapeError: naming argument, expected and got.
    """
    op = "fused_qk_rmsnorm"
    check_shape(op, "q_a", q_a, ("T", "N"))
    check_dtype(op, "q_a", q_a, COMPUTE_DTYPES)
    check_shape(op, "kv_a", kv_a, (q_a.shape[0], "W"))
    check_dtype(op, "kv_a", kv_a, (jnp.dtype(q_a.dtype).name,))
    check_shape(op, "q_weight", q_weight, (q_a.shape[1],))
    check_dtype(op, "q_weight", q_weight, COMPUTE_DTYPES)
    check_shape(op, "kv_weight", kv_weight, ("R",))
    check_dtype(op, "kv_weight", kv_weight, COMPUTE_DTYPES)
    check_range(op, "q_a", 0, q_a.shape[1], q_a.shape[1], "its columns")
    check_range(op, "kv_weight", 0, kv_weight.shape[0], kv_a.shape[1], "kv_a's columns")
    q_eps = float(q_eps)
    kv_eps = q_eps if kv_eps is None else float(kv_eps)
    q, kv = FUSED_QK_RMSNORM(q_a, kv_a, q_weight, kv_weight, kernels=kernels, q_eps=q_eps, kv_eps=kv_eps)
    return q, kv


def _abstract(
    q_a: jax.Array, kv_a: jax.Array, *_: jax.Array, **__: float
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    return jax.ShapeDtypeStruct(q_a.shape, q_a.dtype), jax.ShapeDtypeStruct(kv_a.shape, kv_a.dtype)


def _reference(
    q_a: jax.Array, kv_a: jax.Array, q_weight: jax.Array, kv_weight: jax.Array, *, q_eps: float, kv_eps: float
) -> Arrays:
    rank = kv_weight.shape[0]
    q = normalise(q_a.astype(jnp.float32), q_weight, q_eps).astype(q_a.dtype)
    latent = normalise(kv_a[:, :rank].astype(jnp.float32), kv_weight, kv_eps).astype(kv_a.dtype)
    return q, jnp.concatenate([latent, kv_a[:, rank:]], axis=1)


def _native(*arrays: jax.Array, q_eps: float, kv_eps: float) -> Arrays:
    call = jax.ffi.ffi_call(TARGET, _abstract(*arrays), input_output_aliases={0: 0, 1: 1})
    return tuple(call(*arrays, q_eps=np.float32(q_eps), kv_eps=np.float32(kv_eps)))


def _native_v1(
    q_a: jax.Array, kv_a: jax.Array, q_weight: jax.Array, kv_weight: jax.Array, *, q_eps: float, kv_eps: float
) -> Arrays:
    latent, rope = jnp.split(kv_a, [kv_weight.shape[0]], axis=1)
    q, latent = jax.ffi.ffi_call(TARGET_V1, _abstract(q_a, latent))(
        q_a, q_weight, jnp.float32(q_eps), latent, kv_weight, jnp.float32(kv_eps)
    )
    return q, jnp.concatenate([latent, rope], axis=1)


FUSED_QK_RMSNORM: Op = Op(
    "mla_jax.fused_qk_rmsnorm",
    targets=(TARGET,),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    adapters={(TARGET_V1,): _native_v1},
    batch=lambda arrays, batched, static: map_rows(FUSED_QK_RMSNORM, arrays, batched, static),
)
