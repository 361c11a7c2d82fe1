"""The writer: what is read back, the layout on disk, and that failures leave no half file."""

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mla_jax.checkpoints import safetensors_writer
from mla_jax.checkpoints.safetensors import SafetensorsFile
from mla_jax.checkpoints.safetensors_header import NUMPY_DTYPES
from mla_jax.checkpoints.safetensors_writer import LazyTensor, write_safetensors
from mla_jax.errors import CheckpointError, ShapeError


def read_all(path: Path) -> dict[str, np.ndarray]:
    with SafetensorsFile(path) as file:
        return {name: file.read(name) for name in file.tensors}


@pytest.mark.parametrize("dtype", sorted(NUMPY_DTYPES))
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0), (2, 3, 4)], ids=str)
def test_round_trip(tmp_path, rng, dtype, shape):
    kind = NUMPY_DTYPES[dtype]
    size = int(np.prod(shape)) * kind.itemsize
    raw = rng.integers(0, 2 if dtype == "BOOL" else 256, size, np.uint8)
    array = np.frombuffer(raw.tobytes(), kind).reshape(shape)
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": array})
    got = read_all(path)["a"]
    assert got.dtype == kind
    assert got.shape == shape
    assert got.tobytes() == array.tobytes()


def test_layouts(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {"t": base.T, "strided": base[::2, 1::2], "reversed": base[::-1], "f": np.asfortranarray(base)}
    path = tmp_path / "x.safetensors"
    write_safetensors(path, arrays)
    for name, got in read_all(path).items():
        np.testing.assert_array_equal(got, arrays[name])


def test_file_on_disk(tmp_path):
    """Widest elements first, so that every tensor is aligned to its element size; header a multiple of 8."""
    path = tmp_path / "x.safetensors"
    tensors = {
        "byte": np.zeros(3, np.uint8),
        "wide": np.zeros((2, 1), np.float64),
        "half": np.zeros(5, np.float16),
        "é": np.zeros((), np.float32),
    }
    write_safetensors(path, tensors, {"format": "pt"})
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    assert length % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    assert header == {
        "wide": {"dtype": "F64", "shape": [2, 1], "data_offsets": [0, 16]},
        "é": {"dtype": "F32", "shape": [], "data_offsets": [16, 20]},
        "half": {"dtype": "F16", "shape": [5], "data_offsets": [20, 30]},
        "byte": {"dtype": "U8", "shape": [3], "data_offsets": [30, 33]},
    }
    assert len(blob) == 8 + length + 33


def test_same_tensors_same_bytes(tmp_path, rng):
    a, b = rng.normal(size=(2, 3)), rng.normal(size=4)
    write_safetensors(tmp_path / "1", {"a": a, "b": b})
    write_safetensors(tmp_path / "2", {"b": b, "a": a})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_empty_file_and_names(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {})
    assert read_all(path) == {}
    names = ["", "a.b", 'quote"', "back\\slash", "new\nline", "\u0000", "\ufffd", "😀"]
    write_safetensors(path, {name: np.int8([i]) for i, name in enumerate(names)}, {"": "", "k": '"\n'})
    with SafetensorsFile(path) as file:
        assert {name: int(file.read(name)[0]) for name in file.tensors} == {n: i for i, n in enumerate(names)}
        assert file.metadata == {"": "", "k": '"\n'}


def test_lazy_tensors_are_made_one_at_a_time(tmp_path):
    made: list[int] = []

    def make(i: int) -> np.ndarray:
        made.append(i)
        return np.full(3, i, np.float32)

    tensors = {f"t{i}": LazyTensor((3,), np.float32, lambda i=i: make(i)) for i in range(4)}
    path = tmp_path / "x.safetensors"
    write_safetensors(path, tensors)
    assert made == [0, 1, 2, 3]
    assert [array.tolist() for array in read_all(path).values()] == [[float(i)] * 3 for i in range(4)]


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4,), np.float32), ((3, 1), np.float32), ((3,), np.float64), ((), np.float32)]
)
def test_lazy_tensor_that_lied(tmp_path, shape, dtype):
    path = tmp_path / "x.safetensors"
    lie = LazyTensor((3,), np.float32, lambda: np.zeros(shape, dtype))
    with pytest.raises(ShapeError, match=r"tensor 'a': expected float32 of shape \(3,\), got"):
        write_safetensors(path, {"a": lie})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "dtype",
    [ml_dtypes.int4, ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fnuz, np.complex128, ">f4", "U3", "O"],
)
def test_dtypes_that_the_format_lacks(tmp_path, dtype):
    with pytest.raises(ShapeError, match=r"tensor 'a': dtype .* has no name"):
        write_safetensors(tmp_path / "x", {"a": np.zeros(2, dtype)})
    assert os.listdir(tmp_path) == []


def test_names_that_the_format_lacks(tmp_path):
    one = np.zeros(1, np.int8)
    for name in ("__metadata__", 1, None, b"a"):
        with pytest.raises(ShapeError, match="cannot be the name of a tensor"):
            write_safetensors(tmp_path / "x", {name: one})
    with pytest.raises(ShapeError, match="Unicode"):
        write_safetensors(tmp_path / "x", {"\ud800": one})
    for metadata in ({"a": 1}, {1: "a"}, {"a": None}):
        with pytest.raises(ShapeError, match="argument 'metadata': expected strings"):
            write_safetensors(tmp_path / "x", {}, metadata)
    assert os.listdir(tmp_path) == []


def test_header_that_no_reader_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_writer, "MAX_HEADER_BYTES", 200)
    with pytest.raises(ShapeError, match="header would have"):
        write_safetensors(tmp_path / "x", {"a" * 200: np.zeros(1, np.int8)})
    assert os.listdir(tmp_path) == []


class Boom(Exception):
    pass


@pytest.mark.parametrize("stage", ["make", "fsync", "replace"])
def test_a_failure_leaves_the_older_file(tmp_path, monkeypatch, stage):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"old": np.ones(2, np.float32)})
    before = path.read_bytes()

    def fail(*args: object) -> np.ndarray:
        raise Boom if stage == "make" else OSError(28, "No space left on device")

    if stage != "make":
        monkeypatch.setattr(os, stage, fail)
    second = LazyTensor((2,), np.float32, fail if stage == "make" else lambda: np.zeros(2, np.float32))
    with pytest.raises(Boom if stage == "make" else CheckpointError):
        write_safetensors(path, {"a": np.zeros(1000), "b": second})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_data_is_on_disk_before_the_name_is(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(fd: int) -> None:
        calls.append("fsync")
        assert os.fstat(fd).st_size > 4000, "flushed before it is synchronised"
        fsync(fd)

    def recording_replace(source: Path, target: Path) -> None:
        calls.append("replace")
        assert not path.exists()
        assert Path(source).parent == path.parent, "a rename across file systems is a copy"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    write_safetensors(path, {"a": np.zeros(1000, np.float32)})
    assert calls == ["fsync", "replace"]
    assert list(read_all(path)) == ["a"]


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (
        tmp_path / "none" / "x",
        tmp_path / "file" / "x",
        tmp_path / "folder",
        tmp_path / ("x" * 300),
        f"{tmp_path}/a\0b",
    ):
        with pytest.raises(CheckpointError, match="cannot be written"):
            write_safetensors(path, {"a": np.zeros(1)})
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
