"""What a lowered step must call, derived from its jaxpr and a library's record, and what it does call.

The derivation does not ask the dispatcher: it reads the library's targets, so that the two can disagree.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from custom_calls.op import OPS
from custom_calls.registry import Library

_CALL = re.compile(r"custom_call @(mla_jax\.\w+\.v\d+)\(")


@dataclass(frozen=True)
class Calls:
    """Of a step: the custom-call targets, the ops that run natively, and the ops that a library lacks."""

    targets: frozenset[str]
    native: frozenset[str]
    lacking: frozenset[str]

    def __or__(self, other: "Calls") -> "Calls":
        return Calls(self.targets | other.targets, self.native | other.native, self.lacking | other.lacking)


NONE = Calls(frozenset(), frozenset(), frozenset())


def calls_in(text: str) -> frozenset[str]:
    """This project's custom-call targets in lowered text."""
    return frozenset(_CALL.findall(text))


def expected_calls(closed: ClosedJaxpr, library: Library) -> Calls:
    """What a traced step must call where `library` is all there is.

    An op of which the library has every target runs its native form, which may itself hand over to XLA; any other
    runs its reference, and so does every op that was asked to.
    """
    found = NONE
    for eqn in _equations(closed.jaxpr):
        if eqn.primitive.name == "ffi_call":
            found |= Calls(frozenset({eqn.params["target_name"]}), frozenset(), frozenset())
        elif eqn.primitive.name in OPS:
            found |= _op_calls(eqn, library)
    return found


def _op_calls(eqn: JaxprEqn, library: Library) -> Calls:
    static = dict(eqn.params)
    name, asked = eqn.primitive.name, static.pop("kernels")
    forms = OPS[name].forms(library)
    held = next((targets for targets in forms if library.targets.issuperset(targets)), None)
    own = NONE
    if asked != "reference":
        names = frozenset({name})
        own = (
            Calls(frozenset(), frozenset(), names) if held is None else Calls(frozenset(), names, frozenset())
        )
    avals = tuple((aval.shape, aval.dtype) for aval in (var.aval for var in eqn.invars))  # type: ignore[attr-defined]
    form = held if asked != "reference" else None
    body = OPS[name].reference if form is None else forms[form]
    return own | expected_calls(_traced(body, avals, tuple(sorted(static.items()))), library)


@lru_cache(maxsize=4096)
def _traced(
    body: Callable[..., Any], avals: tuple[tuple[Any, Any], ...], static: tuple[tuple[str, Any], ...]
) -> ClosedJaxpr:
    """An op's native form or reference as a jaxpr."""
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in avals]
    return jax.make_jaxpr(partial(body, **dict(static)))(*arrays)


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Those of a jaxpr and of all that it calls, branches to or loops over."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, ClosedJaxpr):
                    yield from _equations(inner.jaxpr)
                elif isinstance(inner, Jaxpr):
                    yield from _equations(inner)
