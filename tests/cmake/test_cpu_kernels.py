"""The CPU kernels are C++17 to clang as they are to gcc, which builds them everywhere else."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from device_compilers import ROOT

import cmake

CLANG = "clang++-22"
PROJECT = f"""
cmake_minimum_required(VERSION 3.20)
project(cpu_kernels LANGUAGES CXX)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
include({ROOT}/cmake/cpu_kernels.cmake)
file(WRITE empty.cc "")
add_library(all_kernels MODULE empty.cc)
mla_link_cpu_kernels(all_kernels)
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """How clang would compile every kernel for every level."""
    if shutil.which(CLANG) is None:
        pytest.skip(f"{CLANG} is not installed (tools/install_rocm_toolchain.sh)")
    folder = tmp_path_factory.mktemp("cpu_kernels")
    (folder / "CMakeLists.txt").write_text(PROJECT)
    build = folder / "build"
    choices = [f"-DCMAKE_CXX_COMPILER={CLANG}", "-DCMAKE_BUILD_TYPE=Release"]
    ran = subprocess.run(
        [Path(cmake.CMAKE_BIN_DIR) / "cmake", "-S", folder, "-B", build, "-G", "Unix Makefiles", *choices],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    entries = json.loads((build / "compile_commands.json").read_text())
    return [shlex.split(entry["command"]) for entry in entries]


# Between these lie levels that differ in flags, and in a few functions that the last one has too.
@pytest.mark.parametrize("level", ["baseline", "avx2", "amx"])
def test_clang_takes_every_kernel(commands: list[list[str]], level: str) -> None:
    found = [command for command in commands if f"-DMLA_ISA={level}" in command]
    assert len(found) == len(list((ROOT / "csrc").glob("*/cpu_kernel.cc")))
    for command in found:
        checked = [*command[: command.index("-o")], "-fsyntax-only", "-Werror", command[-1]]
        ran = subprocess.run(checked, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr[-3000:]
