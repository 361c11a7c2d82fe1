"""Sampling from logits: temperature, top-k, top-p, min-p; one row independent of the others."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mla_jax.checking import known
from mla_jax.errors import RequestError, ShapeError


def sample(
    logits: Float[Array, "rows vocab"],
    key: jax.Array,
    *,
    temperature: Any,
    top_p: Any = 1.0,
    top_k: Any = 0,
    min_p: Any = 0.0,
) -> Int[Array, " rows"]:
    """Draws one token id a row.

    Temperature is applied first; then only the `top_k` most likely tokens stay, then those with at least
    `min_p` times the best one's probability, then the smallest set whose probability reaches `top_p`.
    The most likely token always stays. Each limit is a number, or an array with one number a row.

    Args:
      logits: (rows, vocab) float.
      key: one `jax.random.key` for all rows, or (rows,) keys, which make a row's draw independent of
        the rows around it.
      temperature: finite, >= 0; 0 takes the most likely token (the lowest id among equals) and ignores the
        key.
      top_p: in (0, 1]; 1 is off. top_k: an integer >= 0; 0 is off. min_p: in [0, 1]; 0 is off.

    Returns:
      (rows,) int32; -1 for a row without a finite maximum (NaN, or nothing but -inf), and for a row with a
      limit outside its range that could not be refused, because inside jit its value is not known.

    Raises:
      ShapeError: logits or a limit of the wrong shape or dtype.
      RequestError: a limit outside its range, where its value is known.
    """
    if logits.ndim != 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ShapeError(
            f"sample: argument 'logits': expected floats of shape (rows, vocab), got {logits.dtype} of "
            f"shape {logits.shape}"
        )
    rows, vocab = logits.shape
    key = _typed(key)
    if key.shape not in ((), (rows,)):
        raise ShapeError(f"sample: argument 'key': expected one key or {rows} keys, got shape {key.shape}")
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    limits = {name: _per_row(name, value, rows, vocab) for name, value in given.items()}
    usable = functools.reduce(operator.and_, (LIMIT_RANGES[name][1](value) for name, value in limits.items()))
    # As many as there are is all of them.
    limits["top_k"] = jnp.where(limits["top_k"] >= vocab, 0, limits["top_k"])
    values = logits.astype(jnp.float32)
    greedy = _likeliest(values)
    warm = limits["temperature"] > 0
    # Differences to the maximum, so that a tiny temperature overflows to -inf and never to a tie at +inf.
    peak = jnp.max(values, axis=-1, keepdims=True)
    divisor = jnp.maximum(limits["temperature"], jnp.finfo(jnp.float32).tiny)
    scaled = (values - peak) / jnp.where(warm, divisor, jnp.float32(1))[:, None]
    sampled = jax.lax.cond(jnp.any(warm), lambda: _draw(scaled, key, warm, limits), lambda: greedy)
    # NaN anywhere, or no finite maximum: there is no most likely token, and 0 must not pass for one.
    answerable = jnp.isfinite(peak[:, 0]) & usable
    return jnp.where(answerable, jnp.where(warm, sampled, greedy), jnp.int32(-1))


_GROUP = 256
"""Tokens of a group: a row is looked through in two steps, group by group and then inside one of them."""

_FEW = 64
"""Up to this top_k a row's likeliest tokens are picked out; beyond it the vocabulary is sorted."""

_TRIALS = 8
"""Draws that a row may lose to its limits before the vocabulary is sorted for it."""


def _likeliest(values: jax.Array) -> jax.Array:
    """argmax of every row, the lowest index among equals. XLA:CPU's own looks at one number at a time."""
    groups = _grouped(values)
    best = jnp.argmax(jnp.max(groups, axis=-1), axis=-1)
    own = jnp.take_along_axis(groups, best[:, None, None], axis=1)[:, 0]
    return (best * groups.shape[-1] + jnp.argmax(own, axis=-1)).astype(jnp.int32)


def _grouped(values: jax.Array) -> jax.Array:
    """(rows, vocab) as (rows, groups, group), with -inf behind the last token."""
    rows, vocab = values.shape
    width = min(_GROUP, vocab)
    filled = jnp.pad(values, ((0, 0), (0, -vocab % width)), constant_values=-jnp.inf)
    return filled.reshape(rows, filled.shape[1] // width, width)


def _draw(scaled: jax.Array, key: jax.Array, warm: jax.Array, limits: dict[str, jax.Array]) -> jax.Array:
    """A token for every warm row, in one of three ways.

    The way is the row's own matter, and whatever costs more than a look at the vocabulary is done only if a row needs
    it: a row's draw does not depend on the rows around it, but the time does.
    """
    none = jnp.zeros(scaled.shape[:1], jnp.int32)
    few = (limits["top_k"] > 0) & (limits["top_k"] <= _FEW)

    def among_few() -> jax.Array:
        ranked, order = jax.lax.top_k(scaled, min(_FEW, scaled.shape[1]))
        return _draw_ranked(ranked, order, _gumbel(key, *ranked.shape), limits)

    def among_all() -> jax.Array:
        order = jnp.argsort(scaled, axis=-1, descending=True, stable=True)
        ranked = jnp.take_along_axis(scaled, order, axis=-1)
        return _draw_ranked(ranked, order, _gumbel(key, *ranked.shape), limits)

    drawn = jax.lax.cond(jnp.any(warm & few), among_few, lambda: none)
    tried, won = _draw_by_trial(scaled, key, warm & (limits["top_k"] <= 0), limits)
    drawn = jnp.where(won, tried, drawn)
    left = warm & ~few & ~won
    return jnp.where(left, jax.lax.cond(jnp.any(left), among_all, lambda: none), drawn)


def _draw_by_trial(
    scaled: jax.Array, key: jax.Array, asked: jax.Array, limits: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Draws of the `asked` rows, and which of them kept to top_p and min_p, from the whole distribution.

    A draw outside the limits is made again. What comes in the end is distributed as within them, and no row has to be
    sorted: whether a token is within top_p is seen from the probability of all that are more likely than it.
    """
    rows, vocab = scaled.shape
    groups = _grouped(scaled)
    # The largest of log-probabilities plus Gumbel noise is a draw: of a group first, then of a token in it.
    masses = jnp.log(jnp.sum(jnp.exp(groups), axis=-1))
    limited = (limits["top_p"] < 1) | (limits["min_p"] > 0)
    ids = jnp.arange(vocab, dtype=jnp.int32)[None, :]

    def within(tokens: jax.Array) -> jax.Array:
        own = jnp.take_along_axis(scaled, tokens[:, None], axis=1)
        probability = jnp.exp(scaled)
        likely = jnp.where(probability >= limits["min_p"][:, None], probability, jnp.float32(0))
        ahead = (scaled > own) | ((scaled == own) & (ids < tokens[:, None]))
        before = jnp.sum(jnp.where(ahead, likely, jnp.float32(0)), axis=-1)
        enough = limits["top_p"] * jnp.sum(likely, axis=-1)
        return (jnp.exp(own[:, 0]) >= limits["min_p"]) & ((before < enough) | (limits["top_p"] >= 1))

    def trial(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        number, tokens, pending = state
        noise = _gumbel(_folded(key, number), rows, groups.shape[1] + groups.shape[2])
        group = jnp.argmax(masses + noise[:, : groups.shape[1]], axis=-1)
        own = jnp.take_along_axis(groups, group[:, None, None], axis=1)[:, 0]
        inside = jnp.argmax(own + noise[:, groups.shape[1] :], axis=-1)
        new = (group * groups.shape[2] + inside).astype(jnp.int32)
        won = jax.lax.cond(
            jnp.any(pending & limited), lambda: ~limited | within(new), lambda: jnp.ones((rows,), jnp.bool_)
        )
        return number + 1, jnp.where(pending, new, tokens), pending & ~won

    start: tuple[jax.Array, ...] = (jnp.int32(0), jnp.zeros((rows,), jnp.int32), asked)
    _, tokens, pending = jax.lax.while_loop(
        lambda state: (state[0] < _TRIALS) & jnp.any(state[2]), trial, start
    )
    return tokens, asked & ~pending


def _draw_ranked(
    ranked: jax.Array, order: jax.Array, noise: jax.Array, limits: dict[str, jax.Array]
) -> jax.Array:
    """Draws among tokens in descending order: all, or as many as top_k keeps."""
    rank = jnp.arange(ranked.shape[1], dtype=jnp.int32)[None, :]
    top_k = jnp.where(limits["top_k"] > 0, limits["top_k"], ranked.shape[1])[:, None]
    probability = jax.nn.softmax(jnp.where(rank < top_k, ranked, -jnp.inf), axis=-1)
    likely = probability >= limits["min_p"][:, None] * probability[:, :1]
    probability = jnp.where(likely, probability, jnp.float32(0))
    probability = probability / jnp.sum(probability, axis=-1, keepdims=True)
    before = jnp.cumsum(probability, axis=-1) - probability
    kept = (probability > 0) & (before < limits["top_p"][:, None])
    noisy = jnp.where(kept | (rank == 0), ranked + noise, -jnp.inf)
    drawn = jnp.argmax(noisy, axis=-1)
    return jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)


LIMIT_RANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    # Comparisons with NaN are false: NaN is outside every range.
    "temperature": ("finite numbers >= 0", lambda x: (x >= 0) & (x < float("inf"))),
    "top_p": ("numbers in (0, 1]", lambda x: (x > 0) & (x <= 1)),
    "top_k": ("integers >= 0", lambda x: x >= 0),
    "min_p": ("numbers in [0, 1]", lambda x: (x >= 0) & (x <= 1)),
}
"""What each limit of `sample` may be, in words and as a test of numbers or arrays."""


def _per_row(name: str, value: Any, rows: int, vocab: int) -> jax.Array:
    expected, in_range = LIMIT_RANGES[name]
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    kinds = (jnp.integer,) if name == "top_k" else (jnp.integer, jnp.floating)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        raise ShapeError(f"sample: argument '{name}': expected {expected}, got dtype {array.dtype}")
    if array.shape not in ((), (rows,)):
        raise ShapeError(
            f"sample: argument '{name}': expected a number or shape ({rows},), got shape {array.shape}"
        )
    if known(array):
        array = np.asarray(array)
        with np.errstate(over="ignore", under="ignore"):
            # More than the vocabulary is as good as all of it, and int32 can hold that.
            rounded = np.minimum(array, vocab) if name == "top_k" else array.astype(np.float32)
        wrong = array[~in_range(rounded)]
        if wrong.size:
            raise RequestError(f"sample: argument '{name}': expected {expected}, got {wrong.flat[0]}")
        array = rounded
    kind = jnp.int32 if name == "top_k" else jnp.float32
    return jnp.broadcast_to(jnp.asarray(array, kind), (rows,))


def _typed(key: jax.Array) -> jax.Array:
    """`key`, if need be made of an old-style uint32 key."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _folded(key: jax.Array, number: jax.Array) -> jax.Array:
    """Other keys for another number."""
    fold = jax.random.fold_in
    return fold(key, number) if key.shape == () else jax.vmap(lambda one: fold(one, number))(key)


def _gumbel(key: jax.Array, rows: int, count: int) -> jax.Array:
    """(rows, count) noise, of one key or of a key a row."""
    if key.shape == ():
        return jax.random.gumbel(key, (rows, count), jnp.float32)
    return jax.vmap(lambda one: jax.random.gumbel(one, (count,), jnp.float32))(key)
