"""The engine's jitted programs and the device state that they pass on.

Two kinds of program run the model: a prefill of one sequence's next chunk, for each token bucket, and a block of
decode steps of some rows, for each row bucket. A row that drew its last token stops on the device: it is padding in
the steps that follow, in its block and in the next, which was sent before anyone looked. A sequence's prefill never
shares a program run with another's, and decode rows do not see each other, so results do not depend on who else is
being served. The first token after a prompt is drawn by a program of its own, so that copies of a sequence draw
theirs from the same logits.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mla_jax.cache import LatentCache
from mla_jax.checking import checked
from mla_jax.models import decode_steps, prefill
from mla_jax.models.frozen import FrozenModel
from mla_jax.paging import AttentionMetadata, PageTable
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
        "left",
        "stop_bits",
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
      left: (rows,) tokens that each row may still draw; 0 for a row that ended or is not in use.
      stop_bits: (rows, words) uint32, one bit a token id: those that end the row, see `stop_bits`.
      temperature, top_p, top_k, min_p: (rows,) sampling limits.
      checks: whether steps are checked, see `AttentionMetadata`.
    """

    cache: LatentCache
    table: PageTable
    seq_lens: jax.Array
    last_tokens: jax.Array
    seeds: jax.Array
    drawn: jax.Array
    left: jax.Array
    stop_bits: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    top_k: jax.Array
    min_p: jax.Array
    checks: bool = False

    @staticmethod
    def init(
        cache: LatentCache, rows: int, max_len: int, vocab_size: int, checks: bool = False
    ) -> "EngineState":
        """No row in use."""
        floats, ints = jnp.zeros((rows,), jnp.float32), jnp.zeros((rows,), jnp.int32)
        return EngineState(
            cache=cache,
            table=PageTable.empty(cache, rows, max_len),
            seq_lens=ints,
            last_tokens=ints + 0,
            seeds=jnp.zeros((rows, 2), jnp.uint32),
            drawn=ints + 0,
            left=ints + 0,
            stop_bits=jnp.zeros((rows, len(stop_bits((), vocab_size))), jnp.uint32),
            temperature=floats,
            top_p=floats + 1,
            top_k=ints + 0,
            min_p=floats + 0,
            checks=checks,
        )


def stop_bits(token_ids: Iterable[int], vocab_size: int) -> np.ndarray:
    """(words,) uint32: bit t % 32 of word t // 32 is set for each of `token_ids` that can be drawn."""
    flags = np.zeros((-(-vocab_size // 32) * 32,), np.uint8)
    flags[[token for token in token_ids if 0 <= token < vocab_size]] = 1
    return np.packbits(flags, bitorder="little").view("<u4").astype(np.uint32)


@pytree(data=("tokens", "logits"))
@dataclass(frozen=True)
class Drawn:
    """What a program drew.

    Attributes:
      tokens: (steps, rows) by row of the program; `NO_TOKEN` for a row that took no step, -1 for one whose logits
        are not numbers, which ended with it.
      logits: (rows, vocab) that the last step's tokens were drawn from.
    """

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
    return replace(
        state,
        table=state.table.free(mine),
        seq_lens=jnp.where(mine, 0, state.seq_lens),
        left=jnp.where(mine, 0, state.left),
    )


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
    rows = row[None]
    usable = _usable(logits, vocab_limit)
    drawing = _Drawing.of(state, rows)
    tokens, drawing = drawing.draw(usable, jnp.ones((1,), jnp.bool_))
    return Drawn(tokens[None], usable), drawing.store(state, rows, tokens)


def decode_rows(
    model: FrozenModel,
    state: EngineState,
    rows: jax.Array,
    vocab_limit: jax.Array,
    limit: jax.Array | None = None,
    *,
    num_steps: int = 1,
) -> tuple[Drawn, EngineState]:
    """Up to `num_steps` tokens, and at most `limit`, for each of `rows` that has not ended.

    Row numbers past the last are padding and change nothing. Nor do rows that ended.
    """
    total = state.seq_lens.shape[0]
    live = rows < total
    at = jnp.minimum(rows, total - 1)
    pages = jnp.where(live[:, None], state.table.pages[at], state.table.num_pages)
    held = jnp.where(live, state.seq_lens[at], 0)
    drawing = _Drawing.of(state, rows)

    def draw(
        logits: jax.Array, active: jax.Array, carry: tuple[_Drawing, jax.Array]
    ) -> tuple[jax.Array, jax.Array, tuple[_Drawing, jax.Array]]:
        usable = _usable(logits, vocab_limit)
        tokens, after = carry[0].draw(usable, active)
        return tokens, after.left > 0, (after, usable)

    decoded = decode_steps(
        model,
        state.last_tokens[at],
        state.cache,
        AttentionMetadata.held(replace(state.table, pages=pages), held, checks=state.checks),
        draw,
        (drawing, jnp.zeros((rows.shape[0], model.config.vocab_size), jnp.float32)),
        num_steps=num_steps,
        limit=limit,
        active=live & (drawing.left > 0),
        reserved=True,
    )
    drawing, logits = decoded.carry
    seq_lens = state.seq_lens.at[rows].set(decoded.meta.seq_lens, mode="drop")
    state = drawing.store(replace(state, cache=decoded.cache, seq_lens=seq_lens), rows, decoded.next_tokens)
    return Drawn(decoded.tokens, logits), state


def _usable(logits: jax.Array, vocab_limit: jax.Array) -> jax.Array:
    """Ids past the tokenizer's last exist only to round the vocabulary up; they are never drawn."""
    return jnp.where(jnp.arange(logits.shape[1], dtype=jnp.int32)[None, :] < vocab_limit, logits, -jnp.inf)


@pytree(data=("drawn", "left", "settings", "stop_bits"))
@dataclass(frozen=True)
class _Drawing:
    """What a program's rows need for drawing, gathered once a program.

    Attributes:
      drawn, left: as in `EngineState`, by row of the program.
      settings: seeds and sampling limits of the rows; stop_bits: theirs.
    """

    drawn: jax.Array
    left: jax.Array
    settings: dict[str, jax.Array]
    stop_bits: jax.Array

    @staticmethod
    def of(state: EngineState, rows: jax.Array) -> "_Drawing":
        at = jnp.minimum(rows, state.seq_lens.shape[0] - 1)
        names = ("seeds", "temperature", "top_p", "top_k", "min_p")
        settings = {name: getattr(state, name)[at] for name in names}
        return _Drawing(state.drawn[at], state.left[at], settings, state.stop_bits[at])

    def draw(self, logits: jax.Array, active: jax.Array) -> tuple[jax.Array, "_Drawing"]:
        """A token for every row; only those of `active` rows count, and may be their last."""

        def key_of(seed: jax.Array, count: jax.Array) -> jax.Array:
            return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed[0]), seed[1]), count)

        limits = dict(self.settings)
        keys = jax.vmap(key_of)(limits.pop("seeds"), self.drawn)
        # Rows that do not count are greedy, which costs least.
        limits["temperature"] = jnp.where(active, limits["temperature"], 0)
        tokens = sample(logits, keys, **limits)
        known = jnp.maximum(tokens, 0)
        word = jnp.take_along_axis(self.stop_bits, (known // 32)[:, None], axis=1)[:, 0]
        stops = (tokens < 0) | ((word >> (known % 32).astype(jnp.uint32)) & 1 == 1)
        left = jnp.where(stops, 0, self.left - 1)
        return tokens, replace(
            self,
            drawn=self.drawn + active.astype(jnp.int32),
            left=jnp.where(active, left, self.left),
        )

    def store(self, state: EngineState, rows: jax.Array, tokens: jax.Array) -> EngineState:
        """`state` after these draws, with what the rows feed next; padding is dropped."""
        return replace(
            state,
            last_tokens=state.last_tokens.at[rows].set(tokens, mode="drop"),
            drawn=state.drawn.at[rows].set(self.drawn, mode="drop"),
            left=state.left.at[rows].set(self.left, mode="drop"),
        )


_KINDS = ("admit", "release", "fork", "prefill", "draw", "decode")


@functools.cache
def _model_steps(checks: bool, num_steps: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The jitted prefill and block of decode steps; made once, so that engines share what is compiled."""
    jit_step: Callable[..., Any] = checked if checks else jax.jit
    decode = functools.wraps(decode_rows)(functools.partial(decode_rows, num_steps=num_steps))
    return jit_step(prefill_chunk, donate_argnums=(1,)), jit_step(decode, donate_argnums=(1,))


class Programs:
    """The jitted programs, and how many of each were compiled. With `checks` steps raise `CheckError`."""

    def __init__(self, checks: bool = False, num_steps: int = 1) -> None:
        self.admit = jax.jit(admit, donate_argnums=(0,))
        self.release = jax.jit(release, donate_argnums=(0,))
        self.fork = jax.jit(fork, donate_argnums=(0,))
        run_prefill, run_decode = _model_steps(checks, num_steps)
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
