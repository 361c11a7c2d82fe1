"""Runs kernels of gfx942 and gfx950 code objects on NumPy arrays, in the emulator: never on AMD hardware."""

import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from hip_toolchain import BUILD

SOURCES = Path(__file__).resolve().parent / "emulator"
LIBRARY = "libamdhip64.so.7"
# Contraction would fuse what the instructions round twice. The library is built for the machine that runs it.
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-Wall", "-Wextra", "-fno-strict-aliasing",
         "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno",
         "-isystem", jax.ffi.include_dir())  # fmt: skip


class EmulatorError(RuntimeError):
    """A failed call: `code` is the HIP error, the text the emulator's own sentence."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def _machine() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return line
    return ""


@functools.cache
def build() -> Path:
    """Compiles the emulator once a version of its sources, compiler and processor; returns the library's path."""
    compiler = os.environ.get("CXX", "g++")
    headers = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.h")))
    common = "\0".join((compiler, *FLAGS, _machine())).encode() + headers
    BUILD.mkdir(parents=True, exist_ok=True)
    objects = {}
    for source in sorted(SOURCES.glob("*.cc")):
        digest = hashlib.sha256(common + source.read_bytes()).hexdigest()[:24]
        objects[source] = BUILD / f"{source.stem}-{digest}.o"
    digest = hashlib.sha256("\0".join(map(str, objects.values())).encode()).hexdigest()[:24]
    library = BUILD / digest / LIBRARY

    def compile_one(source: Path) -> None:
        if not objects[source].exists():
            partial = objects[source].with_suffix(".partial")
            subprocess.run([compiler, *FLAGS, "-c", str(source), "-o", str(partial)], check=True)
            os.replace(partial, objects[source])

    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(compile_one, objects))
            library.parent.mkdir(exist_ok=True)
            partial = library.with_suffix(".partial")
            link = [
                compiler,
                "-shared",
                f"-Wl,-soname,{LIBRARY}",
                *map(str, objects.values()),
                "-o",
                str(partial),
            ]
            subprocess.run(link, check=True)
            os.replace(partial, library)
    return library


@functools.cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(build()))
    loaded.emu_last_error.restype = ctypes.c_char_p
    loaded.emu_counters.restype = ctypes.c_char_p
    loaded.emu_instruction_names.restype = ctypes.c_char_p
    loaded.emu_kernel_names.restype = ctypes.c_char_p
    loaded.emu_launched_kernels.restype = ctypes.c_char_p
    loaded.emu_poisoning.restype = ctypes.c_void_p
    loaded.hipGetErrorString.restype = ctypes.c_char_p
    return loaded


def check(code: int) -> None:
    if code:
        raise EmulatorError(code, library().emu_last_error().decode())


@dataclasses.dataclass(frozen=True)
class Counters:
    """What the last launch executed: wave-instructions by mnemonic, and bytes that lanes moved."""

    instructions: int
    lds_bytes: int
    global_bytes: int
    histogram: Mapping[str, int]


def counters() -> Counters:
    numbers = [ctypes.c_uint64() for _ in range(3)]
    text = library().emu_counters(*map(ctypes.byref, numbers)).decode()
    histogram = {name: int(count) for name, count in (line.split() for line in text.splitlines())}
    return Counters(*(number.value for number in numbers), histogram)


def launched_kernels() -> frozenset[str]:
    """The kernels that have run to their end in this process."""
    return frozenset(library().emu_launched_kernels().decode().split())


def poisoning(handler: ctypes.c_void_p) -> ctypes.c_void_p:
    """An FFI handler that calls `handler`, whose results are all ones bits by then but for those updated in place."""
    place = library().emu_poisoning(handler)
    assert place is not None, "the emulator has no place for another FFI handler"
    return ctypes.c_void_p(place)


@contextlib.contextmanager
def registered(arrays: Sequence[np.ndarray]) -> Iterator[None]:
    """While open, a kernel may touch these arrays' bytes and no others."""
    check(library().emu_clear_buffers())
    for array in arrays:
        check(
            library().emu_register_buffer(ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(array.nbytes))
        )
    try:
        yield
    finally:
        check(library().emu_clear_buffers())


class Module:
    """A code object (or bundle) loaded for one architecture."""

    def __init__(self, image: bytes, architecture: str) -> None:
        self._image = image
        self._handle = ctypes.c_void_p()
        check(library().emu_set_arch(architecture.encode()))
        check(library().hipModuleLoadData(ctypes.byref(self._handle), image))

    def close(self) -> None:
        check(library().hipModuleUnload(self._handle))

    def kernels(self) -> frozenset[str]:
        return frozenset(library().emu_kernel_names(self._handle).decode().split())

    def function(self, name: str) -> ctypes.c_void_p:
        found = ctypes.c_void_p()
        check(library().hipModuleGetFunction(ctypes.byref(found), self._handle, name.encode()))
        return found

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[np.ndarray | np.generic | int | float],
        *,
        lds_bytes: int = 0,
        order: int = 0,
        budget: int = 100_000_000,
    ) -> Counters:
        """Launches `grid` workgroups of `block` threads (up to three extents each).

        arguments: arrays are passed as pointers and registered, NumPy scalars by value in their own width, int
          as int32 and float as float32.
        order: 0 the first wave first, 1 the last one first and its stores in reverse, above 1 a seeded
          interleaving.
        Raises EmulatorError where a call fails.
        """
        function = self.function(name)
        arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
        for array in arrays:
            assert array.flags.c_contiguous, "a kernel argument is not contiguous"
        holders = [_holder(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * max(1, len(holders)))(*(holder.ctypes.data for holder in holders))
        check(library().emu_set_wave_order(order))
        check(library().emu_set_budget(ctypes.c_uint64(budget)))
        extents = [*grid, *[1] * (3 - len(grid)), *block, *[1] * (3 - len(block))]
        with registered(arrays):
            check(library().hipModuleLaunchKernel(function, *extents, lds_bytes, None, pointers, None))
        return counters()


def _holder(argument: np.ndarray | np.generic | int | float) -> np.ndarray:
    """An array that holds the argument's own bytes."""
    if isinstance(argument, np.ndarray):
        return np.array([argument.ctypes.data], np.uint64)
    if isinstance(argument, np.generic):
        return np.array([argument])
    return np.array([argument], np.float32 if isinstance(argument, float) else np.int32)


@contextlib.contextmanager
def loaded(image: bytes, architecture: str) -> Iterator[Module]:
    module = Module(image, architecture)
    try:
        yield module
    finally:
        module.close()


def poisoned(shape: int | Sequence[int], dtype: object) -> np.ndarray:
    """An array of all ones bits: a NaN in every float format that has one of that pattern, -1 as an integer."""
    out = np.empty(shape, dtype)
    out.view(np.uint8)[...] = 0xFF
    return out
