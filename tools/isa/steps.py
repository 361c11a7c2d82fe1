"""A step of a kernel: what its block moves and multiplies, and what a wave executes for it.

A step is one turn of the innermost loop that multiplies matrices; of a kernel without one it is a whole block. What
a wave loads and stores in it is said operand by operand (isa.families), from the shapes of tiles. The way through the
code that has just these accesses gives the rest; where there is none, the kernel moves something else than was said.
"""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

from isa.code_objects import Kernel
from isa.cost import Work, access, is_matrix, matrix_name, work_of
from isa.flow import Flow, Instruction, Region


@dataclass(frozen=True)
class Operand:
    """What the lanes of a block load, or store, of one thing.

    Attributes:
      width: bytes of a lane's access.
      count: instructions of a wave.
      bytes: that a block moves; lanes that have nothing to do count for nothing, and those of a wave that ask for the
        same bytes count once.
      memory: of these, the bytes that come from memory or go there; the others meet the caches alone.
    """

    name: str
    width: int
    count: int
    bytes: float
    memory: float
    store: bool = False


def _kind(instruction: Instruction) -> Hashable | None:
    return matrix_name(instruction) if is_matrix(instruction.name) else access(instruction.name)


@dataclass(frozen=True)
class Step:
    """A step of a kernel.

    Attributes:
      unit: what of the work it is.
      matrix: the instruction that multiplies, and how many of them a wave executes; None where nothing is multiplied.
      every_lane: the work itself is in code that branches lead round, for lanes that have none; else such code is for
        values out of the ordinary, and not on the way.
    """

    kernel: str
    unit: str
    operands: tuple[Operand, ...]
    matrix: tuple[str, int] | None = None
    every_lane: bool = False

    @property
    def bytes(self) -> float:
        return sum(operand.bytes for operand in self.operands)

    @property
    def memory(self) -> float:
        return sum(operand.memory for operand in self.operands)

    @property
    def wanted(self) -> Counter[Hashable]:
        """What the way through the code has: (load or store, bytes a lane) and matrix instructions, of a wave."""
        wanted: Counter[Hashable] = Counter()
        for operand in self.operands:
            wanted["store" if operand.store else "load", operand.width] += operand.count
        if self.matrix is not None:
            wanted[self.matrix[0]] = self.matrix[1]
        return wanted

    def _place(self, kernel: Kernel) -> tuple[Flow, Region]:
        """The innermost loop with matrix instructions or, of a step without, all code."""
        flow = Flow(kernel.code)
        region = flow.all
        if self.matrix is not None:

            def products(loop: Region) -> int:
                return sum(is_matrix(line.name) for block in loop.blocks for line in flow.blocks[block])

            while loops := [loop for loop in flow.loops(region) if products(loop)]:
                region = max(loops, key=products)
        return flow, region

    def present(self, kernel: Kernel) -> Counter[Hashable]:
        """What the loop, or all code, has on whichever way, as `wanted`."""
        flow, region = self._place(kernel)
        lines = [line for block in region.blocks for line in flow.blocks[block]]
        return Counter(kind for kind in map(_kind, lines) if kind is not None)

    def work(self, kernel: Kernel) -> Work:
        """What a wave does in a step. Raises LookupError where no way through the code has the step's accesses."""
        flow, region = self._place(kernel)
        way = flow.way(region, _kind, self.wanted, self.every_lane)
        if way is None:
            raise LookupError(
                f"{kernel.name} on {kernel.architecture}: expected a way through its code with {dict(self.wanted)}, "
                f"got code with {dict(self.present(kernel))}; tools/isa/families.py says what a step moves"
            )
        return work_of(way)
