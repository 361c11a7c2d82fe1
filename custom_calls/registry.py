"""Which native libraries are here, what each one serves, and why not.

Each native library is a shared object of its own with an ABI record. A library is probed and checked
before anything of it is registered with XLA: one that is missing, older, newer or broken costs its own
ops, with one clear sentence, and never the import of this package or JAX's CPU backend (a handler
compiled against newer FFI headers than the runtime's would otherwise disable every JAX call).
"""

import functools
import importlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from custom_calls.errors import KernelFallbackWarning, KernelUnavailableError

Kernels = Literal["auto", "native", "reference"]
KERNELS: tuple[Kernels, ...] = ("auto", "native", "reference")

PROJECT_ABI = 1
"""Version of the operand order and attributes that this Python package speaks."""

LIBRARIES = {"cpu": "custom_calls._cpu", "cuda": "custom_calls._cuda", "rocm": "custom_calls._rocm"}
"""Lowering platform -> extension module that holds its handlers."""

# jaxlib keys its handler tables by these exact spellings, which differ from lowering platform names.
_REGISTRATION_PLATFORM = {"cpu": "cpu", "cuda": "CUDA", "rocm": "ROCM"}


@dataclass(frozen=True)
class Library:
    """Outcome of probing one platform's native library; `reason` says what it is, or why it is of no use."""

    platform: str
    module: str | None
    targets: frozenset[str]
    reason: str
    abi: dict[str, Any]

    @property
    def is_gpu(self) -> bool:
        """Whether its ops are called as GPUs want them; an emulated library serves the CPU and says so."""
        return self.abi.get("emulates", self.platform) in ("rocm", "cuda")


@dataclass(frozen=True)
class Choice:
    """What an op runs on a platform, and the reason in one sentence."""

    implementation: Literal["native", "reference"]
    reason: str


def runtime_ffi_version() -> tuple[int, int]:
    """(major, minor) of the XLA FFI API of the installed jaxlib, read from its own headers."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    text = header.read_text(encoding="utf-8")
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    if not all(found):
        raise RuntimeError(f"{header}: no XLA FFI version found")
    return int(found[0].group(1)), int(found[1].group(1))  # type: ignore[union-attr]


def abi_mismatch(abi: dict[str, Any], platform: str, runtime: tuple[int, int]) -> str | None:
    """Why a library with this ABI record must not be registered, or None when it may."""
    if abi.get("error"):
        return str(abi["error"])
    if abi.get("project_abi") != PROJECT_ABI:
        return f"speaks project ABI {abi.get('project_abi')}, this package speaks {PROJECT_ABI}; reinstall it"
    if abi.get("platform") != platform:
        return f"was built for platform {abi.get('platform')!r}, expected {platform!r}"
    built = tuple(abi.get("ffi_api", ()))
    # XLA accepts handlers of the same major version that are not newer than the runtime.
    if len(built) != 2 or built[0] != runtime[0] or built[1] > runtime[1]:
        return (
            f"was compiled against XLA FFI {'.'.join(map(str, built))}, the installed jaxlib has "
            f"{runtime[0]}.{runtime[1]}; rebuild it against the oldest supported jaxlib"
        )
    return None


def probe(
    platform: str,
    module_name: str,
    importer: Callable[[str], Any] = importlib.import_module,
    register: Callable[..., Any] = jax.ffi.register_ffi_target,
) -> Library:
    """Imports, checks and registers one native library; every failure becomes its `reason`."""

    def absent(reason: str, abi: dict[str, Any] | None = None) -> Library:
        return Library(platform, module_name, frozenset(), reason, abi or {})

    try:
        module = importer(module_name)
    except Exception as error:  # a broken shared object may raise anything; it costs its own ops only
        return absent(f"{module_name} cannot be loaded: {type(error).__name__}: {error}")
    try:
        abi = dict(module.abi())
        problem = abi_mismatch(abi, platform, runtime_ffi_version())
        if problem:
            return absent(f"{module_name} {problem}", abi)
        capsules = dict(module.registrations())
        for target, capsule in capsules.items():
            register(target, capsule, platform=_REGISTRATION_PLATFORM[platform])
    except Exception as error:
        return absent(f"{module_name} cannot be registered: {type(error).__name__}: {error}")
    isa = f", running its {abi['isa']} code" if abi.get("isa") else ""
    reason = f"{module_name}, built for {platform}{isa}"
    return Library(platform, module_name, frozenset(capsules), reason, abi)


def check_environment() -> None:
    """Raises `KernelUnavailableError` where an environment variable asks a library for what it cannot be.

    Ops would fall back with a warning; a program that is only starting had better say so and stop.
    """
    for platform in LIBRARIES:
        mistake = library(platform).abi.get("error")
        if mistake:
            raise KernelUnavailableError(str(mistake))


@functools.cache
def library(platform: str) -> Library:
    """The native library of a lowering platform, probed once per process."""
    if platform not in LIBRARIES:
        reason = f"no native library exists for platform {platform!r}, only for {', '.join(LIBRARIES)}"
        return Library(platform, None, frozenset(), reason, {})
    return probe(platform, LIBRARIES[platform])


def choose(op: str, targets: tuple[str, ...], platform: str, kernels: Kernels, warn: bool = True) -> Choice:
    """Decides what `op` runs on `platform`.

    Args:
      op: name of the op, for messages.
      targets: the custom-call targets that its native form needs; empty where the op's own native
        form is an XLA computation.
      platform: lowering platform ("cpu", "rocm", "cuda", ...).
      kernels: "native" raises `KernelUnavailableError` with the reason where a target is missing;
        "auto" falls back to the reference and warns once; "reference" never asks.
      warn: False for a caller that only wants to know.
    """
    if kernels not in KERNELS:
        raise KernelUnavailableError(f"kernels: expected one of {', '.join(KERNELS)}, got {kernels!r}")
    if kernels == "reference":
        return Choice("reference", "kernels='reference' was asked for")
    found = library(platform)
    missing = [target for target in targets if target not in found.targets]
    if not missing:
        return Choice("native", found.reason)
    reason = found.reason if not found.targets else f"{found.module} has no target {', '.join(missing)}"
    if kernels == "native":
        raise KernelUnavailableError(f"{op} has no native kernel on platform {platform!r}: {reason}")
    if warn:
        _warn_once(op, platform, reason)
    return Choice("reference", reason)


_warned: set[tuple[str, str]] = set()


def _warn_once(op: str, platform: str, reason: str) -> None:
    if (op, platform) not in _warned:
        _warned.add((op, platform))
        warnings.warn(
            f"{op} falls back to its pure-JAX reference on platform {platform!r}: {reason}",
            KernelFallbackWarning,
            stacklevel=3,
        )
