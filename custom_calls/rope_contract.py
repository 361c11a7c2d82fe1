"""What the ops that rotate have in common: the names of the pairing and the rotation in plain jnp."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from custom_calls.errors import LayoutError

RopeLayout = Literal["interleaved", "half"]
LAYOUT_CODE: dict[RopeLayout, int] = {"interleaved": 0, "half": 1}


def check_rope_layout(op: str, layout: Any) -> None:
    """Raises `LayoutError` unless `layout` names one of the two pairings."""
    if layout not in LAYOUT_CODE:
        raise LayoutError(f"{op}: argument 'layout': expected 'interleaved' or 'half', got {layout!r}")


def rotate(values: jax.Array, cos: jax.Array, sin: jax.Array, layout: RopeLayout) -> jax.Array:
    """RoPE over the last axis P in float32; cos and sin have shape (..., P / 2)."""
    half = values.shape[-1] // 2
    if layout == "half":
        first, second = values[..., :half], values[..., half:]
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    pairs = values.reshape(*values.shape[:-1], half, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    return jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1).reshape(values.shape)
