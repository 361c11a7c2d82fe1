"""Imports a native library, after a look at the file that an import cannot take back."""

import importlib
import importlib.util
import struct
from pathlib import Path
from typing import Any

# Of a 64-bit ELF header, little-endian: offset, entry size and number of entries of the section table.
_SECTIONS = struct.Struct("<40xQ10xHH")


def import_library(name: str) -> Any:
    """The extension module `name`.

    Raises:
      ImportError: its file is cut short. The system's loader maps such a file all the same, and the process dies
        of a bus error at the first missing page.
      Exception: whatever importing it raises.
    """
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:
        missing = missing_bytes(Path(spec.origin))
        if missing > 0:
            raise ImportError(f"{spec.origin} is cut short: {missing} bytes are missing", name=name)
    return importlib.import_module(name)


def missing_bytes(path: Path) -> int:
    """How many bytes an ELF file lacks, by its section table, which linkers write last; 0 for other formats."""
    with path.open("rb") as file:
        header = file.read(64)
    if header[:6] != b"\x7fELF\x02\x01":
        return 0
    if len(header) < 64:
        return 64 - len(header)
    offset, entry, count = _SECTIONS.unpack(header[: _SECTIONS.size])
    return max(0, offset + entry * count - path.stat().st_size)
