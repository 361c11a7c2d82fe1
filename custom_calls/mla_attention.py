"""`mla_attention`: absorbed latent attention over the paged pool, ragged and causal.

Every query attends in the latent space: score = q_latent . latent + q_rope . rope, output = sum p * latent.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.checks import CACHE_DTYPES, COMPUTE_DTYPES, check_dtype, check_shape
from custom_calls.errors import ShapeError, UnsupportedTransformError
from custom_calls.op import Arrays, Native, Op, map_rows, varying_like
from custom_calls.registry import Kernels
from custom_calls.rope_append_latent import dequantise_rows

TARGET = "mla_jax.mla_attention.v1"
TARGET_WITH_SCRATCH = "mla_jax.mla_attention.v2"

Keys = Literal["all", "cached"]

_BLOCK_KEYS = 128
"""Keys that the reference visits per step; bounds its memory at T * 128 rows."""


def mla_attention(
    q_latent: jax.Array,
    q_rope: jax.Array,
    kv: jax.Array,
    layer: jax.Array,
    scales: jax.Array,
    pages: jax.Array,
    query_start_loc: jax.Array,
    seq_lens: jax.Array,
    *,
    softmax_scale: float,
    keys: Keys = "all",
    kernels: Kernels = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Attention of T ragged query rows to the pool's rows of their sequences.

    Sequence s owns the query rows [query_start_loc[s], query_start_loc[s+1]), L of them, and n =
    seq_lens[s] keys, these rows' own included. Query i of L sees key j iff j <= n - L + i; with
    keys="cached" every query sees the keys j < n - L that were there before this step.

    Args:
      q_latent: (T, H, R) float32 or bfloat16.
      q_rope: (T, H, P) of the same dtype, rotated.
      kv: (layers, num_pages, page_size, R + P): the pool, this step's rows already stored.
      layer: () int32.
      scales: (2,) float32, see `rope_append_latent`.
      pages: (S, max_pages) int32 page numbers (not token slots), in order of position.
      query_start_loc: (S + 1,) int32, ascending, in rows.
      seq_lens: (S,) int32, in tokens.
      softmax_scale: multiplies every score.

    Returns:
      out: (T, H, R) of q's dtype; logsumexp: (T, H) float32, natural logarithm of the scaled scores.
      No visible key, or a row that no sequence owns: 0 and -inf. A visible key whose page number is
      outside the pool, a layer outside [0, layers), or any row of a sequence longer than max_pages *
      page_size: NaN in both, so that a broken page table cannot pass for an answer.

    Raises:
      ShapeError: naming argument, expected and got.
    """
    op = "mla_attention"
    check_shape(op, "q_latent", q_latent, ("T", "H", "R"))
    check_dtype(op, "q_latent", q_latent, COMPUTE_DTYPES)
    check_shape(op, "q_rope", q_rope, (*q_latent.shape[:2], "P"))
    check_dtype(op, "q_rope", q_rope, (jnp.dtype(q_latent.dtype).name,))
    width = q_latent.shape[2] + q_rope.shape[2]
    check_shape(op, "kv", kv, ("layers", "num_pages", "page_size", width))
    check_dtype(op, "kv", kv, CACHE_DTYPES)
    check_shape(op, "layer", layer, ())
    check_shape(op, "scales", scales, (2,))
    check_dtype(op, "scales", scales, ("float32",))
    check_shape(op, "pages", pages, ("S", "max_pages"))
    check_shape(op, "query_start_loc", query_start_loc, (pages.shape[0] + 1,))
    check_shape(op, "seq_lens", seq_lens, (pages.shape[0],))
    for name, array in (
        ("layer", layer),
        ("pages", pages),
        ("query_start_loc", query_start_loc),
        ("seq_lens", seq_lens),
    ):
        check_dtype(op, name, array, ("int32",))
    if keys not in ("all", "cached"):
        raise ShapeError(f"{op}: argument 'keys': expected 'all' or 'cached', got {keys!r}")
    out, logsumexp = MLA_ATTENTION(
        q_latent, q_rope, kv, layer, scales, pages, query_start_loc, seq_lens,
        kernels=kernels, softmax_scale=float(softmax_scale), keys=keys,
    )  # fmt: skip
    return out, logsumexp


def rows_of_sequences(query_start_loc: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
    """(sequence of each row (T,) int32, whether any sequence owns it (T,) bool)."""
    num_seqs = query_start_loc.shape[0] - 1
    rows = jnp.arange(num_rows, dtype=jnp.int32)
    # The last start that is not beyond the row: sequences without rows of their own are passed over.
    sequence = jnp.searchsorted(query_start_loc, rows, side="right").astype(jnp.int32) - 1
    owned = (sequence >= 0) & (sequence < num_seqs)
    return jnp.clip(sequence, 0, max(num_seqs - 1, 0)), owned


def _abstract(
    q_latent: jax.Array, *_: jax.Array, softmax_scale: float, keys: Keys
) -> list[jax.ShapeDtypeStruct]:
    del softmax_scale, keys
    return [
        jax.ShapeDtypeStruct(q_latent.shape, q_latent.dtype),
        jax.ShapeDtypeStruct(q_latent.shape[:2], jnp.float32),
    ]


def _reference(
    q_latent: jax.Array,
    q_rope: jax.Array,
    kv: jax.Array,
    layer: jax.Array,
    scales: jax.Array,
    pages: jax.Array,
    query_start_loc: jax.Array,
    seq_lens: jax.Array,
    *,
    softmax_scale: float,
    keys: Keys,
) -> Arrays:
    num_rows, num_heads, rank = q_latent.shape
    num_seqs, max_pages = pages.shape
    _, num_pages, page_size, _ = kv.shape
    if num_rows == 0 or num_seqs == 0:
        return (
            jnp.zeros(q_latent.shape, q_latent.dtype),
            jnp.full((num_rows, num_heads), -jnp.inf, jnp.float32),
        )

    sequence, owned = rows_of_sequences(query_start_loc, num_rows)
    capacity = min(max_pages * page_size, np.iinfo(np.int32).max)
    too_long = owned & (seq_lens > capacity)[sequence]
    held = jnp.clip(seq_lens, 0, capacity)[sequence]
    before = held - (query_start_loc[sequence + 1] - query_start_loc[sequence])
    row_in_sequence = jnp.arange(num_rows, dtype=jnp.int32) - query_start_loc[sequence]
    visible = before + row_in_sequence + 1 if keys == "all" else before
    visible = jnp.where(owned, jnp.clip(visible, 0, capacity), 0)
    if max_pages == 0 or num_pages == 0:  # There is no key: who should see one has no answer.
        broken = too_long | (visible > 0)
        out = jnp.where(broken[:, None, None], jnp.nan, jnp.zeros(q_latent.shape, jnp.float32))
        logsumexp = jnp.where(broken[:, None], jnp.nan, jnp.full((num_rows, num_heads), -jnp.inf))
        return out.astype(q_latent.dtype), logsumexp.astype(jnp.float32)

    query = jnp.concatenate([q_latent, q_rope], axis=-1).astype(jnp.float32)
    pages_per_step = max(1, _BLOCK_KEYS // page_size)
    num_steps = -(-max_pages // pages_per_step)
    padded = jnp.pad(pages, ((0, 0), (0, num_steps * pages_per_step - max_pages)), constant_values=-1)
    highest = jax.lax.Precision.HIGHEST
    layer_exists = (layer >= 0) & (layer < kv.shape[0])

    def visit(carry: Arrays, step: jax.Array) -> tuple[Arrays, None]:
        peak, total, weighted, broken = carry
        ids = jax.lax.dynamic_slice_in_dim(padded, step * pages_per_step, pages_per_step, axis=1)[sequence]
        rows = kv[layer, jnp.clip(ids, 0, num_pages - 1)]
        rows = rows.reshape(num_rows, pages_per_step * page_size, rows.shape[-1])
        key = step * (pages_per_step * page_size) + jnp.arange(rows.shape[1], dtype=jnp.int32)
        seen = key[None, :] < visible[:, None]
        in_pool = jnp.repeat((ids >= 0) & (ids < num_pages) & layer_exists, page_size, axis=1)
        broken = broken | jnp.any(seen & ~in_pool, axis=1)
        # Unseen rows may hold anything, NaN included: they are replaced before any product.
        values = jnp.where(seen[:, :, None], dequantise_rows(rows, scales, rank), jnp.float32(0))
        score = jnp.einsum("thw,tkw->thk", query, values, precision=highest) * np.float32(softmax_scale)
        score = jnp.where(seen[:, None, :], score, -jnp.inf)
        new_peak = jnp.maximum(peak, jnp.max(score, axis=-1))
        safe_peak = jnp.where(jnp.isneginf(new_peak), jnp.float32(0), new_peak)
        weight = jnp.exp(score - safe_peak[:, :, None])
        shrink = jnp.exp(peak - safe_peak)
        total = total * shrink + jnp.sum(weight, axis=-1)
        update = jnp.einsum("thk,tkr->thr", weight, values[:, :, :rank], precision=highest)
        return (new_peak, total, weighted * shrink[:, :, None] + update, broken), None

    start: Arrays = (
        jnp.full((num_rows, num_heads), -jnp.inf, jnp.float32),
        jnp.zeros((num_rows, num_heads), jnp.float32),
        jnp.zeros(q_latent.shape, jnp.float32),
        too_long,
    )
    inputs = (query, kv, layer, scales, pages, query_start_loc, seq_lens)
    start = tuple(varying_like(value, *inputs) for value in start)
    steps = jnp.arange(num_steps, dtype=jnp.int32)
    (peak, total, weighted, broken), _ = jax.lax.scan(visit, start, steps)
    out = jnp.where(
        total[:, :, None] > 0, weighted / total[:, :, None], jnp.where(jnp.isnan(weighted), weighted, 0)
    )
    logsumexp = peak + jnp.log(total)
    out = jnp.where(broken[:, None, None], jnp.float32(jnp.nan), out)
    logsumexp = jnp.where(broken[:, None], jnp.float32(jnp.nan), logsumexp)
    return out.astype(q_latent.dtype), logsumexp


def _native(*arrays: jax.Array, softmax_scale: float, keys: Keys) -> Arrays:
    outs = _abstract(*arrays, softmax_scale=softmax_scale, keys=keys)
    call = jax.ffi.ffi_call(TARGET, outs)
    return tuple(
        call(*arrays, softmax_scale=np.float32(softmax_scale), cached_only=np.int64(keys == "cached"))
    )


def _native_with_scratch(*arrays: jax.Array, processors: int, softmax_scale: float, keys: Keys) -> Arrays:
    """Contract 2, of GPUs: two more results hold what each split of the keys gives, until they are merged.

    Their number follows from shapes alone, as the grid of a recorded launch must. One split needs no scratch.
    """
    q_latent, kv, pages = arrays[0], arrays[2], arrays[5]
    num_rows, num_heads, rank = q_latent.shape
    splits = _num_splits(num_rows, num_heads, pages.shape[1] * kv.shape[2], processors)
    scratch = splits if splits > 1 else 0
    outs = [
        *_abstract(*arrays, softmax_scale=softmax_scale, keys=keys),
        jax.ShapeDtypeStruct((scratch, num_rows, num_heads, rank), jnp.float32),
        jax.ShapeDtypeStruct((scratch, num_rows, num_heads), jnp.float32),
    ]
    call = jax.ffi.ffi_call(TARGET_WITH_SCRATCH, outs)
    static = {"softmax_scale": np.float32(softmax_scale), "cached_only": np.int64(keys == "cached")}
    out, logsumexp, _, _ = call(*arrays, **static)
    return out, logsumexp


def _num_splits(num_rows: int, num_heads: int, capacity: int, processors: int) -> int:
    """Shares of the keys that fill a GPU: blocks of up to 16, 32 or 64 heads, a token each.

    A GPU takes a block on each of its processors at once, or about 264 of no more than 16 heads; more
    splits than that only make more partial results. A split of fewer than 64 keys is not worth its
    merge. This is the scratch there is: a launch uses fewer where it plans fewer blocks (`gpu_shape.h`).
    """
    blocks = num_rows * (-(-num_heads // 64) if num_heads > 32 else 1)
    at_once = max(264, processors) if num_heads <= 16 else processors
    return max(1, min(at_once // max(blocks, 1), capacity // 64, 128))


def _batch(arrays: Arrays, batched: Sequence[bool], static: dict[str, Any]) -> Arrays:
    if batched[2]:
        raise UnsupportedTransformError(
            "mla_jax.mla_attention: vmap over the pool would need one pool per batch element, which is what "
            "paging exists to avoid; map over queries and metadata"
        )
    return map_rows(MLA_ATTENTION, arrays, batched, static)


MLA_ATTENTION: Op = Op(
    "mla_jax.mla_attention",
    targets=(TARGET,),
    abstract=_abstract,
    reference=_reference,
    native=_native,
    gpu=Native((TARGET_WITH_SCRATCH,), _native_with_scratch, spread=True),
    batch=_batch,
    not_differentiable="it reads the pool; use the pool-less expanded form (mla_jax.forward)",
)
