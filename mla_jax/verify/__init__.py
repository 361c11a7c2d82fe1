"""Proof that a step function rotates every query and key once and stores every row once.

`check(step, *args)` traces a function, its own steps as well as a user's, and follows the data backwards from every
attention equation through calls, branches, loops, `shard_map` and platform-dependent code to the projections.

What is shown: in every path through the step, each query and key that reaches an attention op of this library was
rotated by exactly one of its rotating ops, queries and keys at the same positions and in the same layout, and the
pool that attention reads was written once for its layer since the step (or the loop's iteration) began. What is
not: whether positions and slots are the right ones (see `AttentionMetadata`), nor what equations do that are not
this library's. Of these, moves, choices, norms, arithmetic with values that do not depend on positions pass; any
other on the way from a projection to attention is listed as a warning, and with strict=True refused.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax

from mla_jax.errors import MlaJaxError
from mla_jax.verify.graph import Graph
from mla_jax.verify.proof import AttentionReport, Finding, Proof

__all__ = ["AttentionReport", "Finding", "VerificationError", "check", "format_report", "report"]


class VerificationError(MlaJaxError):
    """A step rotates or stores not exactly once; the message names the equations and their source lines."""


def report(step: Callable[..., Any], *args: Any, **kwargs: Any) -> list[AttentionReport]:
    """What the proof finds, one entry an attention equation; nothing is run.

    Args:
      step: any function that JAX can trace, jitted or not.
      args, kwargs: its arguments: arrays or `jax.ShapeDtypeStruct`s in their pytrees.
    """
    closed = jax.make_jaxpr(step)(*args, **kwargs)
    return Proof(Graph(closed, _argument_names(step, args, kwargs))).reports()


def _argument_names(step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Of every array, such as "meta.page_table.pages", in the order in which JAX flattens them."""
    try:
        parameters = list(inspect.signature(step).parameters.values())
    except (TypeError, ValueError):  # a function whose signature cannot be read
        parameters = []
    named = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    named += [f"argument {i}" for i in range(len(named), len(args))]
    paths = [
        (jax.tree_util.GetAttrKey(named[i]), *path)
        for i, one in enumerate(args)
        for path, _ in jax.tree_util.tree_flatten_with_path(one)[0]
    ]
    paths += [path for path, _ in jax.tree_util.tree_flatten_with_path(kwargs)[0]]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]


def check(step: Callable[..., Any], *args: Any, strict: bool = False, **kwargs: Any) -> list[AttentionReport]:
    """`report`, refusing what is not proven.

    Args:
      step, args, kwargs: as for `report`.
      strict: warnings are refused too.

    Raises:
      VerificationError: every wrong count, and with `strict` every warning, with the source line; or no
        attention of this library was found.
    """
    found = report(step, *args, **kwargs)
    if not found:
        raise VerificationError("verify: the function has no attention of mla_jax: there is nothing to prove")
    wrong = [
        f"{_place(one)}: {finding}"
        for one in found
        for finding in one.findings
        if strict or finding.kind == "error"
    ]
    if wrong:
        raise VerificationError("verify: " + "; ".join(dict.fromkeys(wrong)))
    return found


def format_report(found: list[AttentionReport]) -> str:
    """One line an attention, and one a finding, as text."""
    lines = [f"{'attention':44} {'queries':>8} {'keys':>8} {'stored':>8}  rotation"]
    for one in found:
        stored = _counts(one.store_count) if one.store_count else "-"
        rotation = f"{'/'.join(sorted(one.layouts))} at {', '.join(sorted(one.positions))}"
        lines.append(
            f"{_place(one):44} {_counts(one.rope_count):>8} {_counts(one.key_rope_count):>8} {stored:>8}  {rotation}"
        )
        lines += [f"  {finding.kind}: {finding}" for finding in one.findings]
    return "\n".join(lines)


def _place(one: AttentionReport) -> str:
    layer = "" if one.layer is None else f"layer {one.layer} "
    where = f" in {', '.join(one.where)}" if one.where else ""
    return f"{layer}{one.op.removeprefix('mla_jax.')}{where}"


def _counts(counts: frozenset[int]) -> str:
    return " or ".join(map(str, sorted(counts)))
