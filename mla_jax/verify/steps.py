"""Steps with a pool as functions of arrays alone, and descriptions of those arrays: nothing is run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mla_jax.cache import LatentCache, init_cache
from mla_jax.config import ModelConfig
from mla_jax.paging import AttentionMetadata, PageTable


def paged_step(function: Callable[..., Any], num_tokens: int) -> Callable[..., Any]:
    """`prefill` or `decode_step` with its metadata made inside: (model, tokens, cache, table, seq_lens, num_new)."""

    def step(
        model: Any, tokens: Any, cache: LatentCache, table: PageTable, seq_lens: Any, num_new: Any
    ) -> Any:
        meta = AttentionMetadata.extend(table, seq_lens, num_new, num_tokens=num_tokens)
        return function(model, tokens, cache, meta)

    return step


def paged_arguments(
    config: ModelConfig,
    *,
    num_seqs: int,
    num_tokens: int,
    max_len: int,
    page_size: int,
    dtype: Any = "auto",
) -> tuple[Any, ...]:
    """Descriptions of what `paged_step` takes behind the model.

    Args:
      config: the model's.
      num_seqs: sequences; num_tokens: rows of the step, of all sequences together.
      max_len: tokens that a sequence can grow to; the pool has room for all of them.
      page_size, dtype: of the pool.
    """

    def pool() -> LatentCache:
        room = num_seqs * (max_len + page_size)
        return init_cache(config, num_tokens=room, page_size=page_size, dtype=dtype)

    table = jax.eval_shape(lambda: PageTable.empty(pool(), num_seqs, max_len))
    lengths = int32(num_seqs)
    return int32(num_tokens), jax.eval_shape(pool), table, lengths, lengths


def int32(*shape: int) -> jax.ShapeDtypeStruct:
    """Of token ids and lengths."""
    return jax.ShapeDtypeStruct(shape, jnp.int32)
