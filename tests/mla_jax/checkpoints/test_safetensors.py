"""Reading tensors: into whose memory, of which part, and what a file that changes underneath does."""

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mla_jax.checkpoints.safetensors import SafetensorsFile
from mla_jax.checkpoints.safetensors_header import NUMPY_DTYPES, SUB_BYTE_BITS
from mla_jax.checkpoints.safetensors_writer import write_safetensors
from mla_jax.errors import CheckpointError, ShapeError


def write(path: Path, dtype: str, shape: list[int], data: bytes) -> Path:
    """One tensor "a", spelled out byte by byte: independent of the library's own writer."""
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def random_bytes(rng: np.random.Generator, dtype: str, elements: int) -> np.ndarray:
    size = elements * NUMPY_DTYPES[dtype].itemsize
    return rng.integers(0, 2 if dtype == "BOOL" else 256, size, np.uint8)


@pytest.mark.parametrize("dtype", sorted(NUMPY_DTYPES))
@pytest.mark.parametrize("shape", [[], [0], [3], [2, 0, 3], [2, 3, 5]], ids=str)
def test_read_every_dtype(tmp_path, rng, dtype, shape):
    data = random_bytes(rng, dtype, int(np.prod(shape)))
    with SafetensorsFile(write(tmp_path / "x", dtype, shape, data.tobytes())) as file:
        got = file.read("a")
        raw = np.empty(data.size, np.uint8)
        file.read_into("a", raw)
    assert got.dtype == NUMPY_DTYPES[dtype]
    assert got.shape == tuple(shape)
    assert got.flags.writeable
    assert got.flags.owndata
    assert got.tobytes() == data.tobytes() == raw.tobytes()


def test_values_are_little_endian(tmp_path):
    path = write(tmp_path / "x", "BF16", [2], bytes([0x80, 0x3F, 0x00, 0xC0]))
    with SafetensorsFile(path) as file:
        assert file.read("a").tolist() == [1.0, -2.0]


@pytest.mark.parametrize("dtype", sorted(SUB_BYTE_BITS))
def test_sub_byte_tensors_come_as_raw_bytes(tmp_path, dtype):
    data = bytes(range(3 * SUB_BYTE_BITS[dtype]))
    with SafetensorsFile(write(tmp_path / "x", dtype, [4, 6], data)) as file:
        got = file.read("a")
    assert got.dtype == np.uint8
    assert got.tobytes() == data


def test_read_into_a_slice_of_a_larger_array(tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = write(tmp_path / "x", "F32", [2, 3], values.tobytes())
    out = np.full((4, 2, 3), -1, np.float32)
    with SafetensorsFile(path) as file:
        file.read_into("a", out[2])
    np.testing.assert_array_equal(out[2], values)
    assert (out[[0, 1, 3]] == -1).all()


def test_read_elements_of_any_range(tmp_path):
    values = np.arange(12, dtype=np.int16).reshape(3, 4)
    path = write(tmp_path / "x", "I16", [3, 4], values.tobytes())
    with SafetensorsFile(path) as file:
        for start in range(13):
            for count in range(13 - start):
                out = np.empty(count, np.int16)
                file.read_elements("a", start, out)
                np.testing.assert_array_equal(out, values.reshape(-1)[start : start + count])
        block = np.empty((2, 2), np.int16)
        file.read_elements("a", 5, block)
        np.testing.assert_array_equal(block, [[5, 6], [7, 8]])
        raw = np.empty(3, np.uint8)
        file.read_elements("a", 4, raw)  # bytes, not elements
        assert raw.tobytes() == values.tobytes()[4:7]


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (12, 1), (11, 2), (0, 13), (2**62, 1), (13, 0)])
def test_read_elements_outside_the_tensor(tmp_path, start, count):
    """The bytes beyond one tensor are another's: they must be out of reach."""
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.zeros(12, np.int16), "b": np.ones(12, np.int16)})
    out = np.full(count, 7, np.int16)
    with (
        SafetensorsFile(path) as file,
        pytest.raises(ShapeError, match="tensor 'a': expected a range within"),
    ):
        file.read_elements("a", start, out)
    assert (out == 7).all()


def test_the_last_byte_of_a_tensor(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.int16([1, 2]), "b": np.int16([-1])})
    raw = np.empty(2, np.uint8)
    with SafetensorsFile(path) as file:
        file.read_elements("a", 2, raw)
        assert raw.tolist() == [2, 0]
        with pytest.raises(ShapeError, match="within its 4 bytes, got 2 bytes from 3"):
            file.read_elements("a", 3, raw)


@pytest.mark.parametrize(
    "out",
    [
        np.empty((3, 2), np.float32),
        np.empty(6, np.float32),
        np.empty((2, 3), np.float64),
        np.empty((2, 3), np.int32),
        np.empty((2, 3), ">f4"),
        np.empty(23, np.uint8),
        np.empty((2, 12), np.uint8),
        np.empty((), np.float32),
    ],
    ids=lambda out: f"{out.dtype}{out.shape}",
)
def test_read_into_what_does_not_fit(tmp_path, out):
    path = write(tmp_path / "x", "F32", [2, 3], bytes(24))
    with (
        SafetensorsFile(path) as file,
        pytest.raises(ShapeError, match=r"tensor 'a'.*'out'.*F32 of shape \(2, 3\).*got"),
    ):
        file.read_into("a", out)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.int8, ml_dtypes.bfloat16, ">f4"])
def test_read_elements_does_not_reinterpret(tmp_path, dtype):
    path = write(tmp_path / "x", "F32", [6], bytes(24))
    out = np.empty(2, dtype)
    with SafetensorsFile(path) as file, pytest.raises(ShapeError, match="expected F32 or uint8, got"):
        file.read_elements("a", 0, out)


def test_read_into_memory_that_cannot_be_filled(tmp_path):
    path = write(tmp_path / "x", "F32", [2, 3], bytes(24))
    frozen = np.empty((2, 3), np.float32)
    frozen.flags.writeable = False
    with SafetensorsFile(path) as file:
        for out in (np.empty((3, 2), np.float32).T, np.empty((2, 6), np.float32)[:, ::2], frozen):
            with pytest.raises(ShapeError, match="writeable C-contiguous"):
                file.read_into("a", out)


def test_unknown_tensor(tmp_path):
    with SafetensorsFile(write(tmp_path / "x", "F32", [1], bytes(4))) as file:
        for call in (
            lambda: file.read("b"),
            lambda: file.read_into("b", np.empty(1, np.float32)),
            lambda: file.read_elements("b", 0, np.empty(1, np.float32)),
        ):
            with pytest.raises(CheckpointError, match="there is no tensor 'b'"):
                call()


@pytest.mark.parametrize("byte", [2, 128, 255])
def test_bool_bytes_are_zero_or_one(tmp_path, byte):
    path = write(tmp_path / "x", "BOOL", [3], bytes([0, byte, 1]))
    with SafetensorsFile(path) as file, pytest.raises(CheckpointError, match="'a': a BOOL byte"):
        file.read("a")


def test_file_cut_after_it_was_opened(tmp_path):
    path = write(tmp_path / "x", "F32", [1024], bytes(4096))
    with SafetensorsFile(path) as file:
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(CheckpointError, match="reading 'a': the file has become shorter"):
            file.read("a")


def test_what_was_checked_is_what_is_read(tmp_path):
    path = write(tmp_path / "x", "F32", [2], np.float32([1, 2]).tobytes())
    with SafetensorsFile(path) as file:
        os.replace(write(tmp_path / "y", "F32", [2], np.float32([3, 4]).tobytes()), path)
        assert file.read("a").tolist() == [1, 2]


def test_short_reads_are_continued(tmp_path, monkeypatch, rng):
    data = rng.integers(0, 256, 1000, np.uint8)
    path = write(tmp_path / "x", "U8", [1000], data.tobytes())
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: whole(fd, [views[0][:7]], at))
    with SafetensorsFile(path) as file:
        np.testing.assert_array_equal(file.read("a"), data)


def test_failing_reads_name_file_and_tensor(tmp_path, monkeypatch):
    path = write(tmp_path / "x", "U8", [10], bytes(10))

    def fail(*args: object) -> int:
        raise OSError(5, "Input/output error")

    with SafetensorsFile(path) as file:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(CheckpointError, match=r"x: reading 'a': .*Input/output error"):
            file.read("a")


def test_close(tmp_path):
    file = SafetensorsFile(write(tmp_path / "x", "F32", [1], bytes(4)))
    file.close()
    file.close()
    with pytest.raises(CheckpointError, match="has been closed"):
        file.read("a")


def open_files() -> set[str]:
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        pytest.skip("needs /proc")
    return {os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder) if os.path.islink(f"{folder}/{fd}")}


def test_no_file_stays_open(tmp_path):
    good = write(tmp_path / "good", "F32", [1], bytes(4))
    bad = write(tmp_path / "bad", "F32", [1], bytes(5))
    file = SafetensorsFile(good)
    assert str(good) in open_files()
    del file
    with pytest.raises(CheckpointError):
        SafetensorsFile(bad)
    assert not {str(good), str(bad)} & open_files()


def test_files_that_cannot_be_opened(tmp_path):
    folder, pipe = tmp_path / "folder", tmp_path / "pipe"
    folder.mkdir()
    os.mkfifo(pipe)
    for path in (folder, pipe, Path("/dev/null")):
        with pytest.raises(CheckpointError, match="expected a regular file"):
            SafetensorsFile(path)
    for path in (tmp_path / "none", tmp_path / ("x" * 300), f"{tmp_path}/a\0b"):
        with pytest.raises(CheckpointError, match="cannot be opened"):
            SafetensorsFile(path)
    (tmp_path / "empty").touch()
    with pytest.raises(CheckpointError, match="is truncated: it has 0 of 8 length bytes"):
        SafetensorsFile(tmp_path / "empty")
