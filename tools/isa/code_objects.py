"""The kernels of gfx942 and gfx950 as the compiler made them. Needs clang-22 (tools/install_rocm_toolchain.sh)."""

import fcntl
import functools
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isa.cost import is_matrix, matrix_name
from isa.flow import Instruction
from isa.machines import LANES, MACHINES, SIMDS

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "isa"
COMPILER = "clang++-22"
REGISTERS_PER_LANE, REGISTER_BLOCK, WAVES_PER_SIMD = 512, 8, 8


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
    code: tuple[Instruction, ...]

    @property
    def waves(self) -> int:
        """Of a block."""
        return self.threads // LANES

    @property
    def waves_per_simd(self) -> int:
        """That registers and LDS let a SIMD hold."""
        used = -(-max(self.vgprs, 1) // REGISTER_BLOCK) * REGISTER_BLOCK
        by_registers = min(WAVES_PER_SIMD, REGISTERS_PER_LANE // used)
        lds = self.static_lds + self.dynamic_lds
        blocks = by_registers * SIMDS // self.waves
        if lds:
            blocks = min(blocks, MACHINES[self.architecture].lds // lds)
        return blocks * self.waves // SIMDS

    @functools.cached_property
    def instructions(self) -> Counter[str]:
        return Counter(line.name for line in self.code)

    @property
    def matrix(self) -> dict[str, int]:
        """By `matrix_name`."""
        return dict(Counter(matrix_name(line) for line in self.code if is_matrix(line.name)))

    @property
    def matrix_cycles(self) -> int:
        """Of the matrix instructions in the code, once each, at the published rate."""
        machine = MACHINES[self.architecture]
        return round(sum(count * machine.matrix_cycles(name) for name, count in self.matrix.items()))


def ops() -> list[str]:
    """Every op that has kernels for GPUs."""
    return sorted(path.parent.name for path in ROOT.glob("csrc/*/gpu_kernel.cc"))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


@functools.cache
def compiler() -> str:
    """Name and version."""
    found = re.search(r"clang version \S+", _run(COMPILER, "--version"))
    assert found is not None, f"{COMPILER} does not say its version"
    return found[0].replace(" version", "")


def constants(architecture: str, header: str, expressions: Sequence[str]) -> list[int]:
    """Values that a header of the sources has for the host, in namespace mla::gpu, on an architecture of ROCm's."""
    prints = "".join(f'std::printf("%d\\n", static_cast<int>({text}));' for text in expressions)
    source = (
        f'#define MLA_GPU_ROCM\n#define __{architecture}__\n#include <cstdio>\n#include "{header}"\n'
        f"using namespace mla::gpu;\nint main() {{ {prints} }}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        file, program = Path(folder, "constants.cc"), Path(folder, "constants")
        file.write_text(source)
        _run(COMPILER, "-std=c++17", "-Icsrc", str(file), "-o", str(program))
        return [int(line) for line in _run(str(program)).split()]


_FORMATS = ("e2m1", "e4m3", "e4m3fnuz", "int4", "bf16")
PRODUCTS = (
    "stream8", "stream16", "narrow8", "narrow16", "wide8", "tile32", "tile64", "low16", "low32", "high16", "high32",
)  # fmt: skip

# Codes of the rows and of the weight of linear_fp8.
FP8_OPERANDS = ("ocp_ocp", "ocp_fnuz", "fnuz_ocp", "fnuz_fnuz")


def product_shape(name: str) -> str:
    """The type in gpu/product.h of the shape that a product's kernel has in its name."""
    return re.sub(r"(\d+)", r"Shape\1", name.capitalize())


# Header -> kernel -> the bytes that its launch asks for, as the header says them.
_DYNAMIC_LDS = {
    "linear_fp8/gpu_shape.h": {
        f"mla_linear_fp8_{codes}_{kind}": f"Fp8{kind.capitalize()}::kSharedBytes"
        for codes in FP8_OPERANDS
        for kind in ("few", "many")
    },
    "linear_mxfp4/gpu_shape.h": {
        f"mla_linear_mxfp4_{kind}": f"Mxfp4{kind.capitalize()}::kSharedBytes" for kind in ("few", "many")
    },
    "linear_shuffled/gpu_shape.h": {
        f"mla_linear_shuffled_few{tokens}": f"Few{tokens}::kSharedBytes" for tokens in (16, 32)
    },
    "gpu/product.h": {
        f"mla_product_{format_}_{shape}": f"{product_shape(shape)}::SharedBytes(1)"
        for format_ in _FORMATS
        for shape in PRODUCTS
    },
    # With the 256 experts of DeepSeek-V3.
    "expert_mlp/gpu_shape.h": {"mla_expert_plan": "PlanInts(256) * 4"},
}


def _dynamic_lds(architecture: str) -> dict[str, int]:
    """Kernel name -> bytes that its launch asks for."""
    sizes: dict[str, int] = {}
    for header, kernels in _DYNAMIC_LDS.items():
        sizes |= zip(kernels, constants(architecture, header, list(kernels.values())), strict=True)
    return sizes


def _image(op: str, architecture: str) -> Path:
    """The code object of an op, compiled as the build compiles it, once a version of its sources and the compiler."""
    command = (
        COMPILER, "-x", "hip", "-std=c++17", "-O3", "-nogpuinc", "-nogpulib", "-Icsrc", "--no-gpu-bundle-output",
        f"--offload-arch={architecture}", "--cuda-device-only", f"csrc/{op}/gpu_kernel.cc",
    )  # fmt: skip
    source = _run(*command, "-E", "-P", "-o", "-")
    digest = hashlib.sha256("\0".join((compiler(), *command, source)).encode()).hexdigest()[:24]
    image = BUILD / f"{op}.{architecture}.{digest}.co"
    BUILD.mkdir(parents=True, exist_ok=True)
    # Another process that asks for it waits for it.
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.exists():
            for older in BUILD.glob(f"{op}.{architecture}.*"):
                older.unlink()
            partial = image.with_suffix(".partial")
            _run(*command, "-c", "-o", str(partial))
            os.replace(partial, image)
    return image


def kernels() -> list[Kernel]:
    """Every kernel of every op for every architecture, compiled as the build compiles them."""
    dynamic = {architecture: _dynamic_lds(architecture) for architecture in MACHINES}
    found = []
    for op in ops():
        for architecture in MACHINES:
            image = str(_image(op, architecture))
            notes = _run("llvm-readelf-22", "--notes", image)
            code = _run("llvm-objdump-22", "-d", "--no-show-raw-insn", image)
            found += _parse(op, architecture, notes, code, dynamic[architecture])
    return found


def instruction(line: str) -> Instruction:
    """From a line of llvm-objdump's: text, then behind // the address."""
    text, _, rest = line.partition("//")
    text, address = text.strip(), int(rest.partition(":")[0], 16)
    if not text.startswith(("s_branch", "s_cbranch")):
        return Instruction(address, text)
    # In words from the next instruction on, as 16 bits with a sign.
    words = int(text.split()[1])
    return Instruction(address, text, address + 4 + 4 * (words - (words >> 15 << 16)))


def _parse(op: str, architecture: str, notes: str, code: str, dynamic: Mapping[str, int]) -> list[Kernel]:
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
        lines = tuple(instruction(line) for line in bodies[name].splitlines() if line.strip())
        found.append(
            Kernel(
                op, name, architecture, int(field("max_flat_workgroup_size")), int(field("vgpr_count")),
                int(field("agpr_count")), int(field("sgpr_count")), int(field("group_segment_fixed_size")),
                dynamic.get(name, 0), int(field("private_segment_fixed_size")),
                int(field("vgpr_spill_count")), int(field("sgpr_spill_count")), lines,
            )
        )  # fmt: skip
    return sorted(found, key=lambda kernel: kernel.name)
