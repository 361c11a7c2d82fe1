"""Writes docs/isa.md: what the ROCm kernels cost, read from their gfx942 and gfx950 code objects.

Usage: isa_report.py [--check]. With --check nothing is written and a document that is out of date is an error.
Needs clang-22 (tools/install_rocm_toolchain.sh). Nothing here runs on or claims a measurement of AMD hardware.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "isa.md"


@dataclass(frozen=True)
class Machine:
    """Published rates of one GPU, and what limits the waves that a compute unit holds.

    Attributes:
      name, units, clock_ghz: as in AMD's data sheet "AMD Instinct MI300X" or "AMD Instinct MI355X".
      tbytes_per_s, bf16_tflops: peaks of the same data sheet, dense.
      lds: bytes a compute unit has ("CDNA3 ISA" and "CDNA4 ISA", local data share).
    """

    name: str
    units: int
    clock_ghz: float
    tbytes_per_s: float
    bf16_tflops: float
    lds: int


MACHINES = {
    "gfx942": Machine("MI300X", 304, 2.1, 5.3, 1307.4, 64 << 10),
    "gfx950": Machine("MI355X", 256, 2.4, 8.0, 2516.6, 160 << 10),
}
REGISTERS_PER_LANE, REGISTER_BLOCK, WAVES_PER_SIMD, SIMDS = 512, 8, 8, 4

# FLOP of one matrix instruction: 2 * M * N * K.
_MATRIX = re.compile(r"v_mfma_(?:scale_)?f32_(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True)
class Kernel:
    """One kernel of a code object; `dynamic_lds` is what the launch adds to the kernel's own."""

    op: str
    name: str
    architecture: str
    threads: int
    vgprs: int
    agprs: int
    sgprs: int
    static_lds: int
    dynamic_lds: int
    scratch: int
    spills: int
    sgpr_spills: int
    instructions: Counter[str]
    code: tuple[str, ...]  # the instructions' text, in order

    @property
    def waves_per_simd(self) -> int:
        """That registers and LDS let a SIMD hold."""
        used = -(-max(self.vgprs, 1) // REGISTER_BLOCK) * REGISTER_BLOCK
        by_registers = min(WAVES_PER_SIMD, REGISTERS_PER_LANE // used)
        waves, lds = self.threads // 64, self.static_lds + self.dynamic_lds
        blocks = by_registers * SIMDS // waves
        if lds:
            blocks = min(blocks, MACHINES[self.architecture].lds // lds)
        return blocks * waves // SIMDS

    @property
    def matrix(self) -> dict[str, int]:
        return {name: n for name, n in self.instructions.items() if name.startswith("v_mfma")}

    @property
    def matrix_cycles(self) -> int:
        """Of the matrix instructions in the code, once each, at the published rate."""
        machine = MACHINES[self.architecture]
        flop_per_cycle = machine.bf16_tflops * 1e3 / machine.clock_ghz / machine.units / SIMDS
        total = 0.0
        for name, count in self.matrix.items():
            size = _MATRIX.match(name)
            assert size is not None, f"a matrix instruction of unknown size: {name}"
            m, n, k = map(int, size.groups())
            # Four-bit codes go at four times the rate of bf16 ("AMD Instinct MI355X", peak MXFP4).
            faster = 4 if name.endswith("f8f6f4") else 1
            total += count * 2 * m * n * k / flop_per_cycle / faster
        return round(total)


def ops() -> list[str]:
    """Every op that has kernels for GPUs."""
    return sorted(path.parent.name for path in ROOT.glob("csrc/*/gpu_kernel.cc"))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


_FORMATS = ("e2m1", "e4m3", "e4m3fnuz", "int4", "bf16")
_PRODUCTS = (
    "stream8", "stream16", "narrow8", "narrow16", "wide8", "tile32", "tile64", "low16", "low32", "high16", "high32",
)  # fmt: skip

# Header -> kernel -> the bytes that its launch asks for, as the header says them.
_DYNAMIC_LDS = {
    "linear_mxfp4/gpu_shape.h": {
        f"mla_linear_mxfp4_{kind}": f"Mxfp4{kind.capitalize()}::kSharedBytes" for kind in ("few", "many")
    },
    "linear_shuffled/gpu_shape.h": {
        f"mla_linear_shuffled_few{tokens}": f"Few{tokens}::kSharedBytes" for tokens in (16, 32)
    },
    "gpu/product.h": {
        f"mla_product_{format_}_{shape}": re.sub(
            r"([A-Za-z]+)(\d+)", r"\1Shape\2::SharedBytes(1)", shape.capitalize()
        )
        for format_ in _FORMATS
        for shape in _PRODUCTS
    },
    # With the 256 experts of DeepSeek-V3.
    "expert_mlp/gpu_shape.h": {"mla_expert_plan": "PlanInts(256) * 4"},
}


def _dynamic_lds() -> dict[str, int]:
    """Kernel name -> bytes that its launch asks for."""
    sizes: dict[str, int] = {}
    for header, kernels in _DYNAMIC_LDS.items():
        prints = "".join(
            f'std::printf("{name} %d\\n", static_cast<int>(mla::gpu::{size}));'
            for name, size in kernels.items()
        )
        source = f'#define MLA_GPU_ROCM\n#include <cstdio>\n#include "{header}"\nint main() {{ {prints} }}\n'
        with tempfile.TemporaryDirectory() as folder:
            file, program = Path(folder, "lds.cc"), Path(folder, "lds")
            file.write_text(source)
            _run("clang++-22", "-std=c++17", "-Icsrc", str(file), "-o", str(program))
            for line in _run(str(program)).splitlines():
                name, size = line.split()
                sizes[name] = int(size)
    return sizes


def kernels() -> list[Kernel]:
    """Every kernel of every op for every architecture, compiled as the build compiles them."""
    dynamic = _dynamic_lds()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for op in ops():
            for architecture in MACHINES:
                image = str(Path(folder, f"{op}.{architecture}"))
                _run(
                    "clang++-22", "-x", "hip", "-std=c++17", "-O3", "-nogpuinc", "-nogpulib", "-Icsrc",
                    "--no-gpu-bundle-output", f"--offload-arch={architecture}", "--cuda-device-only",
                    "-c", f"csrc/{op}/gpu_kernel.cc", "-o", image,
                )  # fmt: skip
                notes = _run("llvm-readelf-22", "--notes", image)
                code = _run("llvm-objdump-22", "-d", "--no-show-raw-insn", image)
                found += _parse(op, architecture, notes, code, dynamic)
    return found


def _parse(op: str, architecture: str, notes: str, code: str, dynamic: dict[str, int]) -> list[Kernel]:
    bodies = dict(re.findall(r"<(\w+)>:\n((?:\t.*\n|\s*\n)+)", code))
    found = []
    # Other lists of the metadata, such as the version, have entries too.
    entries = [entry for entry in re.split(r"\n  - ", notes) if ".vgpr_count:" in entry]
    for entry in entries:

        def field(name: str, entry: str = entry) -> str:
            value = re.search(rf"\.{name}: +(\S+)", entry)
            assert value is not None, f"{op}: no {name} in its metadata"
            return value[1]

        name = field("name")
        lines = tuple(line.partition("//")[0].strip() for line in bodies[name].splitlines() if line.strip())
        mnemonics = Counter(line.split()[0] for line in lines)
        found.append(
            Kernel(
                op, name, architecture, int(field("max_flat_workgroup_size")), int(field("vgpr_count")),
                int(field("agpr_count")), int(field("sgpr_count")), int(field("group_segment_fixed_size")),
                dynamic.get(name, 0), int(field("private_segment_fixed_size")),
                int(field("vgpr_spill_count")), int(field("sgpr_spill_count")), mnemonics, lines,
            )
        )  # fmt: skip
    return sorted(found, key=lambda kernel: kernel.name)


def _attention_bounds() -> list[str]:
    """What decode attention must move and multiply, a key, and what that allows at most."""
    lines = [
        "| GPU | heads | bytes a key | FLOP a key | bytes bound | matrix bound | bound by |",
        "|---|---|---|---|---|---|---|",
    ]
    for machine in MACHINES.values():
        for heads in (16, 64, 128):
            moved, flop = 576 * 2, 2 * heads * (576 + 512)
            by_bytes = moved / (machine.tbytes_per_s * 1e12) * 1e12
            by_matrix = flop / (machine.bf16_tflops * 1e12) * 1e12
            which = "memory" if by_bytes > by_matrix else "matrix cores"
            lines.append(
                f"| {machine.name} | {heads} | {moved} | {flop} | {by_bytes:.0f} ps | {by_matrix:.0f} ps | {which} |"
            )
    return lines


def document(found: list[Kernel]) -> str:
    """The whole of docs/isa.md."""
    lines = [
        "# Static budget of the ROCm kernels",
        "",
        "Written by `make isa-report` from the code objects that clang 22 makes of `csrc/*/gpu_kernel.cc`. It says",
        "what was compiled, and what published rates would allow; nothing here was measured on AMD hardware.",
        "",
        "VGPR counts both kinds of vector registers. Spills go to memory; scalar registers spill to lanes of vector",
        "registers. LDS is static + what a launch adds. Waves: what registers and LDS let one of a compute unit's four",
        "SIMDs hold, of at most 8. Matrix: instructions in the code, each counted once; cycles: these at the published",
        "rate of one SIMD for bf16, and for codes of four bits.",
        "",
        "| kernel | arch | VGPR | AGPR | SGPR | LDS | scratch | spills | SGPR spills | waves | matrix | cycles |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for k in found:
        matrix = ", ".join(f"{n} {name}" for name, n in sorted(k.matrix.items())) or "-"
        lines.append(
            f"| {k.name} | {k.architecture} | {k.vgprs} | {k.agprs} | {k.sgprs} | {k.static_lds} + {k.dynamic_lds} "
            f"| {k.scratch} | {k.spills} | {k.sgpr_spills} | {k.waves_per_simd} | {matrix} | {k.matrix_cycles or '-'} |"
        )
    lines += [
        "",
        "## What decode attention cannot beat",
        "",
        "A key's row of 576 bf16 values is read once for all heads of a block of 16 or 64; of 128 heads two blocks",
        "read it, the second from the cache. Rates: AMD's data sheets of MI300X (5.3 TB/s, 1307.4 TFLOP/s bf16, 304",
        "units, 2.1 GHz) and MI355X (8 TB/s, 2516.6 TFLOP/s bf16, 256 units, 2.4 GHz).",
        "",
        *_attention_bounds(),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail if docs/isa.md is out of date")
    arguments = parser.parse_args()
    text = document(kernels())
    if not arguments.check:
        DOCUMENT.write_text(text, encoding="utf-8")
    elif DOCUMENT.read_text(encoding="utf-8") != text:
        sys.exit("docs/isa.md is out of date: run make isa-report")


if __name__ == "__main__":
    main()
