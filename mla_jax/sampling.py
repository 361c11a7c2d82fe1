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
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    limits = {name: _per_row(name, value, rows, vocab) for name, value in given.items()}
    usable = functools.reduce(operator.and_, (LIMIT_RANGES[name][1](value) for name, value in limits.items()))
    values = logits.astype(jnp.float32)
    greedy = jnp.argmax(values, axis=-1).astype(jnp.int32)
    warm = limits["temperature"] > 0
    # Differences to the maximum, so that a tiny temperature overflows to -inf and never to a tie at +inf.
    peak = jnp.max(values, axis=-1, keepdims=True)
    divisor = jnp.maximum(limits["temperature"], jnp.finfo(jnp.float32).tiny)
    scaled = (values - peak) / jnp.where(warm, divisor, jnp.float32(1))[:, None]
    limited = (limits["top_p"] < 1) | (limits["top_k"] > 0) | (limits["min_p"] > 0)

    # Sorting a vocabulary costs far more than anything else here: only rows that need it pay for it. A
    # row's draw is the same on either path, so that it does not depend on the rows around it.
    def draw() -> jax.Array:
        noise = _gumbel(key, rows, vocab)

        def unlimited() -> jax.Array:
            return jnp.argmax(scaled + noise, axis=-1).astype(jnp.int32)

        return jax.lax.cond(jnp.any(warm & limited), lambda: _draw_limited(scaled, noise, limits), unlimited)

    sampled = jax.lax.cond(jnp.any(warm), draw, lambda: greedy)
    # NaN anywhere, or no finite maximum: there is no most likely token, and 0 must not pass for one.
    answerable = jnp.isfinite(peak[:, 0]) & usable
    return jnp.where(answerable, jnp.where(warm, sampled, greedy), jnp.int32(-1))


def _draw_limited(scaled: jax.Array, noise: jax.Array, limits: dict[str, jax.Array]) -> jax.Array:
    vocab = scaled.shape[1]
    order = jnp.argsort(scaled, axis=-1, descending=True, stable=True)
    ranked = jnp.take_along_axis(scaled, order, axis=-1)
    rank = jnp.arange(vocab, dtype=jnp.int32)[None, :]
    top_k = jnp.where(limits["top_k"] > 0, limits["top_k"], vocab)[:, None]
    probability = jax.nn.softmax(jnp.where(rank < top_k, ranked, -jnp.inf), axis=-1)
    likely = probability >= limits["min_p"][:, None] * probability[:, :1]
    probability = jnp.where(likely, probability, jnp.float32(0))
    probability = probability / jnp.sum(probability, axis=-1, keepdims=True)
    before = jnp.cumsum(probability, axis=-1) - probability
    kept = (probability > 0) & (before < limits["top_p"][:, None])
    # A limit that is off keeps everything, however small its probability has become.
    off = (limits["top_p"] >= 1) & (limits["top_k"] <= 0) & (limits["min_p"] <= 0)
    kept = kept | (rank == 0) | off[:, None]
    noisy = jnp.where(kept, ranked + jnp.take_along_axis(noise, order, axis=-1), -jnp.inf)
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


def _gumbel(key: jax.Array, rows: int, vocab: int) -> jax.Array:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # an old-style uint32 key
    if key.shape == ():
        return jax.random.gumbel(key, (rows, vocab), jnp.float32)
    if key.shape != (rows,):
        raise ShapeError(f"sample: argument 'key': expected one key or {rows} keys, got shape {key.shape}")
    return jax.vmap(lambda one: jax.random.gumbel(one, (vocab,), jnp.float32))(key)
