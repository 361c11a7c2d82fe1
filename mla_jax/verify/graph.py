"""A step function as a graph of values: its jaxpr with every call, branch and loop opened up.

One `Node` is one result of one equation. Calls are inlined. A branch's result is a node whose inputs are the
results of all branches. A loop's body is taken once: what it carries enters as a node of its own, so that a
statement about the graph is one about each iteration.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

import custom_calls

INPUT, CONSTANT, CARRY, ELEMENT, BRANCHES = "input", "constant", "carry", "element", "branches"
"""Names of nodes that are no equation's: an argument of the step, a constant, what a loop carries into its body,
one element of what a scan walks over, and the results of a `cond`'s branches."""

_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def _folder(package: Any) -> str:
    return str(Path(package.__file__).parent) + os.sep


_JAX = tuple(map(_folder, (jax, jaxlib, flax)))
_LIBRARY = (*_JAX, str(Path(__file__).parents[1]) + os.sep, _folder(custom_calls))

# Scalars of these are computed, so that two ways to write a layer's number are one number.
_FOLDED: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "convert_element_type": lambda value: value,
    "copy": lambda value: value,
    "reshape": lambda value: value,
    "squeeze": lambda value: value,
    "broadcast_in_dim": lambda value: value,
    "clamp": lambda low, value, high: np.minimum(np.maximum(value, low), high),
}


@dataclass(eq=False)
class Node:
    """One value.

    Attributes:
      op: the primitive's name, or one of the names above.
      inputs: the values that it was computed from.
      index: which result of its equation.
      aval: shape and dtype.
      equation: an identity that the results of one equation share.
      params: the equation's.
      origin: the equation, or for an argument its name.
      where: the branches and loops around it, outermost first.
      value: of a known scalar.
    """

    op: str
    inputs: tuple["Node", ...] = ()
    index: int = 0
    aval: Any = None
    equation: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    origin: Any = None
    where: tuple[str, ...] = ()
    value: int | None = None

    @property
    def source(self) -> str:
        """Where in the user's program, "file:line (function)"; an argument's name; or ""."""
        if isinstance(self.origin, str) or self.origin is None:
            return self.origin or ""
        return source_of(self.origin)

    def __repr__(self) -> str:
        return self.op if self.value is None else f"{self.op} {self.value}"


class Graph:
    """All values of a traced function, in the order of their equations.

    Args:
      closed: the jaxpr.
      names: of the arguments, for messages.
    """

    def __init__(self, closed: ClosedJaxpr, names: Sequence[str] = ()) -> None:
        self.nodes: list[Node] = []
        self._scalars: dict[Any, Node] = {}
        self._equations = 0
        self._where: tuple[str, ...] = ()
        given = [
            self._new(Node(INPUT, aval=var.aval, origin=names[i] if i < len(names) else f"argument {i}"))
            for i, var in enumerate(closed.jaxpr.invars)
        ]
        self._run(closed.jaxpr, self._constants(closed), given)

    def _new(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def _constants(self, closed: ClosedJaxpr) -> list[Node]:
        return [
            self._constant(value, var.aval)
            for value, var in zip(closed.consts, closed.jaxpr.constvars, strict=True)
        ]

    def _constant(self, value: Any, aval: Any) -> Node:
        known = getattr(aval, "shape", None) == () and np.issubdtype(aval.dtype, np.integer)
        number = int(value) if known and not isinstance(value, jax.core.Tracer) else None
        if number is None:
            return self._new(Node(CONSTANT, aval=aval))
        return self._scalars.setdefault((CONSTANT, number), Node(CONSTANT, aval=aval, value=number))

    def _run(self, jaxpr: Jaxpr, consts: Sequence[Node], given: Sequence[Node]) -> list[Node]:
        env: dict[Var, Node] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, given, strict=True))

        def read(atom: Any) -> Node:
            return self._constant(atom.val, atom.aval) if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            results = self._equation(eqn, [read(atom) for atom in eqn.invars])
            env.update((var, node) for var, node in zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: JaxprEqn, inputs: list[Node]) -> list[Node]:
        name, params = eqn.primitive.name, eqn.params
        if name == "cond":
            return self._cond(eqn, inputs)
        if name == "while":
            return self._while(eqn, inputs)
        if name == "scan":
            return self._scan(eqn, inputs)
        for key in _INNER:
            inner = params.get(key)
            if isinstance(inner, ClosedJaxpr) and len(inner.jaxpr.invars) == len(inputs):
                return self._run(inner.jaxpr, self._constants(inner), inputs)
            if isinstance(inner, Jaxpr) and len(inner.invars) == len(inputs) and not inner.constvars:
                return self._run(inner, (), inputs)
        known = self._known_scalar(name, eqn, inputs)
        if known is not None:
            return [known]
        self._equations += 1
        return [
            self._new(
                Node(
                    name,
                    tuple(inputs),
                    index,
                    var.aval,
                    self._equations,
                    params,
                    eqn,
                    self._where,
                )
            )
            for index, var in enumerate(eqn.outvars)
        ]

    def _known_scalar(self, name: str, eqn: JaxprEqn, inputs: list[Node]) -> Node | None:
        """Integer scalars: computed where they are known, and the same node for the same expression."""
        if len(eqn.outvars) != 1:
            return None
        aval: Any = eqn.outvars[0].aval
        if getattr(aval, "shape", None) != () or not np.issubdtype(aval.dtype, np.integer):
            return None
        values = [node.value for node in inputs]
        if name in _FOLDED and None not in values:
            return self._constant(int(_FOLDED[name](*values)), aval)
        if name not in _FOLDED:
            return None
        if name in ("convert_element_type", "copy", "reshape", "squeeze", "broadcast_in_dim"):
            if getattr(inputs[0].aval, "shape", None) == ():
                return inputs[0]
            return None
        key = (name, *map(id, inputs))
        if key not in self._scalars:
            self._equations += 1
            self._scalars[key] = self._new(
                Node(name, tuple(inputs), 0, aval, self._equations, {}, eqn, self._where)
            )
        return self._scalars[key]

    def _inside(self, place: str, jaxpr: ClosedJaxpr, given: Sequence[Node]) -> list[Node]:
        before, self._where = self._where, (*self._where, place)
        try:
            return self._run(jaxpr.jaxpr, self._constants(jaxpr), given)
        finally:
            self._where = before

    def _cond(self, eqn: JaxprEqn, inputs: list[Node]) -> list[Node]:
        chosen, *given = inputs
        kind = "platform" if chosen.op == "platform_index" else "branch"
        results = [
            self._inside(f"{kind} {number}", branch, given)
            for number, branch in enumerate(eqn.params["branches"])
        ]
        self._equations += 1
        return [
            self._new(Node(BRANCHES, found, i, var.aval, self._equations, {}, eqn, self._where))
            if len({id(one) for one in found}) > 1
            else found[0]
            for i, (var, found) in enumerate(zip(eqn.outvars, zip(*results, strict=True), strict=True))
        ]

    def _entering(
        self, kind: str, inputs: Sequence[Node], variables: Sequence[Var], eqn: JaxprEqn
    ) -> list[Node]:
        """What a loop's body sees of operands that change from one iteration to the next."""
        return [
            self._new(Node(kind, (one,), i, var.aval, 0, {}, eqn, self._where))
            for i, (one, var) in enumerate(zip(inputs, variables, strict=True))
        ]

    def _while(self, eqn: JaxprEqn, inputs: list[Node]) -> list[Node]:
        n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        condition, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
        carry = self._entering(CARRY, inputs[n_cond + n_body :], body.jaxpr.invars[n_body:], eqn)
        self._inside("while condition", condition, [*inputs[:n_cond], *carry])
        return self._inside("while body", body, [*inputs[n_cond : n_cond + n_body], *carry])

    def _scan(self, eqn: JaxprEqn, inputs: list[Node]) -> list[Node]:
        n_consts, n_carry = _scan_counts(eqn.params)
        body, at = eqn.params["jaxpr"], n_consts + n_carry
        variables = body.jaxpr.invars
        carry = self._entering(CARRY, inputs[n_consts:at], variables[n_consts:at], eqn)
        elements = self._entering(ELEMENT, inputs[at:], variables[at:], eqn)
        return self._inside("scan body", body, [*inputs[:n_consts], *carry, *elements])


def _scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many it carries."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    # jax 0.11 keeps the operands' trees instead.
    consts, carry, _ = params["ft_in"].unpack()
    return len(list(consts.vals)), len(list(carry.vals))


def source_of(eqn: JaxprEqn) -> str:
    """The innermost line of the user's own program that led to an equation, or of this library's."""
    traceback = eqn.source_info.traceback
    frames: list[Any] = [] if traceback is None else list(traceback.frames)
    own = [frame for frame in frames if not frame.file_name.startswith(_LIBRARY)]
    ours = [frame for frame in frames if not frame.file_name.startswith(_JAX)]
    for frame in (own or ours)[:1]:
        return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return ""
