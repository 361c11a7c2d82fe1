"""Builds real native libraries, right and wrong ones, and runs scripts that load them in a process of their own."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import jax
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
HEADER = Path(sysconfig.get_path("include")) / "Python.h"

needs_compiler = pytest.mark.skipif(
    COMPILER is None or not HEADER.exists(),
    reason=f"a native library is compiled here: no C++ compiler or no {HEADER}",
)


def build(folder: Path, name: str, *sources: Path, defines: tuple[str, ...] = ()) -> Path:
    """Compiles an extension module `name` of C or C++ into `folder`, with the flags of CMakeLists.txt's kernels."""
    target = folder / f"{name}{SUFFIX}"
    standard = ["-std=c++17"] if sources[0].suffix == ".cc" else ["-x", "c"]
    command = [
        str(COMPILER), *standard, "-O3", "-DNDEBUG", "-fPIC", "-shared", "-fvisibility=hidden",
        "-fno-math-errno", "-ffp-contract=off", "-Wno-psabi", *(f"-D{one}" for one in defines),
        f"-I{ROOT / 'csrc'}", "-isystem", jax.ffi.include_dir(), "-isystem", str(HEADER.parent),
        *map(str, sources), "-o", str(target),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return target


def run_python(script: str, folder: Path, **environment: str) -> str:
    """The script's output, from a folder that holds only what the test put there, beside what is installed."""
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", script],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
