"""The engine's jitted programs and the device state that they pass on.

Two kinds of program run the model: a prefill of one sequence's next chunk, for each token bucket, and a decode
step of some rows, for each row bucket. A sequence's prefill never shares a program run with another's,
and decode rows do not see each other, so results do not depend on who else is being served. The first token
after a prompt is drawn by a program of its own, so that copies of a sequence draw theirs from the same logits.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from mla_jax.cache import LatentCache
from mla_jax.checking import checked
from mla_jax.models import decode_step, prefill
from mla_jax.models.frozen import FrozenModel
from mla_jax.paging import AttentionMetadata, PageTable, advance
from mla_jax.pytree import pytree
from mla_jax.sampling import sample


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
    ),
    static=("checks",),
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
      checks: whether steps are checked, see `AttentionMetadata`.
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
    checks: bool = False

    @staticmethod
    def init(cache: LatentCache, rows: int, max_len: int, checks: bool = False) -> "EngineState":
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
            checks=checks,
        )


@pytree(data=("tokens", "logits"))
@dataclass(frozen=True)
class Drawn:
    """A step's result by row of the step: tokens (rows,), and the logits (rows, vocab) that they were drawn from."""

    tokens: jax.Array
    logits: jax.Array


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


def fork(state: EngineState, source: jax.Array, target: jax.Array, reserve: jax.Array) -> EngineState:
    """Makes an admitted row without pages continue from all tokens of `source`, with pages for `reserve` tokens."""
    length = state.seq_lens[source]
    table, cache = state.table.fork(state.cache, source, target, length)
    mine = jnp.arange(state.seq_lens.shape[0], dtype=jnp.int32) == target
    seq_lens = jnp.where(mine, length, state.seq_lens)
    table = table.append(seq_lens, jnp.where(mine, reserve - length, 0))
    return replace(state, cache=cache, table=table, seq_lens=seq_lens)


def prefill_chunk(
    model: FrozenModel, state: EngineState, tokens: jax.Array, row: jax.Array, num_new: jax.Array
) -> tuple[jax.Array, EngineState]:
    """Appends `num_new` of `tokens` (a bucket, padded) to a row; returns the logits (1, vocab) after them."""
    held = state.seq_lens[row][None]
    own = replace(state.table, pages=state.table.pages[row][None])
    meta = AttentionMetadata.extend(own, held, num_new[None], num_tokens=tokens.shape[0], checks=state.checks)
    logits, cache = prefill(model, tokens, state.cache, meta)
    return logits, replace(state, cache=cache, seq_lens=state.seq_lens.at[row].set(held[0] + num_new))


def draw_first(
    state: EngineState, row: jax.Array, logits: jax.Array, vocab_limit: jax.Array
) -> tuple[Drawn, EngineState]:
    """Draws a row's token from its prompt's logits (1, vocab)."""
    return _draw(state, row[None], logits, vocab_limit)


def decode_rows(
    model: FrozenModel, state: EngineState, rows: jax.Array, vocab_limit: jax.Array
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
        checks=state.checks,
    )
    meta = advance(before, live)
    logits, cache = decode_step(model, state.last_tokens[at], state.cache, meta)
    seq_lens = state.seq_lens.at[rows].set(meta.seq_lens, mode="drop")
    state = replace(state, cache=cache, seq_lens=seq_lens)
    return _draw(state, rows, logits, vocab_limit)


def _draw(
    state: EngineState, rows: jax.Array, logits: jax.Array, vocab_limit: jax.Array
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
        drawn=state.drawn.at[rows].add(1, mode="drop"),
    )
    return Drawn(tokens, logits), state


_KINDS = ("admit", "release", "fork", "prefill", "draw", "decode")


@functools.cache
def _model_steps(checks: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The jitted prefill and decode step; made once, so that engines share what is compiled."""
    jit_step: Callable[..., Any] = checked if checks else jax.jit
    return jit_step(prefill_chunk, donate_argnums=(1,)), jit_step(decode_rows, donate_argnums=(1,))


class Programs:
    """The jitted programs, and how many of each were compiled. With `checks` steps raise `CheckError`."""

    def __init__(self, checks: bool = False) -> None:
        self.admit = jax.jit(admit, donate_argnums=(0,))
        self.release = jax.jit(release, donate_argnums=(0,))
        self.fork = jax.jit(fork, donate_argnums=(0,))
        run_prefill, run_decode = _model_steps(checks)
        self.prefill: Callable[..., Any] = run_prefill
        self.draw: Callable[..., Any] = jax.jit(draw_first, donate_argnums=(0,))
        self.decode: Callable[..., Any] = run_decode

        # JAX shares compiled programs between engines of one process; each engine counts what is new.
        self._before = self._sizes()

    def compiled(self) -> dict[str, int]:
        """Programs compiled since this engine was made, by kind."""
        return {name: size - self._before[name] for name, size in self._sizes().items()}

    def _sizes(self) -> dict[str, int]:
        return {name: getattr(self, name)._cache_size() for name in _KINDS}


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
