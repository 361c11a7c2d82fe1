"""pytest plugin: on JAX's CPU platform the ROCm kernels run in the emulator, in place of the CPU's.

`MLA_JAX_EMULATED_ARCH` names the architecture. What a test asks of native kernels on the CPU it then asks of
gfx942 or gfx950 code objects, through the same FFI handlers and launches as on a GPU.
"""

import fcntl
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.append(str(Path(__file__).resolve().parent))

import emulation
import hip_toolchain

from custom_calls import registry

ROOT = Path(__file__).resolve().parents[2]
FOLDER = hip_toolchain.BUILD / "handlers"
MODULE = "_rocm_emulated"


def build() -> Path:
    """The handlers of the ROCm library, compiled for tests; returns the module's path."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    tools = Path(sys.executable).parent
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = [
            str(tools / "cmake"), "-G", "Ninja", "-S", str(ROOT), "-B", str(FOLDER),
            f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", "-DMLA_JAX_EMULATED=ON",
        ]  # fmt: skip
        for command in (configure, [str(tools / "ninja"), "-C", str(FOLDER), MODULE]):
            environment = {**os.environ, "MLA_JAX_BACKENDS": "cpu"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    (built,) = FOLDER.glob(f"{MODULE}.*.so")
    return built


def module() -> ModuleType:
    """The handlers, with the emulator loaded as the driver that they find."""
    emulation.library()
    spec = importlib.util.spec_from_file_location(MODULE, build())
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def pytest_configure() -> None:
    loaded = module()
    emulation.check(emulation.library().emu_set_arch(os.environ["MLA_JAX_EMULATED_ARCH"].encode()))
    sys.modules[MODULE] = loaded
    registry.LIBRARIES["cpu"] = MODULE
    found = registry.library("cpu")
    assert found.targets, found.reason


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(
        f"last emulated kernel: {emulation.counters().instructions} wave-instructions"
    )
