"""Trace-time argument checks whose messages name op, argument, expected and got."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from custom_calls.errors import ShapeError

COMPUTE_DTYPES = ("float32", "bfloat16")
"""Element types of activations."""

CACHE_DTYPES = ("float32", "bfloat16", "float8_e4m3fn")
"""Element types of a latent cache row."""


def check_shape(op: str, name: str, array: Any, expected: Sequence[int | str]) -> None:
    """Raises `ShapeError` unless `array.shape` matches `expected`; strings stand for any size."""
    shape = tuple(array.shape)
    matches = len(shape) == len(expected) and all(
        isinstance(want, str) or want == got for want, got in zip(expected, shape, strict=True)
    )
    if not matches:
        wanted = "(" + ", ".join(str(size) for size in expected) + ")"
        raise ShapeError(f"{op}: argument '{name}': expected shape {wanted}, got {shape}")


def check_dtype(op: str, name: str, array: Any, allowed: Sequence[str]) -> None:
    """Raises `ShapeError` unless the dtype's name is one of `allowed`."""
    got = jnp.dtype(array.dtype).name
    if got not in allowed:
        raise ShapeError(f"{op}: argument '{name}': expected dtype {' or '.join(allowed)}, got {got}")


def check_range(op: str, name: str, start: int, size: int, limit: int, of: str) -> None:
    """Raises `ShapeError` unless [start, start + size) lies in [0, limit)."""
    if start < 0 or size < 1 or start + size > limit:
        raise ShapeError(
            f"{op}: argument '{name}': expected a range inside [0, {limit}) of {of}, "
            f"got [{start}, {start + size})"
        )


def check_choice(op: str, name: str, got: Any, allowed: Sequence[str]) -> None:
    """Raises `ShapeError` unless `got` is one of the named options."""
    if got not in allowed:
        raise ShapeError(f"{op}: argument '{name}': expected {' or '.join(map(repr, allowed))}, got {got!r}")
