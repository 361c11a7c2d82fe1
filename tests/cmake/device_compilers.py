"""Compilers that are shell scripts, and CMake's own functions called without a project."""

import json
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cmake

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
cmake_minimum_required(VERSION 3.20)
set(PROJECT_SOURCE_DIR "{root}")
include("{root}/cmake/build_record.cmake")
include("{root}/cmake/device_compiler.cmake")
list(REMOVE_ITEM MLA_rocm_FOLDERS /opt/rocm/bin /opt/rocm/llvm/bin)
list(REMOVE_ITEM MLA_cuda_FOLDERS /usr/local/cuda/bin)
{body}
"""
VERSION_OF_CLANG = "Debian clang version 22.1.8 (1~deb12u1)\\nInstalledDir: /usr/lib/llvm-22/bin"


@dataclass(frozen=True)
class Ran:
    """A script's exit status, what it said, and the JSON that it left in `record.json`, if any."""

    status: int
    said: str
    record: Any


def compiler(
    path: Path, *, says: str = "", status: int = 0, writes: bool = True, version: str = VERSION_OF_CLANG
) -> None:
    """A compiler that prints `says`, writes its last argument or does not, and ends with `status`.

    The last call's arguments are the lines of a file beside it, `<name>.call`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "#!/bin/sh\n"
        f"if [ \"$1\" = --version ]; then printf '%b\\n' {shlex.quote(version)}; exit 0; fi\n"
        f"printf '%s\\n' \"$@\" > {shlex.quote(f'{path}.call')}\n"
        f"printf '%b\\n' {shlex.quote(says)} >&2\n"
        + ("for last; do :; done\necho image > \"$last\"\n" if writes else "")
        + f"exit {status}\n"
    )  # fmt: skip
    path.chmod(0o755)


def run(folder: Path, body: str, **environment: str) -> Ran:
    """Runs CMake code in `folder`, where programs are looked for in `folder`/bin and nowhere else."""
    script = folder / "script.cmake"
    script.write_text(SCRIPT.format(root=ROOT, body=body))
    work = folder / "build folder"
    work.mkdir(exist_ok=True)
    done = subprocess.run(
        [str(Path(cmake.CMAKE_BIN_DIR) / "cmake"), "-P", str(script)], cwd=work, capture_output=True, text=True,
        env={"PATH": str(folder / "bin"), **environment}, timeout=60, check=False,
    )  # fmt: skip
    record = work / "record.json"
    return Ran(
        done.returncode,
        done.stdout + done.stderr,
        json.loads(record.read_text()) if record.exists() else None,
    )
