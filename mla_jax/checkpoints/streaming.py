"""From files to arrays: what a model needs against what a checkpoint has, then one array at a time.

Every target gets a buffer of its own that is never used again, because JAX may adopt it without a copy.
Several threads fill it at a time. Data goes from the file straight into it, or through one bounded chunk a
thread where the dtype changes, so that beyond the weights themselves at most one more tensor is in memory.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from mla_jax.checkpoints.index import TensorIndex
from mla_jax.errors import CheckpointError, shown
from mla_jax.progress import ByteProgress

FLOAT_DTYPES = ("F32", "F16", "BF16")
E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
CHUNK_BYTES = 8 << 20
_ALIGNMENT = 64
# New memory has to be found and cleared page by page, which takes longer than the copy into it.
_READERS = 4
_MOST_NAMED = 20


@dataclass(frozen=True)
class Piece:
    """A checkpoint tensor and the part of its target that it fills.

    Attributes:
      name: of the tensor.
      index: leading coordinates of the target.
      rows: (start, stop) of the axis after them, or None for all.
      shapes: shapes that the tensor may have where that is not the part's own: other spellings of the same
        elements in the same order.
      repeat: how many rows of the target each stored row fills; the last one may fill fewer.
    """

    name: str
    index: tuple[int, ...] = ()
    rows: tuple[int, int] | None = None
    shapes: tuple[tuple[int, ...], ...] | None = None
    repeat: int = 1

    def shapes_in(self, target: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The shapes that the checkpoint tensor may have."""
        if self.shapes is not None:
            return self.shapes
        rest = target[len(self.index) :]
        return (rest if self.rows is None else (self.rows[1] - self.rows[0], *rest[1:]),)


@dataclass(frozen=True)
class Target:
    """An array to be made: shape, dtype name, and the pieces that fill it completely.

    stored: the dtypes that the pieces may have in the file; raw: their bytes are taken as they are, whatever
    the dtype is called, instead of being converted.
    """

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Piece, ...]
    stored: tuple[str, ...] = FLOAT_DTYPES
    raw: bool = False


def check(index: TensorIndex, targets: Sequence[Target], ignore: Callable[[str], str | None]) -> None:
    """Compares the whole checkpoint with what is needed, before anything is read.

    Args:
      index: the checkpoint.
      targets: what is needed.
      ignore: why a tensor that nothing needs may be there, or None if it may not.

    Raises:
      CheckpointError: everything missing, unknown, misshapen or of an unusable dtype, in one message.
    """
    needed = {
        piece.name: (piece.shapes_in(target.shape), target.stored)
        for target in targets
        for piece in target.pieces
    }
    missing = [f"{name} {shapes[0]}" for name, (shapes, _) in needed.items() if name not in index]
    unknown = [name for name in index.names() if name not in needed and ignore(name) is None]
    misshapen, unusable = [], []
    for name, (shapes, dtypes) in needed.items():
        if name in index:
            info = index.info(name)
            if info.shape not in shapes:
                misshapen.append(f"{name}: expected {' or '.join(map(str, shapes))}, got {info.shape}")
            if info.dtype not in dtypes:
                unusable.append(f"{name}: expected {', '.join(dtypes)}, got {info.dtype}")
    problems = [
        f"{len(found)} {kind}: {_list(found)}"
        for kind, found in (
            ("tensors are missing", missing),
            ("tensors are not part of the model", unknown),
            ("tensors have another shape", misshapen),
            ("tensors have another dtype", unusable),
        )
        if found
    ]
    if problems:
        raise CheckpointError(f"{index.folder}: does not fit its config.json; " + "; ".join(problems))


def stream(
    index: TensorIndex,
    targets: Sequence[Target],
    *,
    ignore: Callable[[str], str | None],
    progress: bool = True,
) -> Iterator[np.ndarray]:
    """Yields the targets' arrays in order, each in a fresh buffer.

    Args:
      index, targets, ignore: see `check`, which runs before the first array.
      progress: a bar in bytes on a terminal's standard error.

    Raises:
      CheckpointError: see `check`; or a file fails while it is read.
    """
    check(index, targets, ignore)
    total = sum(index.info(piece.name).nbytes for target in targets for piece in target.pieces)
    with (
        ByteProgress("loading", total, enabled=progress) as bar,
        ThreadPoolExecutor(_READERS, thread_name_prefix="mla_jax-read") as readers,
    ):
        for target in targets:
            array = aligned_array(target.shape, np.dtype(jnp.dtype(target.dtype)))
            jobs = [job for piece in target.pieces for job in _jobs(index, piece, array, target.raw)]
            done = [readers.submit(job.run) for job in jobs]
            try:
                for job, one in zip(jobs, done, strict=True):
                    one.result()
                    bar.advance(job.nbytes)
            except BaseException:
                readers.shutdown(cancel_futures=True)
                raise
            yield array


@dataclass(frozen=True)
class _Job:
    """A part of a file to be read, on whatever thread; parts of one target do not overlap."""

    run: Callable[[], None]
    nbytes: int


def _jobs(index: TensorIndex, piece: Piece, target: np.ndarray, raw: bool) -> Iterator[_Job]:
    """A piece's share of its target: a whole number of leading slices, and so C-contiguous."""
    out: np.ndarray = target[(*piece.index, ...)]  # type: ignore[arg-type]
    out = out if piece.rows is None else out[slice(*piece.rows)]
    info = index.info(piece.name)
    if piece.repeat > 1:
        yield _Job(partial(_fill_repeated, index, piece, out, raw), info.nbytes)
        return
    flat = out.reshape(-1)
    if raw:
        flat, width = flat.view(np.uint8), 1
    else:
        width = info.nbytes // max(flat.size, 1)
    step = CHUNK_BYTES // max(width, 1)
    for start in range(0, flat.size, step):
        part = flat[start : start + step]
        yield _Job(partial(_fill, index, piece.name, start, part, raw), part.size * width)


def _fill_repeated(index: TensorIndex, piece: Piece, out: np.ndarray, raw: bool) -> None:
    rows = -(-out.shape[0] // piece.repeat)
    stored = np.empty((rows, *out.shape[1:]), out.dtype)
    for job in _jobs(index, Piece(piece.name), stored, raw):
        job.run()
    np.copyto(out, np.repeat(stored, piece.repeat, axis=0)[: out.shape[0]])


def _fill(index: TensorIndex, name: str, start: int, out: np.ndarray, raw: bool) -> None:
    """Elements of a tensor from `start` on, converted to the dtype of `out` (1-D)."""
    file, info = index.file(name), index.info(name)
    # e8m0 scales may be stored under the name of their bytes.
    stored = E8M0 if info.dtype == "U8" and not raw else info.numpy_dtype
    if raw or stored == out.dtype:
        file.read_elements(name, start, out)
        return
    assert stored is not None, "checked: a float dtype"
    chunk = np.empty(out.size, stored)
    file.read_elements(name, start, chunk.view(np.uint8) if info.dtype == "U8" else chunk)
    # Values beyond the target's range become infinities and NaNs stay NaNs, as in every framework.
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(out, chunk, casting="unsafe")


def aligned_array(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
    """A new array at a 64-byte boundary, which JAX's CPU backend takes over instead of copying."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _list(entries: list[str]) -> str:
    more = f" and {len(entries) - _MOST_NAMED} more" if len(entries) > _MOST_NAMED else ""
    return ", ".join(shown(entry)[1:-1] for entry in entries[:_MOST_NAMED]) + more
