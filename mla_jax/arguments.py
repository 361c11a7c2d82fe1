"""What callers write for a number or a dtype: NumPy's and JAX's own spellings are as good as Python's."""

import operator
from typing import Any

import numpy as np


def as_integer(value: Any) -> int | None:
    """The int that `value` stands for, or None: whatever has `__index__` counts, but a bool is no number."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def dtype_name(value: Any) -> str | None:
    """The name of a dtype given as a string, as a NumPy dtype or as a scalar type; None for anything else.

    "bfloat16", `jnp.bfloat16`, `ml_dtypes.bfloat16` and `np.dtype("bfloat16")` are one dtype. A string is
    handed back as it is: which names are of use, the caller knows. None and Python's `float` are refused,
    though NumPy would read both as float64.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, np.dtype):
        return value.name
    if not isinstance(value, type):
        return None
    own = getattr(value, "dtype", None)  # jnp.bfloat16 and its like are types of JAX's own
    if isinstance(own, np.dtype):
        return own.name
    try:
        return np.dtype(value).name if issubclass(value, np.generic) else None
    except TypeError:  # of an abstract type, such as np.floating
        return None
