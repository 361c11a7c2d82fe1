"""The text of docs/isa.md."""

import itertools
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from isa.code_objects import FP8_OPERANDS, Kernel, compiler
from isa.cost import BOUNDS, Work, cycles
from isa.families import steps
from isa.machines import LANES, MACHINES, MI350X, Machine
from isa.steps import Step

_WIDTH = 120
_INTRODUCTION = """\
# Static budget of the ROCm kernels

Written by `make isa-report` from the code objects that {compiler} makes of `csrc/*/gpu_kernel.cc`. It says what was
compiled, and what published rates would allow: **predictions, of which none has been timed on AMD hardware.** First
what bounds a step of each kernel, then registers, LDS and matrix instructions of all.

## What bounds a step

A step is one turn of the loop that multiplies matrices, of a whole block; of a kernel without such a loop it is all
that a block does. Where gfx942 and gfx950 differ an entry is `gfx942 / gfx950`.

- *KiB global*: what a block's lanes load and store in a step; bytes that lanes of a wave share count once. *From
  memory*: those of them that the caches do not have, or that are written. Both follow from the shape of the tiles, and
  `tools/isa/families.py` says how. *LDS*: KiB that lanes move in and out of it, or past registers into it.
- *Memory* to *vector*: the cycles that a compute unit is busy at least, at its share of published rates: with bytes
  from memory, with global bytes from the L2 caches, with LDS, with matrix instructions, with vector instructions. They
  overlap, so that the longest bounds the step. *Bound*: which that is, and how many times the second's cycles it takes.

Counted in the disassembly: bytes of LDS, matrix instructions, vector instructions. The loop is the innermost one that
has matrix instructions, found by the branches that lead back. Of the ways once round it (of a kernel without it, from
its entry to its end, loops taken once) that one counts which has just the loads, stores and matrix instructions that
the tiles ask for, and of these the shortest: what scales, codes and offsets out of the ordinary would lead to is
jumped over. Where a kernel has no such way it moves something else than this page says, and there is no report.

Cycles are the least: without bank conflicts, waits, scalar instructions, a loop's prologue and end, and at four cycles
a vector instruction, though some take longer.
"""

_RATES = """\
Rates, by compute unit and cycle of the peak clock; sources: AMD's data sheets of the three GPUs (units, clock, memory,
bf16; matrix cores multiply codes of eight bits twice as fast as bf16, of four bits four times); ROCm's documentation of
HIP, "Hardware implementation" (LDS; a SIMD, of four, takes four cycles for a vector instruction, beside its matrix
core); the peaks of ROCm Compute Profiler, "System Speed-of-Light" (128 bytes for each of the L2 caches' 128 channels).
What the peaks make of a matrix instruction, 16 cycles of each one here, are four passes of four cycles in the
compiler's model too; only gfx950's for codes of eight bits takes 32.
"""

_DECODE = """\
Decode attention, by key: a row of 576 bf16 values is read once for all heads of a block of 16, 32 or 64; of 128 heads
two blocks read it, the second from the cache.
"""

_REGISTERS = """\
## Registers, LDS, matrix instructions

VGPR counts both kinds of vector registers. Spills go to memory; scalar registers spill to lanes of vector registers.
LDS is static + what a launch adds. Waves: what registers and LDS let one of a compute unit's four SIMDs hold, of at
most 8. Matrix: instructions in the code, each counted once (`cbsz:4 blgp:4`: codes of four bits, else `f8f6f4` has
eight); cycles: these at the published rate of one SIMD.
"""


@dataclass(frozen=True)
class _Family:
    """Kernels that make one table."""

    title: str
    text: str
    kernels: tuple[str, ...]


def _names(pattern: str, *parts: Sequence[str]) -> Iterator[str]:
    """Names with one of each list of parts in the places of the asterisks."""
    for chosen in itertools.product(*parts):
        yield pattern.replace("*", "{}").format(*chosen)


_CODES = ("e2m1", "e4m3", "e4m3fnuz", "int4")
_FAMILIES = (
    _Family(
        "Products: linear_quantized, expert_mlp, expert_mlp_quantized",
        "Weight rows x contraction, tokens. By container: MXFP4 (e2m1), FP8 with scales of 128 x 128 (e4m3, and "
        "gfx942's own e4m3fnuz), int4 in groups of 128, bf16. From memory: codes and scales. Experts, routed, run the "
        "same kernels; `mla_expert_combine` adds up what their slots gave. (The plan in front of them is one block, "
        "whose time no rate bounds.)",
        (
            *_names("mla_product_*_*", _CODES, ("stream8", "low16", "low32", "tile32", "tile64")),
            *_names("mla_product_bf16_*", ("stream8", "stream16", "tile32", "tile64")),
            "mla_expert_combine",
        ),
    ),
    _Family(
        "Products of FP8: linear_fp8",
        "As above; the tokens are FP8 too. By the codes of tokens and of weights, ocp or fnuz: gfx942 multiplies fnuz "
        "codes and turns others into these, gfx950 multiplies ocp codes and decodes to bf16 where there are others. "
        "Scales of 128 x 128.",
        tuple(_names("mla_linear_fp8_*_*", FP8_OPERANDS, ("few", "many"))),
    ),
    _Family(
        "Products of MXFP4: linear_mxfp4, linear_shuffled; dequantisation",
        "As above; the tokens of `linear_mxfp4` are MXFP4 too. A wave of `linear_shuffled` has a tile of 16 rows to "
        "itself, and reads tokens in the loop around this one, for up to four tiles: they are not in the step.",
        (
            *_names("mla_linear_mxfp4_*", ("few", "many")),
            *_names("mla_linear_shuffled_*", ("few16", "few32")),
            "mla_shuffled_dequantize",
            "mla_mxfp4_dequantize",
        ),
    ),
    _Family(
        "absorb_quantized",
        "Outputs x contraction, tokens, across the rows of the weight or along them. From memory: codes and scales. "
        "Along them, up to 8 tokens are a product.",
        tuple(_names("mla_absorb_*_*_*", ("across", "along"), _CODES[:3], ("16", "64"))),
    ),
    _Family(
        "mla_attention",
        "From memory: rows of the cache, bf16 or FP8; and of the merge of splits all that it reads and writes.",
        (
            *_names("mla_attention_**", ("16", "32", "64"), ("", "_f8")),
            *_names("mla_attention_merge_*", ("few", "many")),
        ),
    ),
    _Family(
        "mla_attention_expanded",
        "All tiles of queries of a head read its keys and values, and all but the first find them in the caches: none "
        "count as from memory. A step whose keys are all seen.",
        tuple(_names("mla_expanded_*", ("long", "short"))),
    ),
    _Family(
        "Norms and quantisation: rmsnorm, fused_qk_rmsnorm, rmsnorm_quantize, flatten_quantize, mxfp4_quantize",
        "Rows x values, bf16; `mla_rmsnorm_bf16` with a residual. From memory: all but the weights.",
        (
            *_names("mla_rmsnorm_bf16_*", ("32", "64", "256")),
            "mla_fused_qk_rmsnorm_bf16",
            *_names("mla_rmsnorm_*_bf16_*", ("mxfp4", "fp8"), ("64", "256")),
            *_names("mla_flatten_*_bf16", ("mxfp4", "fp8")),
        ),
    ),
    _Family(
        "rope_append_latent, rope_append_kv",
        "bf16, pairs of neighbours; a block has query heads or four rows of the cache. From memory: all but angles, "
        "weights, and what a row reads twice.",
        (
            *_names("mla_rope_append_all_bf16_*", ("wide", "many")),
            *_names("mla_rope_kv_bf16_*_wide", ("bf16", "f8")),
        ),
    ),
)


@dataclass(frozen=True)
class _Budget:
    """A step of a kernel on one architecture."""

    step: Step
    waves: int
    work: Work

    def cycles(self, machine: Machine) -> dict[str, float]:
        return cycles(machine, self.work, self.waves, self.step.bytes, self.step.memory)

    def bound(self, machine: Machine) -> str:
        of = self.cycles(machine)
        return max(BOUNDS, key=of.__getitem__)


# (kernel, which of its steps) -> architecture -> budget.
_Budgets = dict[tuple[str, int], dict[str, _Budget]]


def _budgets(found: Sequence[Kernel]) -> _Budgets:
    shown = {name for family in _FAMILIES for name in family.kernels}
    of = {architecture: steps(architecture) for architecture in MACHINES}
    budgets: _Budgets = {}
    for kernel in found:
        if kernel.name in shown:
            for i, step in enumerate(of[kernel.architecture][kernel.name]):
                budget = _Budget(step, kernel.waves, step.work(kernel))
                budgets.setdefault((kernel.name, i), {})[kernel.architecture] = budget
    return budgets


def _both(texts: Sequence[str]) -> str:
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def _row(kernel: str, budgets: Mapping[str, _Budget]) -> str:
    of = [(MACHINES[architecture], budget) for architecture, budget in budgets.items()]

    def numbers(values: Sequence[float], digits: int = 0) -> str:
        return _both([f"{value:.{digits}f}" if value else "-" for value in values])

    def bound(machine: Machine, budget: _Budget) -> str:
        (first, most), (second, next_most) = sorted(
            budget.cycles(machine).items(), key=lambda item: -item[1]
        )[:2]
        return f"{first}, {most / next_most:.1f} x {second}"

    cells = [
        kernel,
        _both([budget.step.unit for _, budget in of]),
        numbers([budget.step.bytes / 1024 for _, budget in of], 1),
        numbers([budget.step.memory / 1024 for _, budget in of], 1),
        numbers([budget.work.lds * LANES * budget.waves / 1024 for _, budget in of], 1),
        *(numbers([budget.cycles(machine)[what] for machine, budget in of]) for what in BOUNDS),
        _both([bound(machine, budget) for machine, budget in of]),
    ]
    return f"| {' | '.join(cells)} |"


def _steps(budgets: _Budgets) -> list[str]:
    lines = []
    for family in _FAMILIES:
        rows = [
            _row(name, of) for shown in family.kernels for (name, _), of in budgets.items() if name == shown
        ]
        lines += [
            f"### {family.title}",
            "",
            textwrap.fill(family.text, _WIDTH),
            "",
            f"| kernel | step | KiB global | from memory | LDS | {' | '.join(BOUNDS)} | bound |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    return lines


def _rates() -> list[str]:
    lines = [
        "| GPU | units | GHz | TB/s | bytes of memory | of L2 | of LDS | TFLOP/s bf16 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for machine in (*MACHINES.values(), MI350X):
        lines.append(
            f"| {machine.name} | {machine.units} | {machine.clock_ghz} | {machine.tbytes_per_s} "
            f"| {machine.memory_rate:.1f} | {machine.cache_rate:.1f} | {machine.lds_rate} | {machine.bf16_tflops} |"
        )
    return lines


def _summary(budgets: _Budgets) -> list[str]:
    """How many of the steps below each thing bounds, and where an MI350X differs from an MI355X."""
    lines = [f"| GPU | {' | '.join(BOUNDS)} |", "|---|---|---|---|---|---|"]
    for architecture, machine in (*MACHINES.items(), ("gfx950", MI350X)):
        counts = Counter(of[architecture].bound(machine) for of in budgets.values())
        lines.append(f"| {machine.name} | {' | '.join(str(counts[what]) for what in BOUNDS)} |")
    changed = sorted(
        name
        for (name, _), of in budgets.items()
        if of["gfx950"].bound(MI350X) != of["gfx950"].bound(MACHINES["gfx950"])
    )
    clock = MI350X.memory_rate / MACHINES["gfx950"].memory_rate
    other = f"Another bound it has for {', '.join(changed)}." if changed else "Its bounds are the same."
    text = (
        "Below, gfx942 is an MI300X and gfx950 an MI355X. An MI350X is that chip at another clock, so that memory "
        f"brings {clock:.2f} times as much a cycle. {other}"
    )
    return [*lines, "", textwrap.fill(text, _WIDTH)]


def _decode() -> list[str]:
    """What decode attention must move and multiply, a key, and what that allows at most."""
    lines = [
        "| GPU | heads | bytes a key | FLOP a key | bytes bound | matrix bound | bound by |",
        "|---|---|---|---|---|---|---|",
    ]
    for machine in MACHINES.values():
        for heads in (16, 32, 64, 128):
            moved, flop = 576 * 2, 2 * heads * (576 + 512)
            by_bytes = moved / machine.tbytes_per_s
            by_matrix = flop / machine.bf16_tflops
            which = "memory" if by_bytes > by_matrix else "matrix cores"
            lines.append(
                f"| {machine.name} | {heads} | {moved} | {flop} | {by_bytes:.0f} ps | {by_matrix:.0f} ps | {which} |"
            )
    return lines


def _registers(found: Sequence[Kernel]) -> list[str]:
    lines = [
        "| kernel | arch | VGPR | AGPR | SGPR | LDS | scratch | spills | SGPR spills | waves | matrix | cycles |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for k in found:
        matrix = ", ".join(f"{n} {name}" for name, n in sorted(k.matrix.items())) or "-"
        lines.append(
            f"| {k.name} | {k.architecture} | {k.vgprs} | {k.agprs} | {k.sgprs} | {k.static_lds} + {k.dynamic_lds} "
            f"| {k.scratch} | {k.spills} | {k.sgpr_spills} | {k.waves_per_simd} | {matrix} | {k.matrix_cycles or '-'} |"
        )
    return lines


def document(found: Sequence[Kernel]) -> str:
    """The whole of docs/isa.md. Raises LookupError where a kernel moves something else than isa.families says."""
    budgets = _budgets(found)
    lines = [
        _INTRODUCTION.format(compiler=compiler()),
        _RATES,
        *_rates(),
        "",
        "How many of the steps below are bound by what:",
        "",
        *_summary(budgets),
        "",
        *_steps(budgets),
        _DECODE,
        *_decode(),
        "",
        _REGISTERS,
        *_registers(found),
    ]
    return "\n".join(lines) + "\n"
