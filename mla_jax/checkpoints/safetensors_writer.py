"""Writing a safetensors file: complete under its name, or not there at all."""

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mla_jax.checkpoints.safetensors_header import MAX_HEADER_BYTES, NUMPY_DTYPES
from mla_jax.errors import CheckpointError, ShapeError, shown

_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is made when its turn comes to be written, so that one is in memory at a time.

    Attributes:
      shape, dtype: of what `make` will return; the header is written before.
      make: called once.
    """

    shape: tuple[int, ...]
    dtype: Any
    make: Callable[[], np.ndarray]


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray | LazyTensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors to a new or replaced file.

    The data goes to a temporary file beside it, which is flushed to disk and then renamed, so that a
    reader never sees half a checkpoint and a failure leaves an older file as it was.

    Args:
      path: of the file.
      tensors: arrays by name, of any layout; written in row-major order.
      metadata: strings for `__metadata__`.

    Raises:
      ShapeError: a dtype that the format does not have, or a LazyTensor made something else than it said.
      CheckpointError: the file cannot be written.
    """
    path = Path(path)
    names, header = _plan(tensors, metadata)
    draft = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    try:
        file = open(draft, "xb")  # noqa: SIM115
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise CheckpointError(f"{path}: cannot be written: {error}") from error
    try:
        with file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name in names:
                _write_tensor(file, name, tensors[name])
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


def _plan(
    tensors: Mapping[str, np.ndarray | LazyTensor], metadata: Mapping[str, str] | None
) -> tuple[list[str], bytes]:
    entries: dict[str, Any] = {}
    if metadata:
        if any(type(key) is not str or type(value) is not str for key, value in metadata.items()):
            raise ShapeError(f"argument 'metadata': expected strings, got {shown(dict(metadata))}")
        entries["__metadata__"] = dict(metadata)
    for name in tensors:
        if type(name) is not str or name == "__metadata__":
            raise ShapeError(f"argument 'tensors': {shown(name)} cannot be the name of a tensor")
    # Widest elements first keeps every tensor aligned to its element size, as the format recommends.
    names = sorted(tensors, key=lambda name: (-np.dtype(tensors[name].dtype).itemsize, name))
    offset = 0
    for name in names:
        dtype = np.dtype(tensors[name].dtype)
        if dtype not in _NAMES:
            raise ShapeError(f"tensor {shown(name)}: dtype {dtype} has no name in the safetensors format")
        shape = tuple(int(size) for size in tensors[name].shape)
        end = offset + dtype.itemsize * int(np.prod(shape, dtype=object))
        entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    try:
        header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ShapeError(f"argument 'tensors': names have to be Unicode strings: {error}") from None
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise ShapeError(f"the header would have {len(header)} bytes, more than {MAX_HEADER_BYTES}")
    return names, header


def _write_tensor(file: BinaryIO, name: str, tensor: np.ndarray | LazyTensor) -> None:
    array = np.asarray(tensor.make() if isinstance(tensor, LazyTensor) else tensor)
    if array.shape != tuple(tensor.shape) or array.dtype != np.dtype(tensor.dtype):
        raise ShapeError(
            f"tensor {shown(name)}: expected {np.dtype(tensor.dtype)} of shape {tuple(tensor.shape)},"
            f" got {array.dtype} of shape {array.shape}"
        )
    # order="C" keeps a scalar's empty shape, which np.ascontiguousarray would not.
    file.write(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
