"""`mla-jax doctor`: what is installed, what native kernels are here, what each op runs, and why."""

import importlib.metadata
import platform
import sys
from typing import Any

import jax

from custom_calls import registry
from custom_calls.abi import runtime_ffi_version
from custom_calls.architectures import PLATFORMS
from custom_calls.build_record import build_record
from custom_calls.errors import KernelUnavailableError
from mla_jax.kernel_table import kernel_table, lowering_platform

_PACKAGES = (
    "mla-jax",
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "ml_dtypes",
    "tokenizers",
    "jinja2",
    "huggingface_hub",
)


def report() -> dict[str, Any]:
    """Everything that `doctor` prints, as plain data.

    "problem" is a sentence where JAX has no backend, or this backend's native library cannot be used; a
    platform that no native library exists for is not a problem.
    """
    backend, devices, ops, problem = None, [], [], None
    builds, unknown = build_record()
    try:
        backend = lowering_platform()
        devices = [str(device) for device in jax.devices()]
        ops = [vars(row) for row in kernel_table("auto", backend)]
        library = registry.library(backend)
        if library.module is not None and not library.targets:
            problem = f"the native library is of no use: {library.reason}"
    except KernelUnavailableError as error:
        problem = str(error)
    return {
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "ffi_api_runtime": ".".join(map(str, runtime_ffi_version())),
        "backend": backend,
        "devices": devices,
        "libraries": {name: _library(name) for name in PLATFORMS},
        "build": {"platforms": {name: vars(one) for name, one in builds.items()}, "problem": unknown},
        "ops": ops,
        "problem": problem,
    }


def format_report(facts: dict[str, Any]) -> str:
    """The report as text for people."""
    lines = [f"python {facts['python']} on {facts['machine']}"]
    lines += [f"{name} {version}" for name, version in facts["packages"].items()]
    lines.append(f"XLA FFI of the runtime: {facts['ffi_api_runtime']}")
    lines.append(f"backend: {facts['backend'] or 'none'} ({', '.join(facts['devices'])})")
    lines.append("native libraries:")
    for name, library in facts["libraries"].items():
        state = f"{len(library['targets'])} targets" if library["targets"] else "none"
        detail = f" for {', '.join(library['architectures'])}" if library["architectures"] else ""
        detail += f", {library['isa']}" if library.get("isa") else ""
        lines.append(f"  {name:<5} {state}{detail}: {library['reason']}")
    lines += _built(facts["build"])
    if facts["ops"]:
        lines.append(f"ops on {facts['backend']}:")
    width = max((len(row["op"]) for row in facts["ops"]), default=0)
    lines += [f"  {row['op']:<{width}}  {row['implementation']:<9}  {row['reason']}" for row in facts["ops"]]
    if facts["problem"]:
        lines.append(f"problem: {facts['problem']}")
    return "\n".join(lines)


def _built(build: dict[str, Any]) -> list[str]:
    """The lines about the build."""
    if build["problem"]:
        return [f"what was built and why not is unknown: {build['problem']}"]
    lines = ["the build:"]
    for name, one in build["platforms"].items():
        made = f"built by {one['compiler']} for {', '.join(one['architectures'])}"
        lines.append(f"  {name:<5} {made if one['compiler'] else 'not built: ' + one['reason']}")
        lines += [f"        {sentence}" for sentence in one["refused"]]
    return lines


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _library(name: str) -> dict[str, Any]:
    found = registry.library(name)
    # What a library of no use says of itself may be anything.
    served = found.abi if found.targets else {}
    return {
        "module": found.module,
        "targets": sorted(found.targets),
        "reason": found.reason,
        "architectures": list(served.get("architectures", ())),
        "contracts": dict(served.get("ops", {})),
        "isa": served.get("isa"),
        "isa_built": served.get("isa_built"),
        "ffi_api": ".".join(map(str, served.get("ffi_api", ()))) or None,
        "compiler": served.get("compiler"),
    }
