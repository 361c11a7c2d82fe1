"""`decode_steps`: several decode steps in one program, tokens drawn between them on the device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from mla_jax.cache import LatentCache
from mla_jax.errors import LayoutError, ShapeError
from mla_jax.models.frozen import Model, freeze
from mla_jax.models.functions import decode_step
from mla_jax.models.token_ids import token_ids
from mla_jax.paging import AttentionMetadata, advance
from mla_jax.pytree import pytree

NO_TOKEN = -2
"""Stands where a sequence took no step. -1 is `sample`'s word for logits that have no answer."""

Draw = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, jax.Array, Any]]
"""(logits (num_seqs, vocab), active (num_seqs,), carry) -> (tokens (num_seqs,), which sequences go on, carry)."""


@pytree(data=("tokens", "next_tokens", "active", "cache", "meta", "carry"))
@dataclass(frozen=True)
class Decoded:
    """What `decode_steps` did.

    Attributes:
      tokens: (num_steps, num_seqs) int32 as drawn, `NO_TOKEN` where a sequence took no step.
      next_tokens: (num_seqs,) int32, each sequence's last token: what it would be fed next.
      active: (num_seqs,) bool, the sequences that would go on.
      cache: the pool with the new rows.
      meta: what the sequences hold now, as the next `decode_steps` or `advance` takes it.
      carry: of the last draw.
    """

    tokens: Int[Array, "num_steps num_seqs"]
    next_tokens: Int[Array, " num_seqs"]
    active: Bool[Array, " num_seqs"]
    cache: LatentCache
    meta: AttentionMetadata
    carry: Any


def decode_steps(
    model: Model,
    tokens: Int[Array, " num_seqs"],
    cache: LatentCache,
    meta: AttentionMetadata,
    draw: Draw,
    carry: Any = None,
    *,
    num_steps: int,
    limit: int | Int[Array, ""] | None = None,
    active: Bool[Array, " num_seqs"] | None = None,
    reserved: bool = False,
) -> Decoded:
    """Up to `num_steps` times: `advance`, `decode_step`, `draw`. Ends early when no sequence goes on.

    A sequence that stopped is padding from then on: it stores nothing and its draws do not count. Each
    sequence's tokens are what single steps give.

    Args:
      model, cache: as `decode_step`; donate the cache when jitting.
      tokens: (num_seqs,) what the sequences are fed first.
      meta: of the step before, as `advance` takes it.
      draw: chooses tokens from logits and says which of the active sequences go on; its `carry` keeps shapes and
        dtypes from step to step. Rows that are not active hold logits without a meaning.
      carry: what the first draw gets.
      num_steps: at most; static, >= 1. One step is compiled without a loop.
      limit: at most, known when the program runs; `num_steps` by default. Less than 1 is no step at all.
      active: (num_seqs,) bool, the sequences that take the first step; by default those that hold a token.
      reserved: see `advance`.

    Raises:
      ShapeError: num_steps is no integer >= 1; or as `decode_step` and `advance` raise.
      LayoutError: `meta` has no pool.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ShapeError(f"decode_steps: argument 'num_steps': expected an integer >= 1, got {num_steps!r}")
    if not isinstance(meta, AttentionMetadata) or meta.page_table is None:
        raise LayoutError("decode_steps: argument 'meta': expected AttentionMetadata with a page table")
    weights = freeze(model)
    first = token_ids("decode_steps", tokens, ("num_seqs",))
    runs = meta.seq_lens > 0 if active is None else jnp.asarray(active)
    # Neither positions nor slots of the step before matter to the next, so what is carried has one structure.
    before = AttentionMetadata.held(meta.page_table, meta.seq_lens, checks=meta.checks)
    asked = jnp.asarray(num_steps if limit is None else limit)
    if asked.shape != () or not jnp.issubdtype(asked.dtype, jnp.integer):
        raise ShapeError(
            f"decode_steps: argument 'limit': expected an integer, got {asked.dtype} of shape {asked.shape}"
        )
    stop = jnp.minimum(asked, num_steps)

    def step(state: Decoded, row: Any) -> Decoded:
        after = advance(state.meta, state.active, reserved=reserved)
        # Tied to what changes, so that XLA does not convert or dequantise every weight once before the loop.
        own, fed = jax.lax.optimization_barrier((weights, state.next_tokens))
        logits, pool = decode_step(own, fed, state.cache, after)
        drawn, goes_on, carried = draw(logits, state.active, state.carry)
        drawn = _check_drawn(drawn, goes_on, meta.num_seqs)
        assert after.page_table is not None
        return Decoded(
            tokens=state.tokens.at[row].set(jnp.where(state.active, drawn, NO_TOKEN)),
            next_tokens=jnp.where(state.active, drawn, state.next_tokens),
            active=state.active & goes_on,
            cache=pool,
            meta=AttentionMetadata.held(after.page_table, after.seq_lens, checks=after.checks),
            carry=carried,
        )

    none = jnp.full((num_steps, meta.num_seqs), NO_TOKEN, jnp.int32)
    start = Decoded(none, first, runs, cache, before, carry)
    if num_steps == 1 and limit is None:
        return step(start, 0)
    _, end = jax.lax.while_loop(
        lambda at: (at[0] < stop) & jnp.any(at[1].active),
        lambda at: (at[0] + 1, step(at[1], at[0])),
        (jnp.int32(0), start),
    )
    return end


def _check_drawn(tokens: jax.Array, goes_on: jax.Array, num_seqs: int) -> jax.Array:
    ids = token_ids("decode_steps: draw", tokens, ("num_seqs",))
    if ids.shape != (num_seqs,):
        raise ShapeError(f"decode_steps: draw: expected tokens of shape ({num_seqs},), got {ids.shape}")
    if goes_on.shape != (num_seqs,) or goes_on.dtype != jnp.bool_:
        raise ShapeError(
            f"decode_steps: draw: expected a bool mask of shape ({num_seqs},) of who goes on, got "
            f"{goes_on.dtype} of shape {goes_on.shape}"
        )
    return ids
