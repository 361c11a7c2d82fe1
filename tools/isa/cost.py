"""What instructions move and compute, and the least time that published rates leave for it."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from isa.flow import Instruction
from isa.machines import LANES, SIMDS, VECTOR_CYCLES, Machine

_GLOBAL = re.compile(r"global_(?:load|store)_(?:lds_)?[us]?(dword(?:x[234])?|byte|short)(?:_d16(?:_hi)?)?")
_GLOBAL_BYTES = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16, "byte": 1, "short": 2}
_LDS = re.compile(r"ds_(?:read|write)(2|2st64)?_[biu](8|16|32|64|96|128)(?:_d16(?:_hi)?)?")
# What lanes hand each other, and additions, go through LDS a word a lane.
_LDS_WORD = ("ds_bpermute_b32", "ds_permute_b32", "ds_swizzle_b32", "ds_add_u32", "ds_add_rtn_u32")

# 0, for FP8 on either side, is not said.
_OPERAND_FORMATS = re.compile(r"\b(?:cbsz|blgp):\d+")


def global_bytes(name: str) -> int:
    """That a lane moves between memory and the compute unit; 0 for another instruction."""
    if not name.startswith(("global_", "flat_", "buffer_", "scratch_")):
        return 0
    found = _GLOBAL.fullmatch(name)
    assert found is not None, f"a memory access of unknown size: {name}"
    return _GLOBAL_BYTES[found[1]]


def lds_bytes(name: str) -> int:
    """That a lane moves in or out of LDS; 0 for another instruction."""
    if name.startswith("global_load_lds_"):
        return global_bytes(name)
    if not name.startswith("ds_"):
        return 0
    if name in _LDS_WORD:
        return 4
    found = _LDS.fullmatch(name)
    assert found is not None, f"an access of LDS of unknown size: {name}"
    return int(found[2]) // 8 * (2 if found[1] else 1)


def is_matrix(name: str) -> bool:
    return name.startswith("v_mfma_")


def matrix_name(instruction: Instruction) -> str:
    """Of a matrix instruction; behind its name the formats of its operands, where it says them."""
    return " ".join([instruction.name, *_OPERAND_FORMATS.findall(instruction.text)])


def access(name: str) -> tuple[str, int] | None:
    """(load or store, bytes a lane) of an access of memory; None for another instruction."""
    width = global_bytes(name)
    return ("store" if "_store_" in name else "load", width) if width else None


@dataclass(frozen=True)
class Work:
    """What a wave does on one way through code.

    Attributes:
      lds: bytes a lane moves in and out of LDS.
      matrix: matrix instructions by `matrix_name`.
      vector: vector instructions that are no matrix instructions.
    """

    lds: int
    matrix: Counter[str]
    vector: int


def work_of(way: Iterable[Instruction]) -> Work:
    instructions = list(way)
    names = [instruction.name for instruction in instructions]
    return Work(
        sum(map(lds_bytes, names)),
        Counter(matrix_name(instruction) for instruction in instructions if is_matrix(instruction.name)),
        sum(name.startswith("v_") and not is_matrix(name) for name in names),
    )


BOUNDS = ("memory", "cache", "LDS", "matrix", "vector")


def cycles(machine: Machine, work: Work, waves: int, moved: float, from_memory: float) -> dict[str, float]:
    """The least cycles that a compute unit is busy with a block's step, by what is busy.

    waves: of a block, each of which does `work`.
    moved, from_memory: bytes of the block's step between the unit and the caches, and between these and memory.
    """
    matrix = sum(count * machine.matrix_cycles(name) for name, count in work.matrix.items())
    return {
        "memory": from_memory / machine.memory_rate,
        "cache": moved / machine.cache_rate,
        "LDS": work.lds * LANES * waves / machine.lds_rate,
        "matrix": matrix * waves / SIMDS,
        "vector": work.vector * VECTOR_CYCLES * waves / SIMDS,
    }
