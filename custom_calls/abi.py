"""The ABI record of a native library, what it must say, and the versions that this package speaks.

    {"project_abi": 1, "platform": "rocm", "ffi_api": (0, 3), "architectures": ("gfx942", "gfx950"),
     "ops": {"mla_jax.linear": 1, ...}, "processors": 256, "error": None}

"ops" names each op's contract, the version of what its operands, attributes and results mean. The custom-call
target of an op is its name and contract: "mla_jax.linear.v1". "processors": of a GPU, what launches spread over.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

STAGES = ("instantiate", "prepare", "initialize", "execute")
"""Of a custom call; XLA calls the handler of each that a library has one for."""

PROJECT_ABI = 1
"""Version of the record itself and of the operand order that all contracts share."""


def runtime_ffi_version() -> tuple[int, int]:
    """(major, minor) of the XLA FFI API of the installed jaxlib, read from its own headers."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    text = header.read_text(encoding="utf-8")
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    if not all(found):
        raise RuntimeError(f"{header}: no XLA FFI version found")
    return int(found[0].group(1)), int(found[1].group(1))  # type: ignore[union-attr]


def abi_mismatch(abi: Mapping[str, Any], platform: str, runtime: tuple[int, int]) -> str | None:
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
    return _malformed(abi)


def _malformed(abi: Mapping[str, Any]) -> str | None:
    ops, architectures = abi.get("ops"), abi.get("architectures")
    if not isinstance(ops, Mapping) or not all(type(contract) is int for contract in ops.values()):
        return f"has a malformed ABI record: 'ops': expected a contract number for each op, got {ops!r}"
    if not isinstance(architectures, tuple | list) or not all(isinstance(one, str) for one in architectures):
        return f"has a malformed ABI record: 'architectures': expected a list of names, got {architectures!r}"
    processors = abi.get("processors", 1)
    if type(processors) is not int or processors < 1:
        return f"has a malformed ABI record: 'processors': expected a positive number, got {processors!r}"
    return None


def architecture_mismatch(abi: Mapping[str, Any], here: Iterable[str]) -> str | None:
    """Why a library cannot run on all of these architectures, or None when it can."""
    built = abi["architectures"]
    missing = [one for one in here if one not in built]
    if not missing:
        return None
    return f"was built for {', '.join(built)}, this machine has {', '.join(missing)}"


def target_of(op: str, contract: int) -> str:
    """The custom-call target of an op's contract."""
    return f"{op}.v{contract}"


def contract_of(target: str) -> tuple[str, int]:
    """Op and contract of a custom-call target."""
    op, _, contract = target.rpartition(".v")
    return op, int(contract)


def announced_targets(abi: Mapping[str, Any]) -> frozenset[str]:
    """The targets that a record says its library holds."""
    return frozenset(target_of(op, contract) for op, contract in abi["ops"].items())


def check_handler(target: str, handler: Any) -> None:
    """Raises `TypeError` unless `handler` is a capsule, or a dict of capsules by stage with an "execute".

    XLA looks at it only when a backend starts, and what it does not understand then costs the whole backend.
    """
    stages = handler if isinstance(handler, dict) else {"execute": handler}
    if not set(stages) <= set(STAGES) or "execute" not in stages:
        raise TypeError(
            f"{target}: expected stages of {', '.join(STAGES)}, got {', '.join(map(repr, stages))}"
        )
    for stage, capsule in stages.items():
        if type(capsule).__name__ != "PyCapsule":
            raise TypeError(f"{target}: expected a capsule for {stage}, got {type(capsule).__name__}")


def why_lacking(abi: Mapping[str, Any], wanted: Iterable[Iterable[str]], held: frozenset[str]) -> str:
    """What keeps a library from serving an op, as the end of a sentence about it.

    Args:
      abi: its record.
      wanted: the sets of targets of which any one would do.
      held: the targets that it has.
    """
    spoken: dict[str, list[int]] = {}
    for target in (target for targets in wanted for target in targets if target not in held):
        op, contract = contract_of(target)
        spoken.setdefault(op, []).append(contract)
    reasons, absent = [], []
    for op, contracts in spoken.items():
        offered = abi.get("ops", {}).get(op)
        if offered is None:
            absent += [target_of(op, contract) for contract in contracts]
        elif offered in contracts:
            reasons.append(f"announces {target_of(op, offered)} and does not hold it")
        else:
            versions = " and ".join(map(str, sorted(contracts)))
            reasons.append(f"offers contract {offered} of {op}, this package speaks {versions}")
    return ", ".join([f"has no target {', '.join(absent)}"] * bool(absent) + reasons)
