"""What the build made for each platform, by which compiler, and why not: `_build.json`, beside the native libraries."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "_build.json"


@dataclass(frozen=True)
class PlatformBuild:
    """What a build did for one platform.

    Attributes:
      compiler: name and version of what compiled the kernels; None where there is no library.
      architectures: GPUs, or of a CPU the instruction-set levels, that the library has code for.
      reason: why there is no library; None where there is one.
      refused: a sentence for each compiler that was found and does not work.
    """

    compiler: str | None
    architectures: tuple[str, ...]
    reason: str | None
    refused: tuple[str, ...]


def build_record(folder: Path | None = None) -> tuple[dict[str, PlatformBuild], str | None]:
    """(what the build did by platform, None), or ({}, a sentence that says why that is not known).

    Args:
      folder: where the libraries are; default: where the CPU's is installed.
    """
    path = (folder or _installed()) / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {platform: _platform(entry) for platform, entry in found.items()}, None
    except FileNotFoundError:
        problem = f"there is no {FILE} beside the native libraries"
    except (OSError, ValueError) as error:
        problem = f"{FILE} cannot be read: {type(error).__name__}: {error}"
    except (AttributeError, KeyError, TypeError) as error:
        problem = f"{FILE} is no record of a build: {type(error).__name__}: {error}"
    return {}, f"{problem}; a new installation of mla_jax writes it"


def _installed() -> Path:
    """An editable installation has its libraries elsewhere than its Python files."""
    spec = importlib.util.find_spec("custom_calls._cpu")
    return Path(spec.origin if spec is not None and spec.origin is not None else __file__).parent


def _platform(entry: Any) -> PlatformBuild:
    compiler, reason = (
        None if entry[name] is None else _text(entry[name]) for name in ("compiler", "reason")
    )
    if (compiler is None) == (reason is None):
        raise TypeError(f"expected a compiler or a reason, got {compiler!r} and {reason!r}")
    architectures, refused = (tuple(map(_text, entry[name])) for name in ("architectures", "refused"))
    return PlatformBuild(compiler, architectures, reason, refused)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {value!r}")
    return value
