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

    Reads the compiled module: every cache among the arguments must be aliased to a result (donated), no
    instruction may copy an array that has as many bytes as a cache, whatever its type or shape, and both the
    temporaries and the results that are not aliased must be smaller than one cache.

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
    cache_bytes = sum(cache.nbytes for cache in caches)
    smallest = min(cache.nbytes for cache in caches)
    copies = tuple(_copies(compiled.as_text(), smallest))
    report = InPlaceReport(cache_bytes, memory.alias_size_in_bytes, memory.temp_size_in_bytes, copies)
    if copies:
        raise AssertionError(
            f"the compiled step copies the cache, or an array of its {smallest} bytes:\n  "
            + "\n  ".join(copies)
        )
    if report.alias_bytes < cache_bytes:
        raise AssertionError(
            f"the compiled step aliases {report.alias_bytes} bytes, the cache has {cache_bytes}: is it donated?"
        )
    if report.temp_bytes >= smallest:
        raise AssertionError(
            f"the compiled step needs {report.temp_bytes} bytes of temporaries, the cache has {smallest}; "
            "compile for a larger cache if these are activations"
        )
    fresh_bytes = memory.output_size_in_bytes - memory.alias_size_in_bytes
    if fresh_bytes >= smallest:
        raise AssertionError(
            f"the compiled step returns {fresh_bytes} bytes beside what it updates in place, the cache has "
            f"{smallest}; compile for a larger cache if these are results of its own"
        )
    return report


_COPY = re.compile(r"= \(?([a-z][a-z0-9]*)\[([0-9,]*)\].* (?:copy|copy-start)\(")


def _copies(hlo: str, num_bytes: int) -> list[str]:
    """Copy instructions whose result has at least `num_bytes`, of any type: a bitcast hides no copy.

    Any other instruction that materialised a second pool (a fusion, a conversion) would need a temporary or a
    result of its size, which the caller checks; a fused scatter into the pool itself needs none.
    """
    found = []
    for line in hlo.splitlines():
        match = _COPY.search(line)
        if match is not None:
            count = math.prod(map(int, filter(None, match.group(2).split(","))))
            if count * _bits(match.group(1)) >= 8 * num_bytes:
                found.append(line.strip())
    return found


def _bits(hlo_type: str) -> int:
    """Width of an HLO element type: f32, bf16, u8, s4, f8e4m3fn, c64, ...; pred is a byte, a token nothing."""
    if hlo_type == "pred":
        return 8
    width = re.match(r"[a-z]+([0-9]+)", hlo_type)
    return int(width.group(1)) if width else 0
