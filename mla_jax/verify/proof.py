"""The proof: for every attention, how often its queries and keys were rotated and its rows stored."""

from collections.abc import Iterator
from dataclasses import dataclass

from mla_jax.verify.graph import BRANCHES, CARRY, CONSTANT, ELEMENT, INPUT, Graph, Node

# Operands of the ops, by name.
_APPEND = {
    name: i
    for i, name in enumerate(
        ("q", "kv_a", "norm_weight", "cos", "sin", "positions", "slots", "kv", "layer", "scales")
    )
}
_APPENDS = ("mla_jax.rope_append_latent",)
_ROWS = ("mla_jax.rope_latent_rows",)
_ROTATIONS = _APPENDS + _ROWS
_POOL_ATTENTION = "mla_jax.mla_attention"
_OWN_ATTENTION = "mla_jax.mla_attention_expanded"
_ATTENTION = (_POOL_ATTENTION, _OWN_ATTENTION)

_PROJECTIONS = ("mla_jax.linear", "mla_jax.absorb", "mla_jax.expert_mlp", "dot_general", "ragged_dot")
_NORMS = ("mla_jax.rmsnorm", "mla_jax.fused_qk_rmsnorm")
# Each result follows from the operand of its number, and from weights.
_PAIRED = ("optimization_barrier", "mla_jax.fused_qk_rmsnorm")

# These move the values of one operand about and leave them as they are: their first operand's, but for
# `optimization_barrier`, whose results are its operands one by one.
_MOVES = (
    "reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "slice", "dynamic_slice", "gather",
    "convert_element_type", "copy", "split", "pad", "rev", "stop_gradient", "optimization_barrier",
    "sharding_constraint", "reduce_precision", "pvary", "pcast", "all_gather", "ppermute",
)  # fmt: skip
# A pool that went through one of these is no longer the pool.
_RESHAPED = ("slice", "pad", "rev")
# One of several values, place by place.
_CHOICES = {
    "select_n": slice(1, None),
    BRANCHES: slice(None),
    "concatenate": slice(None),
    "dynamic_update_slice": slice(0, 2),
    "scatter": slice(0, 3, 2),
}

_ARITHMETIC = (
    "mul", "div", "add", "sub", "add_any", "neg", "max", "min", "abs", "sign", "clamp", "round", "square", "sqrt",
    "rsqrt", "integer_pow", "reduce_sum", "reduce_max", "is_finite",
)  # fmt: skip

_SOURCES = (INPUT, CONSTANT, CARRY, ELEMENT)


@dataclass(frozen=True)
class Finding:
    """Something that the proof cannot let pass.

    Attributes:
      kind: "error": a count is wrong; "warning": an equation that the proof does not understand.
      message: what, in a sentence.
      source: the line of the program.
    """

    kind: str
    message: str
    source: str

    def __str__(self) -> str:
        return f"{self.message} [{self.source}]" if self.source else self.message


@dataclass(frozen=True)
class AttentionReport:
    """What was found out about one attention equation.

    Attributes:
      op: its name.
      layer: its layer, where that is a known number.
      where: the branches and loops around it.
      rope_count: of its queries; key_rope_count: of its keys; each a set, with one element if all paths agree.
      store_count: how often the step wrote this layer's rows before they are read; empty without a pool.
      layouts: of the tables that rotated; tables: where their cos and sin come from.
      positions, slots: where the positions and slots of the rotation come from.
      path: the equations between projection and attention that are not only moves.
      source: the line of the program.
      findings: see `Finding`.
    """

    op: str
    layer: int | None
    where: tuple[str, ...]
    rope_count: frozenset[int]
    key_rope_count: frozenset[int]
    store_count: frozenset[int]
    layouts: frozenset[str]
    tables: frozenset[str]
    positions: frozenset[str]
    slots: frozenset[str]
    path: tuple[str, ...]
    source: str
    findings: tuple[Finding, ...]


class Proof:
    """Data flow backwards from every attention of a graph.

    Args:
      graph: of the step.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._counts: dict[Node, frozenset[int]] = {}
        self._positional: set[Node] = self._position_sources()
        # The inputs of a node come before it.
        for node in graph.nodes:
            self._counts[node] = self._count(node)
            if self._is_positional(node):
                self._positional.add(node)

    def reports(self) -> list[AttentionReport]:
        """One a distinct attention equation, in program order."""
        return [self._report(node) for node in self._graph.nodes if node.op in _ATTENTION and node.index == 0]

    # How often a value was rotated

    def counts(self, node: Node) -> frozenset[int]:
        """How often a value was rotated since its projection, over all paths; empty for what is no query or key."""
        return self._counts.get(node, frozenset())

    def _count(self, node: Node) -> frozenset[int]:
        if node.op in _SOURCES:
            return frozenset()
        if node.op in _ROTATIONS:
            if node.index == 0:
                return _plus_one(self.counts(node.inputs[_APPEND["q"]]))
            own = _plus_one(self.counts(node.inputs[_APPEND["kv_a"]]))
            return own if node.op in _ROWS else own | self.counts(node.inputs[_APPEND["kv"]])
        if node.op.startswith(_PROJECTIONS):
            return frozenset({0})
        if node.op in _ATTENTION:
            return frozenset()
        if node.op in _CHOICES:
            found = [self.counts(one) for one in node.inputs[_CHOICES[node.op]]]
            whole = frozenset[int]().union(*found)
            # Where one way is a rotated value, a way that never was is one that was not rotated.
            return whole | {0} if whole and not all(found) else whole
        return frozenset[int]().union(*(self.counts(one) for one in _values(node)))

    # What the step wrote

    def _writes(self, pool: Node, layer: Node) -> tuple[frozenset[int], list[Node], list[Finding]]:
        """How often rows of `layer` were written on the way to `pool`, over all paths; by which; what else did."""
        writers: list[Node] = []
        findings: list[Finding] = []

        def walk(node: Node) -> frozenset[int]:
            written, unsure = 0, 0
            while node.op not in _SOURCES:
                if node.op in _APPENDS:
                    same = _same_layer(node.inputs[_APPEND["layer"]], layer)
                    if same is not False:
                        writers.append(node)
                        written += 1
                    if same is None:
                        unsure += 1
                        message = "a write and a read whose layers cannot be compared"
                        findings.append(Finding("warning", message, node.source))
                    node = node.inputs[_APPEND["kv"]]
                elif node.op in _MOVES and node.op not in _RESHAPED:
                    (node,) = _values(node)
                else:
                    if node.op not in (BRANCHES, "select_n"):
                        findings.append(Finding("warning", f"'{node.op}' changes the pool", node.source))
                    before = frozenset[int]().union(*(walk(one) for one in _values(node)))
                    return frozenset(count + written - sure for count in before for sure in range(unsure + 1))
            return frozenset(range(written - unsure, written + 1))

        return walk(pool), writers, findings

    # Positions

    def _position_sources(self) -> set[Node]:
        """The arguments (and what loops carry) that positions, cos and sin of any rotation are computed from."""
        found: set[Node] = set()
        seen: set[Node] = set()
        for node in self._graph.nodes:
            if node.op in _ROTATIONS and node.index == 0:
                for name in ("positions", "cos", "sin"):
                    for one in _ancestors(node.inputs[_APPEND[name]], seen):
                        if one.op in (INPUT, CARRY, ELEMENT):
                            found.add(one)
        return found

    def _is_positional(self, node: Node) -> bool:
        """Whether a factor follows from positions; what a projection or attention makes of them does not count."""
        if node.op in ("sin", "cos", "iota"):
            return True
        if node.op.startswith((*_PROJECTIONS, "mla_jax.")):
            return False
        return any(one in self._positional for one in node.inputs)

    # The way from a projection to attention

    def _path(self, node: Node) -> tuple[list[str], list[Finding], list[Node]]:
        """Equations other than moves on the way to `node`, what is wrong with them, and the rotations among them."""
        path: list[str] = []
        findings: list[Finding] = []
        rotations: list[Node] = []
        seen: set[Node] = set()
        todo = [node]
        while todo:
            at = todo.pop()
            if at in seen or at.op in _SOURCES or at.op in _ATTENTION:
                continue
            seen.add(at)
            if at.op.startswith(_PROJECTIONS):
                path.append(at.op)
                continue
            if at.op in _ROTATIONS:
                path.append(at.op)
                rotations.append(at)
                todo.append(at.inputs[_APPEND["q" if at.index == 0 else "kv_a"]])
                continue
            todo += _values(at)
            if at.op in _MOVES or at.op in _CHOICES:
                continue
            path.append(at.op)
            if at.op.startswith(_NORMS):
                continue
            carriers = [one for one in at.inputs if self.counts(one)]
            others = [one for one in at.inputs if not self.counts(one)]
            if at.op not in _ARITHMETIC:
                findings.append(Finding("warning", f"'{at.op}' on the way to attention", at.source))
            elif carriers and any(one in self._positional for one in others):
                findings.append(
                    Finding(
                        "warning",
                        f"'{at.op}' with a value that depends on positions on the way to attention",
                        at.source,
                    )
                )
        return path, findings, rotations

    def _report(self, node: Node) -> AttentionReport:
        own = node.op == _OWN_ATTENTION
        query = node.inputs[1]
        path, findings, rotations = self._path(query)
        rope_count = self.counts(query) or frozenset({0})
        layer_node: Node | None = None
        if own:
            rows = node.inputs[3]
            key_path, key_findings, key_rotations = self._path(rows)
            store_count, key_count = frozenset[int](), self.counts(rows) or frozenset({0})
            writers = [one for one in key_rotations if one.op in _APPENDS]
            if writers:
                store_count, writers, pool_findings = self._writes(
                    writers[0], writers[0].inputs[_APPEND["layer"]]
                )
                key_findings += pool_findings
            key_rotations = key_rotations or writers
        else:
            layer_node = node.inputs[3]
            store_count, key_rotations, key_findings = self._writes(node.inputs[2], layer_node)
            key_path = []
            key_count = frozenset[int]()
            for writer in key_rotations:
                more_path, more_findings, _ = self._path(writer.inputs[_APPEND["kv_a"]])
                key_path += more_path
                key_findings += more_findings
                key_count |= _plus_one(self.counts(writer.inputs[_APPEND["kv_a"]]))
            key_count = key_count or frozenset({0})
        findings += [one for one in key_findings if one not in findings]
        every = {one.equation: one for one in (*rotations, *key_rotations)}
        layer = layer_node.value if layer_node is not None else None
        if layer is None:
            known = {one.inputs[_APPEND["layer"]].value for one in every.values() if one.op in _APPENDS}
            layer = next(iter(known)) if len(known) == 1 else None
        errors = list(_errors(node, rope_count, key_count, store_count, every))
        return AttentionReport(
            op=node.op,
            layer=layer,
            where=node.where,
            rope_count=rope_count,
            key_rope_count=key_count,
            store_count=store_count,
            layouts=frozenset(str(one.params["layout"]) for one in every.values()),
            tables=frozenset(
                _named(one.inputs[_APPEND[name]]) for one in every.values() for name in ("cos", "sin")
            ),
            positions=frozenset(_named(one.inputs[_APPEND["positions"]]) for one in every.values()),
            slots=frozenset(
                _named(one.inputs[_APPEND["slots"]]) for one in every.values() if one.op in _APPENDS
            ),
            path=tuple(dict.fromkeys(path + key_path)),
            source=node.source,
            findings=(*errors, *findings),
        )


def _errors(
    node: Node,
    rope_count: frozenset[int],
    key_count: frozenset[int],
    store_count: frozenset[int],
    rotations: dict[int, Node],
) -> Iterator[Finding]:
    once = frozenset({1})
    source = node.source
    if rope_count != once:
        yield Finding("error", f"queries are rotated {_times(rope_count)}", source)
    if key_count != once:
        yield Finding("error", f"keys are rotated {_times(key_count)}", source)
    pool = node.op == _POOL_ATTENTION or bool(store_count)
    if pool and store_count != once:
        yield Finding("error", f"rows are stored {_times(store_count)} before they are read", source)
    positions = {one.inputs[_APPEND["positions"]] for one in rotations.values()}
    if len(positions) > 1:
        yield Finding("error", "queries and keys are rotated at different positions", source)
    if len({one.params["layout"] for one in rotations.values()}) > 1:
        yield Finding("error", "queries and keys are rotated in different layouts", source)


def _times(counts: frozenset[int]) -> str:
    words = {0: "never", 1: "once", 2: "twice"}
    return " or ".join(words.get(count, f"{count} times") for count in sorted(counts))


def _plus_one(counts: frozenset[int]) -> frozenset[int]:
    return frozenset(count + 1 for count in counts) or frozenset({1})


def _values(node: Node) -> tuple[Node, ...]:
    """The operands that are values, not places or numbers of places."""
    if node.op in _PAIRED:
        return (node.inputs[node.index],)
    if node.op in _CHOICES:
        return node.inputs[_CHOICES[node.op]]
    return node.inputs[:1] if node.op in _MOVES else node.inputs


def _same_layer(written: Node, read: Node) -> bool | None:
    """Whether two layer numbers are one; None where neither is shown."""
    if written is read:
        return True
    if written.value is not None and read.value is not None:
        return written.value == read.value
    return None


def _ancestors(node: Node, seen: set[Node]) -> Iterator[Node]:
    todo = [node]
    while todo:
        at = todo.pop()
        if at not in seen:
            seen.add(at)
            yield at
            todo += at.inputs


def _named(node: Node) -> str:
    """The arguments that a value follows from, and whether a loop carries it."""
    found = list(_ancestors(node, set()))
    names = sorted({one.source for one in found if one.op == INPUT})
    loops = ["carried by a loop"] if any(one.op in (CARRY, ELEMENT) for one in found) else []
    return " and ".join(loops + names) or "constants"
