"""A folder of shards: the index and the files have to agree, and nothing outside the folder is named."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mla_jax.checkpoints.index import INDEX_FILE, SINGLE_FILE, TensorIndex
from mla_jax.checkpoints.safetensors_writer import write_safetensors
from mla_jax.errors import CheckpointError, MlaJaxError

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def shard(folder: Path, name: str, *tensors: str) -> None:
    write_safetensors(folder / name, {tensor: np.full(2, len(tensor), np.float32) for tensor in tensors})


def write_index(folder: Path, weight_map: object, **rest: object) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map, **rest}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards with an index that fits them."""
    shard(tmp_path, ONE, "a", "bb")
    shard(tmp_path, TWO, "ccc")
    write_index(tmp_path, {"a": ONE, "bb": ONE, "ccc": TWO}, metadata={"total_size": 24})
    return tmp_path


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        TensorIndex(folder)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def open_files(folder: Path) -> int:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(str(folder)) for link in links if os.path.islink(link))


def test_single_file(tmp_path):
    shard(tmp_path, SINGLE_FILE, "a", "bb")
    (tmp_path / "other.safetensors").write_bytes(b"never opened")
    with TensorIndex(tmp_path) as index:
        assert sorted(index.names()) == ["a", "bb"]
        assert "a" in index
        assert "ccc" not in index
        assert 1 not in index
        assert index.info("bb").shape == (2,)
        assert index.file("bb").read("bb").tolist() == [2, 2]
        assert index.folder == tmp_path


def test_shards(folder):
    with TensorIndex(str(folder)) as index:
        assert sorted(index.names()) == ["a", "bb", "ccc"]
        assert index.file("a") is index.file("bb")
        assert index.file("ccc").path == folder / TWO
        assert index.file("ccc").read("ccc").tolist() == [3, 3]
        with pytest.raises(CheckpointError, match=f"{folder}: there is no tensor 'd'"):
            index.info("d")


def test_a_single_file_decides_beside_an_index(folder):
    """As in transformers."""
    shard(folder, SINGLE_FILE, "whole")
    with TensorIndex(folder) as index:
        assert index.names() == ("whole",)
    (folder / INDEX_FILE).write_text("{")  # not even read
    with TensorIndex(folder) as index:
        assert index.names() == ("whole",)


def test_files_are_closed(folder):
    with TensorIndex(folder) as index:
        assert open_files(folder) == 2
        file = index.file("a")
    assert open_files(folder) == 0
    with pytest.raises(CheckpointError, match="closed"):
        file.read("a")
    (folder / TWO).write_bytes(b"damaged")
    refused(folder, TWO)
    assert open_files(folder) == 0


def test_missing_shards(folder):
    (folder / ONE).unlink()
    refused(folder, INDEX_FILE, "1 of 2 shards are missing", ONE)
    (folder / TWO).unlink()
    refused(folder, "2 of 2 shards are missing", ONE, TWO)


def test_long_lists_are_cut(tmp_path):
    write_index(tmp_path, {f"t{i}": f"model-{i:05}.safetensors" for i in range(30)})
    refused(tmp_path, "30 of 30 shards are missing", "model-00019.safetensors' and 10 more")


def test_index_names_a_tensor_that_the_shard_lacks(folder):
    write_index(folder, {"a": ONE, "bb": ONE, "ccc": TWO, "d": TWO})
    refused(folder, INDEX_FILE, f"{TWO} does not hold 1 of its tensors: 'd'")


def test_index_puts_a_tensor_into_the_wrong_shard(folder):
    write_index(folder, {"a": ONE, "bb": TWO, "ccc": TWO})
    refused(folder, "bb")


def test_unlisted_tensor(folder):
    write_index(folder, {"a": ONE, "ccc": TWO})
    refused(folder, INDEX_FILE, f"{ONE} holds 1 tensors that are not listed: 'bb'")


def test_tensor_in_two_shards(folder):
    shard(folder, TWO, "ccc", "a")
    refused(folder, "tensor 'a' is both in ", ONE, TWO)


def test_one_file_under_two_names(folder):
    (folder / TWO).unlink()
    (folder / TWO).symlink_to(folder / ONE)
    refused(folder, "is both in ")


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "..",
        ".",
        "",
        "sub/one.safetensors",
        "./one.safetensors",
        "sub/../one.safetensors",
        "one.safetensors/",
        "//one.safetensors",
        "model.bin",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "model.SAFETENSORS",
        None,
        1,
        True,
        [ONE],
        {"file": ONE},
    ],
)
def test_names_that_are_no_shard_of_this_folder(folder, name):
    (folder / "sub").mkdir()
    for place in (folder / "one.safetensors", folder / "sub" / "one.safetensors"):
        write_safetensors(place, {"a": np.zeros(1, np.float32)})
    write_index(folder, {"a": name})
    refused(folder, INDEX_FILE, "tensor 'a': expected the name of a .safetensors file in the same folder")


def test_absolute_path(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    shard(outside, "secret.safetensors", "a")
    write_index(folder, {"a": str(outside / "secret.safetensors")})
    refused(folder, "tensor 'a': expected the name")


def test_linked_shards_are_followed(folder, tmp_path_factory):
    """The hub's cache is made of such links."""
    blobs = tmp_path_factory.mktemp("blobs")
    snapshot = tmp_path_factory.mktemp("snapshot")
    for i, name in enumerate((ONE, TWO, INDEX_FILE)):
        (folder / name).rename(blobs / f"{i}")
        (snapshot / name).symlink_to(blobs / f"{i}")
    with TensorIndex(snapshot) as index:
        assert sorted(index.names()) == ["a", "bb", "ccc"]
    (blobs / "1").unlink()
    refused(snapshot, "1 of 2 shards are missing", TWO)


@pytest.mark.parametrize("name", ["x" * 300 + ".safetensors", "\0.safetensors"])
def test_names_that_no_file_can_have(folder, name):
    write_index(folder, {"a": name})
    refused(folder, "1 of 1 shards are missing")


def test_shard_that_is_a_folder(folder):
    (folder / TWO).unlink()
    (folder / TWO).mkdir()
    refused(folder, TWO, "expected a regular file")


@pytest.fixture(params=["device", "pipe", "socket", "folder"])
def special(request, tmp_path_factory):
    """Something that is there and is no regular file."""
    path = tmp_path_factory.mktemp("special") / "x"
    if request.param == "device":
        return Path(os.devnull).with_name("zero")
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(path))  # such a name is short, and pytest's paths are not
    else:
        path.mkdir()
    return path


@pytest.mark.parametrize("name", [SINGLE_FILE, ONE])
def test_links_to_what_is_no_regular_file_are_not_opened(folder, monkeypatch, special, name):
    opened = []
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(path))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(special)
    refused(folder, f"{folder / name}: expected a regular file")
    assert opened == []  # it might block, or do something to a device


@pytest.mark.parametrize("value", [None, {}, [], "a", 1, [["a", ONE]]])
def test_weight_map_is_an_object(folder, value):
    write_index(folder, value)
    refused(folder, INDEX_FILE, "weight_map: expected an object with tensor names")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"weight_map":{"a":"x","a":"y"}}', "\ufeff{}", '{"weight_map":' * 10**5, "{}"]
)
def test_malformed_index(folder, text):
    (folder / INDEX_FILE).write_text(text, encoding="utf-8")
    refused(folder, INDEX_FILE)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "weights.pkl"])
def test_pickles_are_refused_unopened(tmp_path, name):
    os.mkfifo(tmp_path / name)  # opening it would block
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, f"holds no safetensors, only '{name}'", "pickle checkpoints are never opened")


def test_pickles_beside_safetensors_do_no_harm(tmp_path):
    os.mkfifo(tmp_path / "pytorch_model.bin")
    shard(tmp_path, SINGLE_FILE, "a")
    with TensorIndex(tmp_path) as index:
        assert index.names() == ("a",)


def test_nothing_there(tmp_path):
    expected = f"expected {SINGLE_FILE} or {INDEX_FILE}, got neither"
    refused(tmp_path, expected)
    refused(tmp_path / "none", expected)
    refused(tmp_path / ("x" * 300), expected)
    (tmp_path / "file").touch()
    refused(tmp_path / "file", expected)


def test_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def fail(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", fail)
    refused(tmp_path, "cannot be read: [Errno 13] Permission denied")


HOSTILE = (
    None, True, 0, -1, 2**70, 1.5, "", ".", "..", "/", "\0", "a/b.safetensors", ONE, TWO, "x.safetensors",
    INDEX_FILE, "é.safetensors", "x" * 300 + ".safetensors", [], [ONE], {}, {"a": ONE},
)  # fmt: skip


def test_fuzzed_indexes_load_or_are_refused(folder, rng):
    """Nothing but MlaJaxError; an index that is accepted names whole shards."""
    whole = (["a", "bb", "ccc"], ["a", "bb"], ["ccc"])
    loaded = 0
    with (folder / INDEX_FILE).open("wb", buffering=0) as writer:
        for i in range(2500):
            weight_map: dict[str, Any] = {"a": ONE, "bb": ONE, "ccc": TWO}
            kind, hostile = int(rng.integers(5)), HOSTILE[int(rng.integers(len(HOSTILE)))]
            document: dict[str, Any] = {"metadata": {"total_size": 24}, "weight_map": weight_map}
            if kind == 0:
                weight_map[str(rng.choice(["a", "bb", "ccc", "d", ""]))] = hostile
            elif kind == 1:
                document[str(rng.choice(["weight_map", "metadata", "x"]))] = hostile
            elif kind == 2:
                del weight_map[str(rng.choice(["a", "bb", "ccc"]))]
            text = bytearray(json.dumps(document).encode())
            if kind >= 3:
                for at in rng.integers(0, len(text), int(rng.integers(1, 4))):
                    text[int(at)] = int(rng.integers(256))
            if kind == 4:
                text = text[: int(rng.integers(len(text)))]
            writer.seek(0)
            writer.write(text)
            writer.truncate()
            try:
                with TensorIndex(folder) as index:
                    assert sorted(index.names()) in whole
                loaded += 1
            except MlaJaxError:
                pass
            except BaseException as error:
                raise AssertionError(f"case {i}: {bytes(text)!r}") from error
    assert 100 < loaded < 2000
