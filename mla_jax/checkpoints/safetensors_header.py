"""The safetensors header: its rules, checked completely before a single tensor byte is read.

File: 8 bytes little-endian header length, the header (a JSON object padded with spaces), then the data.
Format: https://github.com/huggingface/safetensors; what its own reader refuses is refused here.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from mla_jax.checkpoints.json_files import parse_json_object
from mla_jax.errors import CheckpointError, shown

MAX_HEADER_BYTES = 100_000_000
MAX_RANK = 32
_MAX_BYTES = 2**63 - 1

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "C64": np.dtype(np.complex64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Dtypes whose elements are whole bytes, and how numpy calls them."""

SUB_BYTE_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Dtypes that pack elements across bytes; they are checked and read as raw bytes only."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor's entry.

    Attributes:
      dtype: the format's name, such as "BF16".
      shape: in elements.
      start: offset of the first byte in the file.
      nbytes: length in bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def numpy_dtype(self) -> np.dtype[Any] | None:
        """The same dtype in numpy (with ml_dtypes), or None for a packed sub-byte dtype."""
        return NUMPY_DTYPES.get(self.dtype)


def parse_header(text: bytes, file_bytes: int, where: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Checks a whole header against the size of its file.

    Args:
      text: the header without its 8-byte length.
      file_bytes: size of the whole file.
      where: the file's name, for messages.

    Returns:
      The tensors, in the order of their data, and the `__metadata__` strings.

    Raises:
      CheckpointError: any rule of the format is broken; the message names file and tensor.
    """
    if not text.startswith(b"{"):
        raise CheckpointError(f"{where}: the header does not start with '{{': not a safetensors file")
    entries = parse_json_object(text, f"{where}: header", CheckpointError)
    metadata = _metadata(entries.pop("__metadata__", {}), where)
    data_start = 8 + len(text)
    tensors = {
        name: _tensor(entry, data_start, f"{where}: tensor {shown(name)}") for name, entry in entries.items()
    }
    # Empty tensors share their offset with the next one, hence the length as second key.
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)))
    position, previous = data_start, "the header"
    for name, info in ordered.items():
        if info.start != position:
            kind = "overlaps" if info.start < position else "leaves a hole after"
            raise CheckpointError(
                f"{where}: tensor {shown(name)} {kind} {previous}: expected data to begin at byte"
                f" {position - data_start}, got {info.start - data_start}"
            )
        position, previous = info.start + info.nbytes, shown(name)
    if position != file_bytes:
        fault = "is truncated" if position > file_bytes else "has trailing bytes"
        raise CheckpointError(
            f"{where}: file {fault}: expected {position} bytes by its header, got {file_bytes}"
        )
    return ordered, metadata


def _metadata(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or any(type(item) is not str for item in value.values()):
        raise CheckpointError(f"{where}: __metadata__: expected an object of strings, got {shown(value)}")
    return value


def _tensor(entry: object, data_start: int, where: str) -> TensorInfo:
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where}: expected an object, got {shown(entry)}")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or (dtype not in NUMPY_DTYPES and dtype not in SUB_BYTE_BITS):
        known = ", ".join((*NUMPY_DTYPES, *SUB_BYTE_BITS))
        raise CheckpointError(f"{where}: dtype: expected one of {known}, got {shown(dtype)}")
    if not _is_size_list(shape) or len(shape) > MAX_RANK:
        raise CheckpointError(
            f"{where}: shape: expected at most {MAX_RANK} integers >= 0, got {shown(shape)}"
        )
    if not _is_size_list(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{where}: data_offsets: expected two integers 0 <= begin <= end, got {shown(offsets)}"
        )
    element_bits = SUB_BYTE_BITS[dtype] if dtype in SUB_BYTE_BITS else 8 * NUMPY_DTYPES[dtype].itemsize
    # Zeros count as ones: numpy refuses strides that overflow even where the array is empty.
    if math.prod(size or 1 for size in shape) * element_bits > 8 * _MAX_BYTES:
        raise CheckpointError(f"{where}: shape {shown(shape)} has 2^63 bytes or more")
    elements = math.prod(shape)
    bits = elements * element_bits
    if bits % 8:
        raise CheckpointError(f"{where}: {elements} elements of {dtype} do not end at a byte boundary")
    begin, end = offsets
    if end - begin != bits // 8:
        raise CheckpointError(
            f"{where}: expected {bits // 8} bytes for {dtype} of shape {shown(shape)},"
            f" got data_offsets {shown(offsets)} of {end - begin}"
        )
    return TensorInfo(dtype, tuple(shape), data_start + begin, end - begin)


def _is_size_list(value: object) -> TypeGuard[list[int]]:
    # bool is an int to Python, but not to the format. The bound keeps products and messages short.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
