"""Assertions about compiled modules that a user's own step functions can be held to as well."""

import math
import re
from dataclasses import dataclass
from typing import Any

import jax

from mla_jax.cache import LatentCache


@dataclass(frozen=True)
class InPlaceReport:
    """What `assert_in_place` read off the compiled module, in bytes."""

    cache_bytes: int
    alias_bytes: int
    temp_bytes: int
    copies: tuple[str, ...]


def assert_in_place(jitted: Any, *args: Any, **kwargs: Any) -> InPlaceReport:
    """Asserts that a jitted step updates its latent cache in place.

    Reads the compiled module: every cache among the arguments must be aliased to a result (donated),
    no instruction may copy an array of a cache's shape, and the temporaries must be smaller than one
    cache.

    Args:
      jitted: a `jax.jit` function; donate the cache (`donate_argnames=("cache",)`).
      args, kwargs: arrays or `jax.ShapeDtypeStruct`s to compile for.

    Returns:
      The figures, for printing.

    Raises:
      AssertionError: naming what is copied, or how many bytes are not aliased.
      ValueError: no `LatentCache` among the arguments.
    """
    is_cache = lambda node: isinstance(node, LatentCache)  # noqa: E731
    caches = [c for c in jax.tree.leaves((args, kwargs), is_leaf=is_cache) if is_cache(c)]
    if not caches:
        raise ValueError("assert_in_place: expected a LatentCache among the arguments, got none")
    compiled = jitted.lower(*args, **kwargs).compile()
    memory = compiled.memory_analysis()
    pools = [cache.kv for cache in caches]
    cache_bytes = sum(pool.size * pool.dtype.itemsize for pool in pools)
    copies = tuple(line for pool in pools for line in _copies_of(compiled.as_text(), pool))
    report = InPlaceReport(cache_bytes, memory.alias_size_in_bytes, memory.temp_size_in_bytes, copies)
    if copies:
        raise AssertionError("the compiled step copies the cache:\n  " + "\n  ".join(copies))
    if report.alias_bytes < cache_bytes:
        raise AssertionError(
            f"the compiled step aliases {report.alias_bytes} bytes, the cache has {cache_bytes}: is it donated?"
        )
    smallest = min(pool.size * pool.dtype.itemsize for pool in pools)
    if report.temp_bytes >= smallest:
        raise AssertionError(
            f"the compiled step needs {report.temp_bytes} bytes of temporaries, the cache has {smallest}; "
            "compile for a larger cache if these are activations"
        )
    return report


_HLO_DTYPE = {"float32": "f32", "bfloat16": "bf16", "float8_e4m3fn": "f8e4m3fn"}


def _copies_of(hlo: str, pool: jax.Array) -> list[str]:
    """Copy instructions whose result has as many elements of the pool's type as the pool.

    Any other instruction that materialised a second pool (a fusion, a conversion) would need a
    temporary of its size, which the caller checks; a fused scatter into the pool itself needs none.
    """
    found = []
    kind = _HLO_DTYPE[pool.dtype.name]
    pattern = re.compile(rf"= \(?{kind}\[([0-9,]*)\].* (copy|copy-start)\(")
    for line in hlo.splitlines():
        match = pattern.search(line)
        if match is not None and math.prod(map(int, filter(None, match.group(1).split(",")))) == pool.size:
            found.append(line.strip())
    return found
