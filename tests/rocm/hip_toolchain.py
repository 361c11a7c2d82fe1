"""clang-22 and its neighbours: HIP source or assembly in, gfx942 or gfx950 code objects out."""

import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

TOOLS = ("clang-22", "clang++-22", "ld.lld-22", "llvm-objdump-22")
ARCHITECTURES = ("gfx942", "gfx950")
BUILD = Path(__file__).resolve().parents[2] / "build" / "rocm"
# -mllvm options may be added by a test that wants other code; nothing links against a ROCm installation.
HIP_FLAGS = ("-x", "hip", "-std=c++17", "-O3", "-nogpuinc", "-nogpulib", "--cuda-device-only")


def missing() -> list[str]:
    """The tools that are not on PATH."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def required() -> bool:
    """Whether a missing tool is a failure: in CI, or where MLA_JAX_REQUIRE_ROCM is 1."""
    return bool(os.environ.get("CI")) or os.environ.get("MLA_JAX_REQUIRE_ROCM") == "1"


def _checked(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def _cached(kind: str, key: Sequence[str], make: str) -> Path:
    digest = hashlib.sha256("\0".join((kind, *key)).encode()).hexdigest()[:24]
    BUILD.mkdir(parents=True, exist_ok=True)
    return BUILD / f"{digest}.{make}"


@functools.cache
def assemble(source: str, architecture: str) -> bytes:
    """One code object from assembly text."""
    built = _cached("asm", (source, architecture), "co")
    if not built.exists():
        stem = f"{built}.{os.getpid()}"
        Path(f"{stem}.s").write_text(source)
        target = ("-target", "amdgcn-amd-amdhsa", f"-mcpu={architecture}")
        _checked(["clang-22", "-x", "assembler", *target, "-c", f"{stem}.s", "-o", f"{stem}.o"])
        _checked(["ld.lld-22", "-shared", f"{stem}.o", "-o", f"{stem}.co"])
        os.replace(f"{stem}.co", built)
        for ending in ("s", "o"):
            os.unlink(f"{stem}.{ending}")
    return built.read_bytes()


@functools.cache
def compile_hip(source: str, *architectures: str, flags: tuple[str, ...] = ()) -> bytes:
    """One code object for one architecture, an offload bundle for several."""
    built = _cached("hip", (source, *architectures, *flags), "co")
    if not built.exists():
        stem = f"{built}.{os.getpid()}"
        Path(f"{stem}.hip").write_text(source)
        targets = [f"--offload-arch={architecture}" for architecture in architectures]
        single = ["--no-gpu-bundle-output"] if len(architectures) == 1 else []
        _checked(
            ["clang++-22", *HIP_FLAGS, *flags, *single, *targets, "-c", f"{stem}.hip", "-o", f"{stem}.co"]
        )
        os.replace(f"{stem}.co", built)
        os.unlink(f"{stem}.hip")
    return built.read_bytes()
