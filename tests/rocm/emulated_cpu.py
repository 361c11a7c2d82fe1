"""pytest plugin: on JAX's CPU platform the ROCm kernels run in the emulator, in place of the CPU's.

`MLA_JAX_EMULATED_ARCH` names the architecture. What a test asks of native kernels on the CPU it then asks of
gfx942 or gfx950 code objects, through the same FFI handlers and launches as on a GPU. The results of a call hold
poison when its handler begins. `MLA_JAX_EMULATED_MODULE` names handlers other than those built here.
"""

import ctypes
import fcntl
import importlib.util
import os
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType

import pytest

sys.path.append(str(Path(__file__).resolve().parent))

import emulation
import hip_toolchain
import jax

from custom_calls import registry

ROOT = Path(__file__).resolve().parents[2]
FOLDER = hip_toolchain.BUILD / "handlers"
MODULE = "_rocm_emulated"
# The first wave first, the last one first, interleaved.
WAVE_ORDERS = 3


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
    path = os.environ.get("MLA_JAX_EMULATED_MODULE") or build()
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    handlers = {target: poisoning(capsule) for target, capsule in loaded.registrations().items()}
    loaded.registrations = lambda: handlers  # type: ignore[attr-defined]
    return loaded


def poisoning(capsule: object) -> object:
    """`emulation.poisoning` of a handler in a capsule."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    handler = ctypes.c_void_p(pointer(capsule, None))
    return jax.ffi.pycapsule(emulation.poisoning(handler))


def kernels(architecture: str) -> frozenset[str]:
    """Every kernel that the library's code objects hold for an architecture."""
    build()
    found = set()
    for source in sorted(ROOT.glob("csrc/*/gpu_kernel.cc")):
        image = (FOLDER / "rocm" / f"{source.parent.name}.image").read_bytes()
        with emulation.loaded(image, architecture) as code:
            found |= code.kernels()
    return frozenset(found)


def pytest_configure() -> None:
    loaded = module()
    emulation.check(emulation.library().emu_set_arch(os.environ["MLA_JAX_EMULATED_ARCH"].encode()))
    sys.modules[MODULE] = loaded
    registry.LIBRARIES["cpu"] = MODULE
    found = registry.library("cpu")
    assert found.targets, found.reason


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Each test has one order of the waves, by its id: what a missing barrier does shows in some of them alone."""
    order = zlib.crc32(item.nodeid.encode()) % WAVE_ORDERS
    emulation.check(emulation.library().emu_set_wave_order(order))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(" ".join(["emulated kernels:", *sorted(emulation.launched_kernels())]))
