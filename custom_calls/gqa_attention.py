"""`gqa_attention_reference`: grouped-query attention over paged caches in plain jnp.

A reference and nothing else: it says what the caches that `rope_append_kv` fills mean, so that every layout can
be tested end to end. There is no native kernel behind it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.cache_rows import from_cache_dtype
from custom_calls.checks import COMPUTE_DTYPES, check_dtype, check_shape
from custom_calls.errors import ShapeError
from custom_calls.kv_cache_layout import KVCacheLayout, check_kv_caches, check_scale, load_kv
from custom_calls.mla_attention import rows_of_sequences


def gqa_attention_reference(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    layer: jax.Array,
    k_scale: jax.Array,
    v_scale: jax.Array,
    pages: jax.Array,
    query_start_loc: jax.Array,
    seq_lens: jax.Array,
    *,
    cache_layout: KVCacheLayout,
    softmax_scale: float,
    sliding_window: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of T ragged query rows to the keys of their sequences; query head h uses key head h // (Hq / Hk).

    Sequence s owns the query rows [query_start_loc[s], query_start_loc[s+1]), L of them, and n =
    seq_lens[s] keys, these rows' own included. Query i of L is at position p = n - L + i and sees key j iff
    j <= p and, with a sliding window W, j > p - W: the W newest keys, its own included.

    Args:
      q: (T, Hq, D) float32 or bfloat16, rotated; Hq is a multiple of Hk.
      k_cache, v_cache, layer, k_scale, v_scale, cache_layout: as in `rope_append_kv`, this step's keys and
        values already stored.
      pages: (S, max_pages) int32 page numbers (not token slots) of the caches, in order of position.
      query_start_loc: (S + 1,) int32, ascending, in rows.
      seq_lens: (S,) int32, in tokens.
      softmax_scale: multiplies every score.
      sliding_window: W >= 1, or None for all keys.

    Returns:
      out: (T, Hq, Dv) of q's dtype; logsumexp: (T, Hq) float32, natural logarithm of the scaled scores.
      No visible key, or a row that no sequence owns: 0 and -inf. A visible key whose page number is outside
      the caches, a layer outside [0, L), or any row of a sequence longer than max_pages * page_size: NaN in
      both. Arithmetic in float32.

    Raises:
      ShapeError: naming argument, expected and got.
    """
    op = "gqa_attention_reference"
    sizes = check_kv_caches(op, k_cache, v_cache, cache_layout)
    check_shape(op, "q", q, ("T", "Hq", sizes.key_width))
    check_dtype(op, "q", q, COMPUTE_DTYPES)
    if q.shape[1] < 1 or q.shape[1] % sizes.num_heads:
        raise ShapeError(
            f"{op}: argument 'q': expected Hq to be a positive multiple of the caches' {sizes.num_heads} heads, "
            f"got {q.shape[1]}"
        )
    check_shape(op, "pages", pages, ("S", "max_pages"))
    for name, array, shape in (
        ("layer", layer, ()),
        ("pages", pages, pages.shape),
        ("query_start_loc", query_start_loc, (pages.shape[0] + 1,)),
        ("seq_lens", seq_lens, (pages.shape[0],)),
    ):
        check_shape(op, name, array, shape)
        check_dtype(op, name, array, ("int32",))
    check_scale(op, "k_scale", k_scale)
    check_scale(op, "v_scale", v_scale)
    if sliding_window is not None and sliding_window < 1:
        raise ShapeError(
            f"{op}: argument 'sliding_window': expected None or an integer >= 1, got {sliding_window!r}"
        )
    num_rows, num_heads, _ = q.shape
    num_seqs, max_pages = pages.shape
    if num_rows == 0 or num_seqs == 0:
        out = jnp.zeros((num_rows, num_heads, sizes.value_width), q.dtype)
        return out, jnp.full((num_rows, num_heads), -jnp.inf, jnp.float32)
    group = num_heads // sizes.num_heads
    capacity = max_pages * sizes.page_size
    key = jnp.arange(capacity, dtype=jnp.int32)
    page_exists = (pages >= 0) & (pages < sizes.num_pages) & (layer >= 0) & (layer < sizes.num_layers)
    highest = jax.lax.Precision.HIGHEST

    def attend(row: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """One query row against all keys of its sequence."""
        query, sequence, owned, position = row
        seen = owned & (key <= position)
        if sliding_window is not None:
            seen = seen & (key > position - np.int32(sliding_window))
        exists = jnp.repeat(page_exists[sequence], sizes.page_size)
        broken = owned & ((seq_lens[sequence] > capacity) | jnp.any(seen & ~exists))
        k, v = load_kv(k_cache, v_cache, layer, pages[sequence], cache_layout)
        k, v = from_cache_dtype(k, k_scale.reshape(())), from_cache_dtype(v, v_scale.reshape(()))
        # Unseen rows may hold anything, NaN included: they are replaced before any product.
        k = jnp.where(seen[:, None, None], k.reshape(capacity, *k.shape[2:]), jnp.float32(0))
        v = jnp.where(seen[:, None, None], v.reshape(capacity, *v.shape[2:]), jnp.float32(0))
        grouped = query.astype(jnp.float32).reshape(sizes.num_heads, group, sizes.key_width)
        score = jnp.einsum("hgd,khd->hgk", grouped, k, precision=highest) * np.float32(softmax_scale)
        score = jnp.where(seen[None, None, :], score, -jnp.inf)
        logsumexp = jax.nn.logsumexp(score, axis=-1)
        shift = jnp.where(jnp.isneginf(logsumexp), jnp.float32(0), logsumexp)
        out = jnp.einsum("hgk,khv->hgv", jnp.exp(score - shift[:, :, None]), v, precision=highest)
        out, logsumexp = (jnp.where(broken, jnp.float32(jnp.nan), value) for value in (out, logsumexp))
        return out.reshape(num_heads, sizes.value_width), logsumexp.reshape(num_heads)

    sequence, owned = rows_of_sequences(query_start_loc, num_rows)
    row_in_sequence = jnp.arange(num_rows, dtype=jnp.int32) - query_start_loc[sequence]
    length = query_start_loc[sequence + 1] - query_start_loc[sequence]
    position = seq_lens[sequence] - length + row_in_sequence
    out, logsumexp = jax.lax.map(attend, (q, sequence, owned, position))
    return out.astype(q.dtype), logsumexp
