"""The engine's jitted programs and the device state that they pass on.

Two kinds of program exist: a prefill of one sequence's next chunk, for each token bucket, and a decode
step of some rows, for each row bucket. A sequence's prefill never shares a program run with another's,
and decode rows do not see each other, so results do not depend on who else is being served.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from mla_jax.cache import LatentCache
from mla_jax.models import decode_step, prefill
from mla_jax.models.frozen import FrozenModel
from mla_jax.paging import AttentionMetadata, PageTable, advance
from mla_jax.pytree import pytree
from mla_jax.sampling import sample

TOP_LOGPROBS = 20
"""Most likely tokens that a step can report."""


@pytree(
    data=(
        "cache",
        "table",
        "seq_lens",
        "last_tokens",
        "seeds",
        "drawn",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
    )
)
@dataclass(frozen=True)
class EngineState:
    """Everything on the device; donated from step to step.

    Attributes:
      cache: the pool.
      table: (rows, max_pages) pages of every batch row.
      seq_lens: (rows,) tokens that each row's sequence holds in the pool.
      last_tokens: (rows,) the token that each row feeds next.
      seeds: (rows, 2) uint32 halves of each request's seed; drawn: (rows,) tokens drawn so far.
      temperature, top_p, top_k, min_p: (rows,) sampling limits.
    """

    cache: LatentCache
    table: PageTable
    seq_lens: jax.Array
    last_tokens: jax.Array
    seeds: jax.Array
    drawn: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    top_k: jax.Array
    min_p: jax.Array

    @staticmethod
    def init(cache: LatentCache, rows: int, max_len: int) -> "EngineState":
        """No row in use."""
        floats, ints = jnp.zeros((rows,), jnp.float32), jnp.zeros((rows,), jnp.int32)
        return EngineState(
            cache=cache,
            table=PageTable.empty(cache, rows, max_len),
            seq_lens=ints,
            last_tokens=ints + 0,
            seeds=jnp.zeros((rows, 2), jnp.uint32),
            drawn=ints + 0,
            temperature=floats,
            top_p=floats + 1,
            top_k=ints + 0,
            min_p=floats + 0,
        )


@pytree(data=("tokens", "logprob", "top_ids", "top_logprobs"))
@dataclass(frozen=True)
class Drawn:
    """A step's result by row of the step; the last three are None unless log-probabilities were asked for."""

    tokens: jax.Array
    logprob: jax.Array | None
    top_ids: jax.Array | None
    top_logprobs: jax.Array | None


def admit(
    state: EngineState, row: jax.Array, reserve: jax.Array, settings: dict[str, jax.Array]
) -> EngineState:
    """Gives a row's pages back, takes pages for `reserve` tokens and sets its sampling limits."""
    mine = jnp.arange(state.seq_lens.shape[0], dtype=jnp.int32) == row
    table = state.table.free(mine)
    table = table.append(jnp.zeros_like(state.seq_lens), jnp.where(mine, reserve, 0))
    fields = {name: getattr(state, name).at[row].set(value) for name, value in settings.items()}
    return replace(
        state, table=table, seq_lens=state.seq_lens.at[row].set(0), drawn=state.drawn.at[row].set(0), **fields
    )


def release(state: EngineState, row: jax.Array) -> EngineState:
    """Gives a row's pages back."""
    mine = jnp.arange(state.seq_lens.shape[0], dtype=jnp.int32) == row
    return replace(state, table=state.table.free(mine), seq_lens=jnp.where(mine, 0, state.seq_lens))


def prefill_chunk(
    model: FrozenModel,
    state: EngineState,
    tokens: jax.Array,
    row: jax.Array,
    num_new: jax.Array,
    is_last: jax.Array,
    *,
    vocab_limit: int,
    logprobs: bool,
) -> tuple[Drawn, EngineState]:
    """Appends `num_new` of `tokens` (a bucket, padded) to a row and draws the token after them.

    The draw counts where `is_last` (() int32, 0 or 1) says that the prompt ends with this chunk.
    """
    held = state.seq_lens[row][None]
    own = replace(state.table, pages=state.table.pages[row][None])
    meta = AttentionMetadata.extend(own, held, num_new[None], num_tokens=tokens.shape[0])
    logits, cache = prefill(model, tokens, state.cache, meta)
    state = replace(state, cache=cache, seq_lens=state.seq_lens.at[row].set(held[0] + num_new))
    return _draw(state, row[None], logits, is_last, vocab_limit, logprobs)


def decode_rows(
    model: FrozenModel, state: EngineState, rows: jax.Array, *, vocab_limit: int, logprobs: bool
) -> tuple[Drawn, EngineState]:
    """One token for each of `rows`; row numbers past the last are padding and change nothing."""
    total = state.seq_lens.shape[0]
    live = rows < total
    at = jnp.minimum(rows, total - 1)
    pages = jnp.where(live[:, None], state.table.pages[at], state.table.num_pages)
    held = jnp.where(live, state.seq_lens[at], 0)
    before = AttentionMetadata(
        positions=held,
        slot_mapping=None,
        page_table=replace(state.table, pages=pages),
        query_start_loc=jnp.arange(rows.shape[0] + 1, dtype=jnp.int32),
        seq_lens=held,
    )
    meta = advance(before, live)
    logits, cache = decode_step(model, state.last_tokens[at], state.cache, meta)
    seq_lens = state.seq_lens.at[rows].set(meta.seq_lens, mode="drop")
    state = replace(state, cache=cache, seq_lens=seq_lens)
    return _draw(state, rows, logits, jnp.int32(1), vocab_limit, logprobs)


def _draw(
    state: EngineState,
    rows: jax.Array,
    logits: jax.Array,
    counts: jax.Array,
    vocab_limit: int,
    logprobs: bool,
) -> tuple[Drawn, EngineState]:
    at = jnp.minimum(rows, state.seq_lens.shape[0] - 1)
    # Ids past the tokenizer's last exist only to round the vocabulary up; they are never drawn.
    usable = jnp.arange(logits.shape[1], dtype=jnp.int32)[None, :] < vocab_limit
    logits = jnp.where(usable, logits, -jnp.inf)

    def key_of(seed: jax.Array, count: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed[0]), seed[1]), count)

    tokens = sample(
        logits,
        jax.vmap(key_of)(state.seeds[at], state.drawn[at]),
        temperature=state.temperature[at],
        top_p=state.top_p[at],
        top_k=state.top_k[at],
        min_p=state.min_p[at],
    )
    state = replace(
        state,
        last_tokens=state.last_tokens.at[rows].set(tokens, mode="drop"),
        drawn=state.drawn.at[rows].add(counts, mode="drop"),
    )
    if not logprobs:
        return Drawn(tokens, None, None, None), state
    every = jax.nn.log_softmax(logits, axis=-1)
    top_logprobs, top_ids = jax.lax.top_k(every, min(TOP_LOGPROBS, every.shape[1]))
    chosen = jnp.take_along_axis(every, tokens[:, None], axis=-1)[:, 0]
    return Drawn(tokens, chosen, top_ids, top_logprobs), state


class Programs:
    """The jitted programs, and how many of each were compiled."""

    def __init__(self) -> None:
        self.admit = jax.jit(admit, donate_argnums=(0,))
        self.release = jax.jit(release, donate_argnums=(0,))
        static = ("vocab_limit", "logprobs")
        self.prefill: Callable[..., Any] = jax.jit(prefill_chunk, donate_argnums=(1,), static_argnames=static)
        self.decode: Callable[..., Any] = jax.jit(decode_rows, donate_argnums=(1,), static_argnames=static)

        # JAX shares compiled programs between engines of one process; each engine counts what is new.
        self._before = self._sizes()

    def compiled(self) -> dict[str, int]:
        """Programs compiled since this engine was made, by kind."""
        return {name: size - self._before[name] for name, size in self._sizes().items()}

    def _sizes(self) -> dict[str, int]:
        return {name: getattr(self, name)._cache_size() for name in ("admit", "release", "prefill", "decode")}


@functools.cache
def buckets(smallest: int, largest: int) -> tuple[int, ...]:
    """smallest, twice that, ... and largest: the sizes that programs are compiled for."""
    sizes = []
    size = smallest
    while size < largest:
        sizes.append(size)
        size *= 2
    return (*sizes, largest)


def bucket_of(count: int, sizes: tuple[int, ...]) -> int:
    """The smallest bucket that holds `count`."""
    return next(size for size in sizes if size >= count)
