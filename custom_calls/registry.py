"""Which native libraries are here, what each one serves, and why not.

Each native library is a shared object of its own with an ABI record (`custom_calls.abi`). A library is probed and
checked before anything of it is registered with XLA: one that is missing, older, newer or broken costs its own
ops, with one clear sentence, and never the import of this package or JAX's CPU backend (a handler
compiled against newer FFI headers than the runtime's would otherwise disable every JAX call).
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from custom_calls.abi import (
    abi_mismatch,
    announced_targets,
    architecture_mismatch,
    check_handler,
    runtime_ffi_version,
    why_lacking,
)
from custom_calls.architectures import architectures_here
from custom_calls.errors import KernelFallbackWarning, KernelUnavailableError
from custom_calls.shared_object import import_library

Kernels = Literal["auto", "native", "reference"]
KERNELS: tuple[Kernels, ...] = ("auto", "native", "reference")

LIBRARIES = {"cpu": "custom_calls._cpu", "cuda": "custom_calls._cuda", "rocm": "custom_calls._rocm"}
"""Lowering platform -> extension module that holds its handlers."""

_NOT_BUILT = {
    "cuda": "build this package from source where CUDA's nvcc is found",
    "rocm": "build this package from source where clang 22 or ROCm's is found",
}

# jaxlib keys its handler tables by these exact spellings, which differ from lowering platform names.
_REGISTRATION_PLATFORM = {"cpu": "cpu", "cuda": "CUDA", "rocm": "ROCM"}


@dataclass(frozen=True)
class Library:
    """Outcome of probing one platform's native library.

    Attributes:
      platform: lowering platform.
      module: the extension module, or None where none is installed.
      targets: the custom-call targets that it serves.
      reason: a sentence that says what it is, or why it is of no use.
      abi: its ABI record, as far as it could be read.
    """

    platform: str
    module: str | None
    targets: frozenset[str]
    reason: str
    abi: dict[str, Any]

    @property
    def is_gpu(self) -> bool:
        """Whether it is called as GPUs want it; an emulated library serves the CPU, and its record says so."""
        return self.abi.get("emulates", self.platform) in ("cuda", "rocm")

    @property
    def processors(self) -> int:
        """Of a GPU: those that its launches spread over. A record without them is of a time when all counted 132."""
        return int(self.abi.get("processors", 132))


@dataclass(frozen=True)
class Choice:
    """What an op runs on a platform, and the reason in one sentence; `targets`: those of its native form."""

    implementation: Literal["native", "reference"]
    reason: str
    targets: tuple[str, ...] = ()


def probe(
    platform: str,
    module_name: str,
    importer: Callable[[str], Any] = import_library,
    register: Callable[..., Any] = jax.ffi.register_ffi_target,
) -> Library:
    """Imports, checks and registers one native library; every failure becomes its `reason`."""

    def absent(reason: str, abi: dict[str, Any] | None = None) -> Library:
        return Library(platform, module_name, frozenset(), reason, abi or {})

    try:
        module = importer(module_name)
    except Exception as error:  # a broken shared object may raise anything; it costs its own ops only
        if platform in _NOT_BUILT and getattr(error, "name", None) == module_name:
            return Library(platform, None, frozenset(), _none_for(platform, module_name), {})
        return absent(f"{module_name} cannot be loaded: {type(error).__name__}: {error}")
    try:
        abi = dict(module.abi())
        problem = abi_mismatch(abi, platform, runtime_ffi_version())
        problem = problem or architecture_mismatch(abi, architectures_here(platform))
        if problem:
            return absent(f"{module_name} {problem}", abi)
        announced = announced_targets(abi)
        capsules = {name: one for name, one in module.registrations().items() if name in announced}
        for target, capsule in capsules.items():
            check_handler(target, capsule)
        for target, capsule in capsules.items():
            register(target, capsule, platform=_REGISTRATION_PLATFORM[platform])
    except Exception as error:
        return absent(f"{module_name} cannot be registered: {type(error).__name__}: {error}")
    isa = f", running its {abi['isa']} code" if abi.get("isa") else ""
    reason = f"{module_name}, built for {platform}{isa}"
    return Library(platform, module_name, frozenset(capsules), reason, abi)


def _none_for(platform: str, module_name: str) -> str:
    return f"no native library exists for platform {platform!r}: {module_name} is not built; {_NOT_BUILT[platform]}"


def check_environment() -> None:
    """Raises `KernelUnavailableError` where an environment variable asks a library for what it cannot be.

    Ops would fall back with a warning; a program that is only starting had better say so and stop.
    """
    for platform in LIBRARIES:
        mistake = library(platform).abi.get("error")
        if mistake:
            raise KernelUnavailableError(str(mistake))


_warned: set[tuple[str, str]] = set()


@dataclass(eq=False)
class _Declared:
    """Libraries of `declared`, and the fallbacks that were warned of; compared by identity."""

    libraries: Mapping[str, Library]
    warned: set[tuple[str, str]] = field(default_factory=set)


# JAX's caches have this value in their keys: nothing that was traced or lowered with some libraries serves others.
_declared = jax.make_user_context(None)


@contextlib.contextmanager
def declared(*libraries: Library) -> Iterator[None]:
    """Within it ops choose from these libraries alone, whatever is installed.

    So a host lowers for a platform whose library it does not have, and a test proves what a library costs that
    serves some targets only. A target that no library registered can be lowered and not run. Fallbacks are warned
    of once for each op, as in a new process.
    """
    with _declared(_Declared({one.platform: one for one in libraries})):
        yield


def library(platform: str) -> Library:
    """The native library of a lowering platform, probed once per process; within `declared`, its own."""
    given: _Declared | None = _declared.value
    if given is None:
        return _installed(platform)
    if platform in given.libraries:
        return given.libraries[platform]
    return Library(
        platform, None, frozenset(), f"no native library is declared for platform {platform!r}", {}
    )


@functools.cache
def _installed(platform: str) -> Library:
    if platform not in LIBRARIES:
        reason = f"no native library exists for platform {platform!r}, only for {', '.join(LIBRARIES)}"
        return Library(platform, None, frozenset(), reason, {})
    return probe(platform, LIBRARIES[platform])


def choose(
    op: str,
    targets: tuple[str, ...],
    platform: str,
    kernels: Kernels,
    warn: bool = True,
    adapted: tuple[tuple[str, ...], ...] = (),
) -> Choice:
    """Decides what `op` runs on `platform`.

    Args:
      op: name of the op, for messages.
      targets: the custom-call targets that its native form needs; empty where the op's own native
        form is an XLA computation.
      platform: lowering platform ("cpu", "rocm", "cuda", ...).
      kernels: "native" raises `KernelUnavailableError` with the reason where a target is missing;
        "auto" falls back to the reference and warns once; "reference" never asks.
      warn: False for a caller that only wants to know.
      adapted: the targets of other contracts that the op has adapters for, any of which does as well.
    """
    if kernels not in KERNELS:
        raise KernelUnavailableError(f"kernels: expected one of {', '.join(KERNELS)}, got {kernels!r}")
    if kernels == "reference":
        return Choice("reference", "kernels='reference' was asked for")
    found = library(platform)
    wanted = (targets, *adapted)
    for one in wanted:
        if found.targets.issuperset(one):
            return Choice("native", found.reason, one)
    reason = found.reason
    if found.targets:
        reason = f"{found.module} {why_lacking(found.abi, wanted, found.targets)}"
    if kernels == "native":
        raise KernelUnavailableError(f"{op} has no native kernel on platform {platform!r}: {reason}")
    if warn:
        _warn_once(op, platform, reason)
    return Choice("reference", reason)


def _warn_once(op: str, platform: str, reason: str) -> None:
    given: _Declared | None = _declared.value
    warned = _warned if given is None else given.warned
    if (op, platform) not in warned:
        warned.add((op, platform))
        warnings.warn(
            f"{op} falls back to its pure-JAX reference on platform {platform!r}: {reason}",
            KernelFallbackWarning,
            stacklevel=3,
        )
