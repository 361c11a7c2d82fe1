"""Reading tensors of one safetensors file straight into memory that the caller owns.

There is no memory map: a mapped page counts against the process as much as a buffer does, stays until
the kernel takes it back, and turns a truncated file into SIGBUS instead of an exception.
"""

import os
import stat
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mla_jax.checkpoints.safetensors_header import MAX_HEADER_BYTES, TensorInfo, parse_header
from mla_jax.errors import CheckpointError, ShapeError, shown


class SafetensorsFile:
    """An open safetensors file whose header has been checked completely.

    The file stays open, so that what was checked is what is read even if its name is replaced.

    Attributes:
      path: as given.
      tensors: name -> TensorInfo, in the order of the data.
      metadata: the `__metadata__` strings.

    Raises:
      CheckpointError: the file is missing, unreadable or breaks a rule of the format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        # O_NONBLOCK: should a pipe take the file's place after the check, opening it must not wait.
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            # Before opening, since that alone may do something to a device; and through links.
            _require_regular(os.stat(self.path), self.path)
            self._fd = os.open(self.path, flags)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: cannot be opened: {error}") from error
        self._close = weakref.finalize(self, os.close, self._fd)
        try:
            self.tensors, self.metadata = self._read_header()
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> np.ndarray:
        """A new array with the tensor's shape and dtype (ml_dtypes for bfloat16 and the float8s).

        Packed sub-byte tensors (F4, F6) come as one dimension of raw uint8.
        """
        info = self._info(name)
        if info.numpy_dtype is None:
            out = np.empty(info.nbytes, np.uint8)
        else:
            out = np.empty(info.shape, info.numpy_dtype)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: np.ndarray) -> None:
        """Fills `out` with the tensor, without a copy in between.

        Args:
          name: of the tensor.
          out: C-contiguous, writeable, of the tensor's shape and dtype; or uint8 with its number of
            bytes, to get them raw.

        Raises:
          CheckpointError: no such tensor, the file has been cut since it was opened, or a BOOL byte is
            neither 0 nor 1.
          ShapeError: `out` does not fit.
        """
        info = self._info(name)
        raw = out.dtype == np.uint8 and out.ndim == 1 and out.nbytes == info.nbytes
        if not raw and (out.dtype != info.numpy_dtype or out.shape != info.shape):
            raise ShapeError(
                f"{self.path}: tensor {shown(name)}: argument 'out': expected {info.dtype} of shape"
                f" {info.shape} or {info.nbytes} raw uint8, got {out.dtype} of shape {out.shape}"
            )
        self.read_elements(name, 0, out)

    def read_elements(self, name: str, start: int, out: np.ndarray) -> None:
        """Fills `out`, of any shape, with the tensor's elements from flat index `start` on.

        Args:
          name: of the tensor.
          start: first element in row-major order.
          out: C-contiguous and writeable, of the tensor's dtype or uint8 (one element is then one byte).

        Raises:
          CheckpointError: as for `read_into`.
          ShapeError: `out` has another dtype or layout, or the range is not within the tensor.
        """
        info = self._info(name)
        if out.dtype not in (info.numpy_dtype, np.uint8):
            raise ShapeError(
                f"{self.path}: tensor {shown(name)}: argument 'out': expected {info.dtype} or uint8,"
                f" got {out.dtype}"
            )
        begin = start * out.dtype.itemsize
        if not 0 <= begin <= info.nbytes - out.nbytes:
            raise ShapeError(
                f"{self.path}: tensor {shown(name)}: expected a range within its {info.nbytes} bytes,"
                f" got {out.nbytes} bytes from {begin}"
            )
        if not (out.flags.c_contiguous and out.flags.writeable):
            raise ShapeError(f"{self.path}: argument 'out': expected a writeable C-contiguous array")
        # ml_dtypes arrays have no buffer interface; bytes always do.
        target = out.reshape(-1).view(np.uint8)
        self._pread(target, info.start + begin, name)
        if info.dtype == "BOOL" and target.size and target.max() > 1:
            raise CheckpointError(f"{self.path}: tensor {shown(name)}: a BOOL byte is neither 0 nor 1")

    def close(self) -> None:
        """Closes the file; reading is an error from then on. Also happens when the object is dropped."""
        self._close()

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: there is no tensor {shown(name)}") from None

    def _read_header(self) -> tuple[dict[str, TensorInfo], dict[str, str]]:
        where = str(self.path)
        status = os.fstat(self._fd)
        _require_regular(status, self.path)
        if status.st_size < 8:
            raise CheckpointError(f"{where}: file is truncated: it has {status.st_size} of 8 length bytes")
        size = np.empty(8, np.uint8)
        self._pread(size, 0, "header length")
        length = int.from_bytes(size.tobytes(), "little")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{where}: expected a header of at most {MAX_HEADER_BYTES} bytes, got {length}:"
                " not a safetensors file"
            )
        if 8 + length > status.st_size:
            raise CheckpointError(
                f"{where}: file is truncated: expected a header of {length} bytes, got {status.st_size - 8}"
            )
        header = np.empty(length, np.uint8)
        self._pread(header, 8, "header")
        return parse_header(header.tobytes(), status.st_size, where)

    def _pread(self, out: np.ndarray[Any, np.dtype[np.uint8]], offset: int, name: str) -> None:
        if not self._close.alive:
            raise CheckpointError(f"{self.path}: the file has been closed")
        view = out.data
        while view.nbytes:
            # One call returns at most 2 GiB on Linux.
            try:
                count = os.preadv(self._fd, [view], offset)
            except OSError as error:
                raise CheckpointError(f"{self.path}: reading {shown(name)}: {error}") from error
            if count == 0:
                raise CheckpointError(
                    f"{self.path}: reading {shown(name)}: the file has become shorter since it was opened"
                )
            view, offset = view[count:], offset + count


def _require_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: expected a regular file")
