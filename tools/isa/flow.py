"""The ways through a kernel's code: its loops, and what one turn of them executes.

Blocks of instructions that are entered at the first and left behind the last are joined by branches. A loop is a set
of blocks each of which leads to every other; the loops inside it are those that are left once nothing leads back to
where it is entered.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Instruction:
    """`target`: the address that a branch jumps to."""

    address: int
    text: str
    target: int | None = None

    @property
    def name(self) -> str:
        return self.text.split()[0]


@dataclass(frozen=True)
class Region:
    """A loop, or all of a kernel: the block that is entered first, and all blocks."""

    entry: int
    blocks: frozenset[int]


# Instructions as they were found, in parts of parts.
_Nested: TypeAlias = "Instruction | tuple[_Nested, ...]"
# How often each counted kind of instruction is on a way.
_Counts: TypeAlias = tuple[int, ...]
# The best way that has such counts: how often it jumps over code for want of lanes (where that matters) and its
# length, and its instructions.
_Ways: TypeAlias = dict[_Counts, tuple[tuple[int, int], _Nested]]


class Flow:
    """The blocks of a kernel's code."""

    def __init__(self, code: Sequence[Instruction]) -> None:
        place = {instruction.address: i for i, instruction in enumerate(code)}
        targets = {i: place[line.target] for i, line in enumerate(code) if line.target is not None}
        ends = {i for i, line in enumerate(code) if line.target is not None or line.name == "s_endpgm"}
        starts = sorted({0, *targets.values(), *(i + 1 for i in ends if i + 1 < len(code))})
        number = {start: block for block, start in enumerate(starts)}
        self.blocks = [tuple(code[a:b]) for a, b in zip(starts, [*starts[1:], len(code)], strict=True)]
        self._jump: list[int | None] = []
        self._next: list[int | None] = []
        last = -1
        for block, instructions in enumerate(self.blocks):
            last += len(instructions)
            self._jump.append(number[targets[last]] if last in targets else None)
            goes_on = code[last].name not in ("s_branch", "s_endpgm") and block + 1 < len(self.blocks)
            self._next.append(block + 1 if goes_on else None)

    @property
    def all(self) -> Region:
        return Region(0, frozenset(range(len(self.blocks))))

    def loops(self, region: Region) -> list[Region]:
        """The outermost loops inside a region."""
        return [part for part in self._parts(region) if self._is_inner(part, region)]

    def way(
        self,
        region: Region,
        kind: Callable[[Instruction], Hashable | None],
        wanted: Mapping[Hashable, int],
        every_lane: bool = False,
    ) -> tuple[Instruction, ...] | None:
        """The shortest way through a region with just the instructions that are wanted, loops inside it taken once.

        kind: of an instruction that counts; None for the others.
        every_lane: of all such ways, one that jumps over code for want of lanes as seldom as it can.
        None where there is no such way.
        """
        kinds = {name: i for i, name in enumerate(wanted)}
        limit = tuple(wanted.values())

        def own(block: int) -> _Ways:
            counts = [0] * len(kinds)
            for line in self.blocks[block]:
                if (name := kind(line)) is not None:
                    if name not in kinds:
                        return {}
                    counts[kinds[name]] += 1
            return {tuple(counts): ((0, len(self.blocks[block])), self.blocks[block])}

        found = self._ways(region, own, limit, limit, every_lane).get(limit)
        return None if found is None else tuple(_flat(found[1]))

    def _ways(
        self, region: Region, own: Callable[[int], _Ways], least: _Counts, most: _Counts, every_lane: bool
    ) -> _Ways:
        """Of all counts from `least` to `most`, the best way from a region's entry to its end, or once round."""
        zero = (0,) * len(most)
        allowed = region.blocks if region == self.all else region.blocks - {region.entry}
        parts = self._parts(region)
        inside = [
            self._ways(part, own, zero, most, every_lane) if self._is_inner(part, region) else own(part.entry)
            for part in parts
        ]
        before = self._most_before(region, parts, inside, zero)
        onward: dict[int, _Ways] = {}  # From each block.
        for part, own_ways in zip(parts, inside, strict=True):
            ways: _Ways = {zero: ((0, 0), ())} if self._ends(part, region) else {}
            for block, following in self._leaving(part, allowed):
                skips = every_lane and not self._is_inner(part, region) and self._leaves_out(block, following)
                for counts, (cost, rest) in onward[following].items():
                    _keep_best(ways, counts, (cost[0] + skips, cost[1]), rest)
            joined: _Ways = {}
            # What less than this follows upon cannot become enough.
            needed = tuple(map(int.__sub__, least, before.get(part.entry, zero)))
            for counts, (cost, lines) in own_ways.items():
                for rest_counts, (rest_cost, rest) in ways.items():
                    total = tuple(map(int.__add__, counts, rest_counts))
                    if all(map(int.__le__, total, most)) and all(map(int.__ge__, total, needed)):
                        both = cost[0] + rest_cost[0], cost[1] + rest_cost[1]
                        _keep_best(joined, total, both, (lines, rest))
            onward.update(dict.fromkeys(part.blocks, joined))
        return onward[region.entry]

    def _most_before(
        self, region: Region, parts: Sequence[Region], inside: Sequence[_Ways], zero: _Counts
    ) -> dict[int, _Counts]:
        """Of each kind the most that any way from a region's entry to a block can have in front of it."""
        allowed = region.blocks - {region.entry}
        most = {region.entry: zero}
        for part, ways in zip(reversed(parts), reversed(inside), strict=True):
            if ways and part.entry in most:
                own = map(max, zip(*ways, strict=True))
                reached = tuple(map(int.__add__, most[part.entry], own))
                for _, block in self._leaving(part, allowed):
                    most[block] = tuple(map(max, most.get(block, zero), reached))
        return most

    def _leaving(self, part: Region, allowed: Collection[int]) -> list[tuple[int, int]]:
        """(block of the part, where it leads to) inside `allowed` and outside the part."""
        leaving = {
            (a, b) for a in part.blocks for b in self._after(a) if b in allowed and b not in part.blocks
        }
        return sorted(leaving)

    def _ends(self, part: Region, region: Region) -> bool:
        """Whether the region can be over behind a part: the kernel, or a turn of the loop."""
        if region == self.all:
            return any(not self._after(block) for block in part.blocks)
        return any(region.entry in self._after(block) for block in part.blocks)

    def _leaves_out(self, block: int, following: int) -> bool:
        """Whether going on like that is for waves none of whose lanes take the other way."""
        other = {"s_cbranch_execz": self._jump, "s_cbranch_execnz": self._next}.get(
            self.blocks[block][-1].name
        )
        return other is not None and other[block] == following

    def _after(self, block: int) -> list[int]:
        return [b for b in (self._next[block], self._jump[block]) if b is not None]

    def _parts(self, region: Region) -> list[Region]:
        """The loops inside a region and the blocks in none of them, each before what leads to it."""
        # What leads back to where a loop is entered makes no loop inside it.
        entry = None if region == self.all else region.entry

        def after(block: int) -> list[int]:
            return [b for b in self._after(block) if b in region.blocks and b != entry]

        parts = []
        for blocks in _joined(region.blocks, after):
            entered = {b for a in region.blocks - blocks for b in after(a) if b in blocks}
            parts.append(Region(min(entered or blocks), frozenset(blocks)))
        return parts

    def _is_inner(self, part: Region, region: Region) -> bool:
        """Whether a part is a loop, and not a block by itself."""
        return part != region and (len(part.blocks) > 1 or part.entry in self._after(part.entry))


def _keep_best(ways: _Ways, counts: _Counts, cost: tuple[int, int], lines: _Nested) -> None:
    if counts not in ways or cost < ways[counts][0]:
        ways[counts] = cost, lines


def _flat(nested: _Nested) -> Iterator[Instruction]:
    open_parts = [nested]
    while open_parts:
        part = open_parts.pop()
        if isinstance(part, Instruction):
            yield part
        else:
            open_parts.extend(reversed(part))


def _joined(blocks: Collection[int], after: Callable[[int], list[int]]) -> list[set[int]]:
    """Sets of blocks each of which leads to every other, behind those that they lead to (Tarjan's algorithm)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    path: list[int] = []
    found: list[set[int]] = []
    for root in sorted(blocks):
        work = [(root, iter(after(root)))] if root not in index else []
        while work:
            block, ahead = work[-1]
            if block not in index:
                index[block] = low[block] = len(index)
                path.append(block)
            for other in ahead:
                if other not in index:
                    work.append((other, iter(after(other))))
                    break
                if other in path:
                    low[block] = min(low[block], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[block])
                if low[block] == index[block]:
                    at = path.index(block)
                    found.append(set(path[at:]))
                    del path[at:]
    return found
