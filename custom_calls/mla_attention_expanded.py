"""`mla_attention_expanded`: causal attention among this step's own tokens, keys and values expanded.

For many new tokens it is cheaper to expand each latent row once into per-head keys and values than to
attend in the latent space: 2 (nope + rope + v) FLOP per query, key and head instead of 2 (2 R + rope).
"""

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.checks import COMPUTE_DTYPES, check_dtype, check_range, check_shape
from custom_calls.errors import ShapeError
from custom_calls.mla_attention import rows_of_sequences
from custom_calls.op import Arrays, Op, map_rows
from custom_calls.registry import Kernels

TARGET = "mla_jax.mla_attention_expanded.v1"


def mla_attention_expanded(
    q: jax.Array,
    q_rope: jax.Array,
    kv: jax.Array,
    rows: jax.Array,
    query_start_loc: jax.Array,
    *,
    nope: int,
    v: int,
    softmax_scale: float,
    uniform_length: int | None = None,
    kernels: Kernels = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Row t of a sequence attends to the rows <= t of the same sequence.

    Args:
      q: (T, H, D) float32 or bfloat16; columns [0, nope) are the part without RoPE.
      q_rope: (T, H, P) of q's dtype, rotated.
      kv: (T, H * (nope + v)) of q's dtype: the latent rows through kv_b_proj, per head keys then values.
      rows: (T, R + P) of q's dtype; the last P columns are the rotated key part, shared by all heads.
      query_start_loc: (S + 1,) int32, ascending.
      nope, v: qk_nope_head_dim, v_head_dim.
      softmax_scale: multiplies every score.
      uniform_length: a promise that query_start_loc is 0, n, 2 n, ... T; the reference then needs
        O(T n) memory instead of O(T^2). The native kernel needs O(T) either way.

    Returns:
      out: (T, H, v) of q's dtype; logsumexp: (T, H) float32. A row that no sequence owns: 0 and -inf.

    Raises:
      ShapeError: naming argument, expected and got.
    """
    op = "mla_attention_expanded"
    same = (jnp.dtype(q.dtype).name,)
    check_shape(op, "q", q, ("T", "H", "D"))
    check_dtype(op, "q", q, COMPUTE_DTYPES)
    check_range(op, "nope", 0, nope, q.shape[2], "q's columns")
    check_shape(op, "q_rope", q_rope, (*q.shape[:2], "P"))
    check_dtype(op, "q_rope", q_rope, same)
    check_shape(op, "kv", kv, (q.shape[0], q.shape[1] * (nope + v)))
    check_dtype(op, "kv", kv, same)
    check_shape(op, "rows", rows, (q.shape[0], "R + P"))
    check_dtype(op, "rows", rows, same)
    check_range(op, "rows", 0, q_rope.shape[2], rows.shape[1], "rows' columns")
    check_shape(op, "query_start_loc", query_start_loc, ("S + 1",))
    check_dtype(op, "query_start_loc", query_start_loc, ("int32",))
    if uniform_length is not None and uniform_length * (query_start_loc.shape[0] - 1) != q.shape[0]:
        raise ShapeError(
            f"{op}: argument 'uniform_length': expected T / S = {q.shape[0]} / "
            f"{query_start_loc.shape[0] - 1}, got {uniform_length}"
        )
    out, logsumexp = MLA_ATTENTION_EXPANDED(
        q, q_rope, kv, rows, query_start_loc, kernels=kernels,
        nope=int(nope), v=int(v), softmax_scale=float(softmax_scale), uniform_length=uniform_length,
    )  # fmt: skip
    return out, logsumexp


def _abstract(
    q: jax.Array, *_: jax.Array, nope: int, v: int, softmax_scale: float, uniform_length: int | None
) -> list[jax.ShapeDtypeStruct]:
    del nope, softmax_scale, uniform_length
    return [
        jax.ShapeDtypeStruct((*q.shape[:2], v), q.dtype),
        jax.ShapeDtypeStruct(q.shape[:2], jnp.float32),
    ]


def _reference(
    q: jax.Array,
    q_rope: jax.Array,
    kv: jax.Array,
    rows: jax.Array,
    query_start_loc: jax.Array,
    *,
    nope: int,
    v: int,
    softmax_scale: float,
    uniform_length: int | None,
) -> Arrays:
    if uniform_length:
        return _reference_uniform(
            q, q_rope, kv, rows, nope=nope, v=v, softmax_scale=softmax_scale, length=uniform_length
        )
    num_rows, num_heads, _ = q.shape
    rope = q_rope.shape[2]
    sequence, owned = rows_of_sequences(query_start_loc, num_rows)
    index = jnp.arange(num_rows, dtype=jnp.int32)
    visible = (sequence[:, None] == sequence[None, :]) & (index[None, :] <= index[:, None])
    visible = visible & owned[:, None] & owned[None, :]
    expanded = kv.reshape(num_rows, num_heads, nope + v).astype(jnp.float32)
    # A row that nobody owns may hold anything: it is replaced before any product.
    expanded = jnp.where(owned[:, None, None], expanded, jnp.float32(0))
    key_rope = jnp.where(owned[:, None], rows[:, rows.shape[1] - rope :].astype(jnp.float32), jnp.float32(0))
    highest = jax.lax.Precision.HIGHEST
    score = jnp.einsum(
        "thd,khd->htk", q[:, :, :nope].astype(jnp.float32), expanded[:, :, :nope], precision=highest
    )
    score = score + jnp.einsum("thp,kp->htk", q_rope.astype(jnp.float32), key_rope, precision=highest)
    score = jnp.where(visible[None], score * np.float32(softmax_scale), -jnp.inf)
    peak = jnp.max(score, axis=-1, initial=-jnp.inf)
    safe_peak = jax.lax.stop_gradient(jnp.where(jnp.isneginf(peak), jnp.float32(0), peak))
    weight = jnp.where(visible[None], jnp.exp(score - safe_peak[:, :, None]), jnp.float32(0))
    total = jnp.sum(weight, axis=-1)
    empty = total == 0
    some = jnp.where(empty, jnp.float32(1), total)
    values = expanded[:, :, nope:]
    finite = jnp.where(jnp.isfinite(values), values, jnp.float32(0))
    out = jnp.einsum("htk,khv->thv", weight / some[:, :, None], finite, precision=highest)
    # Weight zero times NaN is NaN: a broken row must reach the rows that see it, and no other request's.
    broken = jnp.cumsum(~jnp.isfinite(values), axis=0, dtype=jnp.int32)
    first = query_start_loc[sequence]
    earlier = jnp.where((first > 0)[:, None, None], broken[jnp.maximum(first - 1, 0)], 0)
    out = jnp.where((broken > earlier) & owned[:, None, None], jnp.float32(jnp.nan), out)
    logsumexp = jnp.where(empty, -jnp.inf, safe_peak + jnp.log(some))
    return out.astype(q.dtype), jnp.transpose(logsumexp)


def _reference_uniform(*arrays: jax.Array, nope: int, v: int, softmax_scale: float, length: int) -> Arrays:
    def one_sequence(q: jax.Array, q_rope: jax.Array, kv: jax.Array, rows: jax.Array) -> Arrays:
        bounds = jnp.array([0, length], jnp.int32)
        static = {"nope": nope, "v": v, "softmax_scale": softmax_scale, "uniform_length": None}
        return _reference(q, q_rope, kv, rows, bounds, **static)  # type: ignore[arg-type]

    split = [array.reshape(-1, length, *array.shape[1:]) for array in arrays]
    return tuple(out.reshape(-1, *out.shape[2:]) for out in jax.vmap(one_sequence)(*split))


def _native(
    *arrays: jax.Array, nope: int, v: int, softmax_scale: float, uniform_length: int | None
) -> Arrays:
    outs = _abstract(*arrays, nope=nope, v=v, softmax_scale=softmax_scale, uniform_length=uniform_length)
    call = jax.ffi.ffi_call(TARGET, outs)
    return tuple(call(*arrays, nope=np.int64(nope), v=np.int64(v), softmax_scale=np.float32(softmax_scale)))


MLA_ATTENTION_EXPANDED: Op = Op(
    "mla_jax.mla_attention_expanded",
    targets=(TARGET,),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    batch=lambda arrays, batched, static: map_rows(MLA_ATTENTION_EXPANDED, arrays, batched, static),
)
