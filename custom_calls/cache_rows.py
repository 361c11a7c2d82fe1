"""Rows on their way into a cache: the cast to its dtype and the store into its slots, in plain jnp."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FP8_MAX = 448.0
"""Largest finite e4m3fn value; larger magnitudes saturate to it."""


def to_cache_dtype(values: jax.Array, dtype: Any, scale: jax.Array) -> jax.Array:
    """Values as a cache of `dtype` holds them; only float8 is divided by `scale`, in float32, and saturates."""
    if dtype == jnp.float8_e4m3fn:
        scaled = values.astype(jnp.float32) * (np.float32(1) / scale)
        values = jnp.clip(scaled, -FP8_MAX, FP8_MAX)
    return values.astype(dtype)


def from_cache_dtype(rows: jax.Array, scale: jax.Array) -> jax.Array:
    """What a cache's rows mean, in float32; only float8 rows are multiplied by `scale`."""
    values = rows.astype(jnp.float32)
    return values * scale if rows.dtype == jnp.float8_e4m3fn else values


def store(cache: jax.Array, rows: jax.Array, index: tuple[Any, ...]) -> jax.Array:
    """cache[index] = rows, where a row with a coordinate outside the cache is dropped.

    Coordinates stay separate: each is range-checked on its own, and their product can never leave 32 bits.
    """

    def plain(cache: jax.Array, rows: jax.Array) -> jax.Array:
        # Without wrap_negative_indices=False a slot of -1 would overwrite the last row of the cache.
        return cache.at[index].set(rows, mode="drop", wrap_negative_indices=False)

    def as_integers(cache: jax.Array, rows: jax.Array) -> jax.Array:
        """XLA:CPU scatters narrow floats through a float32 copy of the cache, which alters NaN in other rows.

        As integers it still copies (once, in the cache's own width): in place is the native kernel's doing.
        """
        unsigned = {1: jnp.uint8, 2: jnp.uint16}[cache.dtype.itemsize]
        codes = (jax.lax.bitcast_convert_type(array, unsigned) for array in (cache, rows))
        return jax.lax.bitcast_convert_type(plain(*codes), cache.dtype)

    if cache.dtype == jnp.float32:
        return plain(cache, rows)
    return jax.lax.platform_dependent(cache, rows, cpu=as_integers, default=plain)
