"""Token ids as the step functions take them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from mla_jax.errors import ShapeError


def token_ids(op: str, tokens: Int[Array, "..."], expected: tuple[str, ...]) -> jax.Array:
    """`tokens` as int32; raises `ShapeError` unless they are integers with as many axes as `expected` names."""
    ids = jnp.asarray(tokens)
    if ids.ndim != len(expected) or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ShapeError(
            f"{op}: argument 'tokens': expected integers of shape ({', '.join(expected)}), got "
            f"{ids.dtype} of shape {ids.shape}"
        )
    return ids.astype(jnp.int32)
