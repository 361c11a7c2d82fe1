"""Every rule of the safetensors header, broken one at a time, and a fuzz over all of them at once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mla_jax.checkpoints.safetensors import SafetensorsFile
from mla_jax.checkpoints.safetensors_header import MAX_HEADER_BYTES, MAX_RANK, NUMPY_DTYPES, SUB_BYTE_BITS
from mla_jax.checkpoints.safetensors_header import parse_header as parse
from mla_jax.errors import CheckpointError, MlaJaxError


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def header_of(entries: dict[str, Any] | str | bytes) -> bytes:
    if isinstance(entries, bytes):
        return entries
    return (entries if isinstance(entries, str) else json.dumps(entries)).encode()


def check(entries: dict[str, Any] | str | bytes, data_bytes: int = 8) -> Any:
    text = header_of(entries)
    return parse(text, 8 + len(text) + data_bytes, "x.safetensors")


def write(path: Path, entries: dict[str, Any] | str | bytes, data: bytes = b"") -> Path:
    text = header_of(entries)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def refused(message: str, entries: dict[str, Any] | str | bytes, data_bytes: int = 8) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        check(entries, data_bytes)
    text = str(caught.value)
    assert text.startswith("x.safetensors"), text
    assert "\n" not in text
    assert len(text) < 1000


def test_valid_header():
    entries = {
        "__metadata__": {"format": "pt", "é": ""},
        "b": entry("BF16", [2, 3], [8, 20]),
        "a": entry("F32", [2], [0, 8]),
        "scalar": entry("U8", [], [20, 21]),
    }
    text = header_of(entries)
    tensors, metadata = check(entries, 21)
    assert list(tensors) == ["a", "b", "scalar"]  # in the order of the data, not of the header
    assert metadata == {"format": "pt", "é": ""}
    info = tensors["b"]
    assert (info.dtype, info.shape, info.start, info.nbytes) == ("BF16", (2, 3), 8 + len(text) + 8, 12)
    assert info.numpy_dtype == NUMPY_DTYPES["BF16"]
    assert tensors["scalar"].shape == ()


def test_padding_and_escapes():
    tensors, metadata = check('{"\\u00e9": {"dtype":"I8","shape":[1],"data_offsets":[0,1]}}   \n ', 1)
    assert list(tensors) == ["é"]
    assert metadata == {}
    assert check("{}", 0) == ({}, {})


def test_keys_the_format_does_not_have_are_ignored():
    assert list(check({"a": {**entry(), "note": 1}})[0]) == ["a"]


@pytest.mark.parametrize("dtype", sorted(NUMPY_DTYPES))
def test_size_of_every_dtype(dtype):
    size = NUMPY_DTYPES[dtype].itemsize
    info = check({"a": entry(dtype, [3, 5], [0, 15 * size])}, 15 * size)[0]["a"]
    assert info.numpy_dtype == NUMPY_DTYPES[dtype]
    for wrong in (15 * size - 1, 15 * size + 1):
        refused("'a'.*expected.*bytes", {"a": entry(dtype, [3, 5], [0, wrong])}, wrong)


@pytest.mark.parametrize(("dtype", "bits"), sorted(SUB_BYTE_BITS.items()))
@pytest.mark.parametrize("elements", range(9))
def test_sub_byte_dtypes_end_at_a_byte(dtype, bits, elements):
    size, rest = divmod(elements * bits, 8)
    entries = {"a": entry(dtype, [elements], [0, size])}
    if rest:
        refused("byte boundary", entries, size)
    else:
        info = check(entries, size)[0]["a"]
        assert info.numpy_dtype is None
        assert info.nbytes == size


@pytest.mark.parametrize(
    "dtype", ["F31", "f32", "", "BF16 ", None, 1, True, ["F32"], {"F32": 1}, "F" * 10_000, "\u0000"]
)
def test_bad_dtype(dtype):
    refused("tensor 'a': dtype: expected one of F64", {"a": entry(dtype)})


@pytest.mark.parametrize(
    "shape",
    [
        None,
        2,
        "2",
        {"0": 2},
        [2.0],
        [-2],
        [True, 2],
        [False],
        ["2"],
        [None],
        [[2]],
        [2**63],
        [2**64 + 2],
        [10**40],
        [1] * (MAX_RANK + 1),
    ],
)
def test_bad_shape(shape):
    refused("tensor 'a': shape", {"a": entry(shape=shape)})


def test_shape_with_an_exponent_is_no_integer():
    refused("tensor 'a': shape", '{"a":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}}')


def test_highest_rank():
    assert check({"a": entry("U8", [1] * MAX_RANK, [0, 1])}, 1)[0]["a"].shape == (1,) * MAX_RANK


@pytest.mark.parametrize(
    "shape",
    [
        [2**32, 2**32],  # 2^64 wraps to 0 in 64 bits
        [2**32, 2**32, 2],
        [2**62, 4],
        [2**61, 1],  # 2^63 bytes of F32
        [0, 2**62, 2**62],  # empty, yet numpy cannot make it
        [2**62, 2**62, 0],
    ],
)
def test_product_is_checked(shape):
    refused("tensor 'a': shape .* 2\\^63", {"a": entry(shape=shape, offsets=[0, 0])}, 0)


@pytest.mark.parametrize("key", ["dtype", "shape", "data_offsets"])
def test_missing_key(key):
    fields = entry()
    del fields[key]
    refused(f"tensor 'a': {key}", {"a": fields})


@pytest.mark.parametrize("value", [None, 1, "F32", [], True, [["dtype", "F32"]]])
def test_entry_is_an_object(value):
    refused("tensor 'a': expected an object", {"a": value})


@pytest.mark.parametrize(
    "offsets",
    [
        None,
        8,
        "0,8",
        [],
        [8],
        [0, 8, 8],
        [8, 0],
        [-8, 0],
        [0.0, 8],
        [False, 8],
        [0, 8.0],
        [0, "8"],
        [2**63, 2**63 + 8],
        {"0": 0, "1": 8},
    ],
)
def test_bad_offsets(offsets):
    refused("tensor 'a': data_offsets", {"a": entry(offsets=offsets)})


def test_data_is_covered_exactly_once():
    def two(first: list[int], second: list[int], size: int) -> tuple[dict[str, Any], int]:
        return {"a": entry(offsets=first), "b": entry(offsets=second)}, size

    check(*two([0, 8], [8, 16], 16))
    check(*two([8, 16], [0, 8], 16))
    refused("'b' leaves a hole after 'a': .* byte 8, got 9", *two([0, 8], [9, 17], 17))
    refused("'b' overlaps 'a': .* byte 8, got 7", *two([0, 8], [7, 15], 15))
    refused("overlaps", *two([0, 8], [0, 8], 8))
    refused("'a' leaves a hole after the header", {"a": entry(offsets=[1, 9])}, 9)
    refused("has trailing bytes", *two([0, 8], [8, 16], 17))
    refused("is truncated", *two([0, 8], [8, 16], 15))
    refused("has trailing bytes", {}, 1)


def test_empty_tensors_may_share_an_offset():
    entries = {
        "full": entry(offsets=[0, 8]),
        "first": entry(shape=[0], offsets=[0, 0]),
        "last": entry(shape=[4, 0, 2], offsets=[8, 8]),
        "last too": entry(shape=[0], offsets=[8, 8]),
    }
    assert list(check(entries)[0]) == ["first", "full", "last", "last too"]
    refused("leaves a hole", {"a": entry(offsets=[0, 8]), "b": entry(shape=[0], offsets=[9, 9])})
    inside = {"a": entry(offsets=[0, 8]), "b": entry(shape=[0], offsets=[4, 4])}
    refused("overlaps", inside)


@pytest.mark.parametrize(
    "value", [None, 1, "pt", ["pt"], {"format": 1}, {"format": None}, {"a": {"b": "c"}}, {"a": True}]
)
def test_metadata_is_an_object_of_strings(value):
    refused("__metadata__: expected an object of strings", {"__metadata__": value}, 0)


ONE = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("'a' occurs twice", f"{{{ONE},{ONE}}}"),
        ("'a' occurs twice", f'{{{ONE},"\\u0061":1}}'),
        ("'__metadata__' occurs twice", f'{{"__metadata__":{{}},"__metadata__":{{}},{ONE}}}'),
        ("'shape' occurs twice", '{"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}'),
        ("not valid JSON", f"{{{ONE}}}\0"),
        ("not valid JSON", f"{{{ONE}}}{{}}"),
        ("not valid JSON", f"{{{ONE},}}"),
        ("not valid JSON", f"{{{ONE}"),
        ("not valid JSON", "{'a':1}"),
        ("does not start with", f" {{{ONE}}}"),
        ("does not start with", f"\ufeff{{{ONE}}}"),
        ("does not start with", "[]"),
        ("does not start with", ""),
        ("NaN is not a JSON number", '{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}'),
        ("Infinity is not", '{"a":{"dtype":"F32","shape":[-Infinity],"data_offsets":[0,8]}}'),
        ("nested too deeply", '{"a":' + "[" * 200_000),
        ("nested too deeply", '{"a":' * 200_000),
        ("not valid JSON", '{"a":' + "9" * 100_000 + "}"),
        ("is not a Unicode string", '{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
        ("is not a Unicode string", '{"__metadata__":{"a":"\\udfff"}}'),
    ],
)
def test_malformed_json(message, text):
    refused(message, text)


@pytest.mark.parametrize("bad", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe4\xb8"])
def test_bad_utf8(bad):
    refused("is not UTF-8", b'{"' + bad + b'":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}')


def test_a_shape_may_not_be_long_enough_to_flood_a_message():
    refused("tensor 'a{10,}\\.\\.\\.a+'", {"a" * 5000: entry(shape=[1] * 5000)})


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 2**32, 2**63, 2**64 - 1])
def test_header_length_is_bounded_before_it_is_read(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="header of at most 100000000 bytes"):
        SafetensorsFile(path)


def test_longest_header(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(MAX_HEADER_BYTES.to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="is truncated: expected a header of 100000000 bytes, got 2"):
        SafetensorsFile(path)


def test_truncation_at_every_length_and_one_byte_more(tmp_path):
    entries = {"__metadata__": {"format": "pt"}, "a": entry(), "b": entry("BF16", [2, 2], [8, 16])}
    path = write(tmp_path / "x.safetensors", entries, bytes(range(16)))
    whole = path.read_bytes()
    SafetensorsFile(path).close()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="truncated"):
            SafetensorsFile(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="trailing bytes"):
        SafetensorsFile(path)


HOSTILE = (
    None, True, False, 0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, 0.5, 1e300, "", "F32", "F4", "\0",
    [], [0], [0, 0], [2**62, 4], [1] * 40, {}, {"a": 1}, {"dtype": "F32"},
)  # fmt: skip


def mutated_file(rng: np.random.Generator) -> bytes:
    """A small valid file, then one to three changes of its header's values, its bytes or its length."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}} if rng.random() < 0.5 else {}
    position = 0
    for i in range(int(rng.integers(0, 4))):
        dtype = str(rng.choice(["F32", "BF16", "I64", "BOOL", "F4", "F8_E4M3"]))
        shape = [int(size) for size in rng.integers(0, 4, int(rng.integers(0, 4)))]
        elements = int(np.prod(shape))
        size = elements * SUB_BYTE_BITS[dtype] // 8 if dtype in SUB_BYTE_BITS else 0
        size = size or elements * getattr(NUMPY_DTYPES.get(dtype), "itemsize", 0)
        entries[f"t{i}"] = entry(dtype, shape, [position, position + size])
        position += size
    tensors = [value for key, value in entries.items() if key != "__metadata__"]
    kinds = rng.integers(0, 5, int(rng.integers(0, 4)))
    for kind in kinds:
        hostile = HOSTILE[int(rng.integers(len(HOSTILE)))]
        if kind == 0 and tensors:
            target = tensors[int(rng.integers(len(tensors)))]
            target[str(rng.choice(["dtype", "shape", "data_offsets"]))] = hostile
        elif kind == 1:
            entries[str(rng.choice(["t0", "t9", "__metadata__", ""]))] = hostile
    length = None
    text = json.dumps(entries).encode() + b" " * int(rng.integers(0, 8))
    if 2 in kinds:
        length = int(rng.choice([0, 1, 7, len(text) - 1, len(text) + 1, 2**20, 2**40, 2**62]))
    data = bytes(position)
    blob = bytearray((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    if 3 in kinds:
        for at in rng.integers(0, len(blob), int(rng.integers(1, 5))):
            blob[int(at)] = int(rng.integers(256))
    if 4 in kinds:
        cut = int(rng.integers(len(blob) + 1))
        blob = blob[:cut] if rng.random() < 0.7 else blob + bytes(cut)
    return bytes(blob)


def test_fuzzed_files_load_or_are_refused(tmp_path, rng):
    """Nothing but MlaJaxError, and what is accepted can be read, every byte of it."""
    path = tmp_path / "x.safetensors"
    loaded = 0
    with path.open("wb", buffering=0) as writer:
        for i in range(6000):
            blob = mutated_file(rng)
            writer.seek(0)
            writer.write(blob)
            writer.truncate()  # far faster than a new file each time
            try:
                with SafetensorsFile(path) as file:
                    covered = sum(info.nbytes for info in file.tensors.values())
                    for name in file.tensors:
                        file.read(name)
            except MlaJaxError:
                continue
            except BaseException as error:
                raise AssertionError(f"case {i}: {blob!r}") from error
            header = int.from_bytes(blob[:8], "little")
            assert covered == len(blob) - 8 - header, (i, blob)
            loaded += 1
    assert 500 < loaded < 5000  # the mutations are neither harmless nor all fatal
