"""From checkpoint to arrays: one list of everything that does not fit, exact conversions, fresh buffers."""

import itertools
import os
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from mla_jax.checkpoints import streaming
from mla_jax.checkpoints.index import SINGLE_FILE, TensorIndex
from mla_jax.checkpoints.safetensors_header import NUMPY_DTYPES
from mla_jax.checkpoints.safetensors_writer import write_safetensors
from mla_jax.checkpoints.streaming import Piece, Target, check, stream
from mla_jax.errors import CheckpointError

BF16 = ml_dtypes.bfloat16


def nothing(name: str) -> str | None:
    return None


def index_of(folder: Path, **tensors: np.ndarray) -> TensorIndex:
    write_safetensors(folder / SINGLE_FILE, tensors)
    return TensorIndex(folder)


def whole(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Target:
    return Target(shape, dtype, (Piece(name),))


def load(index: TensorIndex, *targets: Target) -> list[np.ndarray]:
    with index:
        return list(stream(index, targets, ignore=nothing, progress=False))


def test_order_of_the_targets(tmp_path):
    index = index_of(tmp_path, a=np.zeros(2, np.float32), b=np.ones((2, 3), np.float32))
    b, a = load(index, whole("b", (2, 3)), whole("a", (2,)))
    assert b.tolist() == [[1.0] * 3] * 2
    assert a.tolist() == [0.0] * 2


def test_pieces_of_a_stack(tmp_path, rng):
    """Experts: gate and up of each expert share a matrix, experts are stacked in front."""
    parts = {
        f"{name}{e}": rng.normal(size=(2 if name == "gate" else 3, 4)).astype(np.float32)
        for e in range(3)
        for name in ("gate", "up")
    }
    pieces = [Piece(f"gate{e}", (e,), (0, 2)) for e in range(3)]
    pieces += [Piece(f"up{e}", (e,), (2, 5)) for e in range(3)]
    assert pieces[0].shapes_in((3, 5, 4)) == ((2, 4),)
    assert Piece("a", (1,)).shapes_in((3, 5, 4)) == ((5, 4),)
    assert Piece("a").shapes_in((3, 5, 4)) == ((3, 5, 4),)
    for dtype in ("float32", "bfloat16"):
        (got,) = load(index_of(tmp_path, **parts), Target((3, 5, 4), dtype, tuple(pieces)))
        for e in range(3):
            expected = np.concatenate([parts[f"gate{e}"], parts[f"up{e}"]]).astype(got.dtype)
            np.testing.assert_array_equal(got[e], expected)


def test_everything_that_is_wrong_in_one_message(tmp_path):
    index = index_of(
        tmp_path,
        fits=np.zeros((2, 3), np.float32),
        turned=np.zeros((3, 2), np.float32),
        flat=np.zeros(6, np.float32),
        quantised=np.zeros((2, 3), np.int8),
        both=np.zeros(2, np.float64),
        extra=np.zeros(1, np.float32),
        allowed=np.zeros(1, np.int8),
    )
    names = ("fits", "turned", "flat", "quantised", "both", "gone", "gone too")
    targets = [whole(name, (2, 3)) for name in names]
    with pytest.raises(CheckpointError) as caught:
        check(index, targets, lambda name: "a reason" if name == "allowed" else None)
    message = str(caught.value)
    assert message == (
        f"{tmp_path}: does not fit its config.json;"
        " 2 tensors are missing: gone (2, 3), gone too (2, 3);"
        " 1 tensors are not part of the model: extra;"
        " 3 tensors have another shape: turned: expected (2, 3), got (3, 2), flat: expected (2, 3), got (6,),"
        " both: expected (2, 3), got (2,);"
        " 2 tensors have another dtype:"
        " quantised: expected F32, F16, BF16, got I8, both: expected F32, F16, BF16, got F64"
    )
    index.close()


@pytest.mark.parametrize("dtype", sorted(set(NUMPY_DTYPES) - {"F32", "F16", "BF16"}))
def test_dtypes_that_are_no_weights(tmp_path, dtype):
    index = index_of(tmp_path, a=np.zeros(2, NUMPY_DTYPES[dtype]))
    with index, pytest.raises(CheckpointError, match=f"a: expected F32, F16, BF16, got {dtype}"):
        check(index, [whole("a", (2,))], nothing)


def test_long_lists_are_cut(tmp_path):
    index = index_of(tmp_path, **{f"extra{i:02}": np.zeros(1, np.float32) for i in range(21)})
    targets = [whole(f"gone{i:02}", (1,)) for i in range(50)]
    with index, pytest.raises(CheckpointError) as caught:
        check(index, targets, nothing)
    message = str(caught.value)
    assert "50 tensors are missing: gone00 (1,)" in message
    assert "gone19 (1,) and 30 more;" in message
    assert "gone20" not in message
    assert "extra19 and 1 more" in message
    with index, pytest.raises(CheckpointError, match=r"20 tensors are not .*: extra01.*extra20$"):
        check(index, [whole("extra00", (1,))], nothing)


def test_hostile_names_are_quoted(tmp_path):
    index = index_of(tmp_path, **{"\x1b[31mred\n": np.zeros(1, np.float32), "x" * 5000: np.zeros(1, np.int8)})
    with index, pytest.raises(CheckpointError) as caught:
        check(index, [], nothing)
    assert "\\x1b[31mred\\n" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_nothing_is_read_before_everything_fits(tmp_path, monkeypatch):
    index = index_of(tmp_path, a=np.zeros(2, np.float32))
    monkeypatch.setattr(streaming, "_fill", lambda *args: pytest.fail("read"))
    with index, pytest.raises(CheckpointError, match="missing: b"):
        next(stream(index, [whole("a", (2,)), whole("b", (2,))], ignore=nothing))


def every_16_bit_value(dtype: type) -> np.ndarray:
    return np.arange(2**16, dtype=np.uint16).view(dtype)


def float32_corner_cases(rng: np.random.Generator) -> np.ndarray:
    """Ties and their neighbours around every bfloat16, subnormals, infinities, NaNs, random bits."""
    high = np.arange(2**16, dtype=np.uint32) << 16
    low = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    bits = np.concatenate([high | value for value in low])
    random = rng.integers(0, 2**32, 100_000, np.uint32)
    return np.concatenate([bits, random]).astype(np.uint32).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 to bfloat16, to nearest with ties to even, in integers."""
    bits = values.view(np.uint32)
    high = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), high).view(BF16)


def same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit, except for which NaN it is."""
    kind = {2: np.uint16, 4: np.uint32}[got.dtype.itemsize]
    assert got.dtype == expected.dtype
    wanted = expected.astype(np.float32)
    nan = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(got.astype(np.float32)), nan)
    np.testing.assert_array_equal(got.view(kind)[~nan], expected.view(kind)[~nan])


@pytest.mark.parametrize("chunk", [2, 6, 4096, None], ids=str)
@pytest.mark.parametrize("target", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
def test_conversions_are_exact(tmp_path, monkeypatch, rng, stored, target, chunk):
    if stored == "F32":
        values = float32_corner_cases(rng)
        chunk = chunk and 2 * chunk
    else:
        values = every_16_bit_value(np.float16 if stored == "F16" else BF16)
    if chunk is not None:
        monkeypatch.setattr(streaming, "CHUNK_BYTES", chunk)
        if chunk < 4096:
            values = rng.permutation(values)[: 3 * chunk + 1]  # a last chunk that is not full
    (got,) = load(index_of(tmp_path, a=values), whole("a", values.shape, target))
    assert got.dtype.name == target
    if stored == "F32" and target == "bfloat16":
        expected = rounded(values)
        with np.errstate(over="ignore", invalid="ignore"):
            same_bits(values.astype(BF16), expected)  # ml_dtypes agrees with the integers
    elif target == "bfloat16" and stored == "F16":
        expected = rounded(values.astype(np.float32))
    else:
        expected = values.astype(target)
    same_bits(got, expected)
    if stored == {"float32": "F32", "bfloat16": "BF16"}[target]:
        assert got.tobytes() == values.tobytes()  # unconverted: NaNs too


@pytest.mark.parametrize("size", range(12))
def test_chunk_boundaries(tmp_path, monkeypatch, size):
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 16)  # four float32
    values = np.arange(size, dtype=np.float32)
    (got,) = load(index_of(tmp_path, a=values), whole("a", (size,), "bfloat16"))
    assert got.tolist() == list(range(size))


def test_shapes_without_elements_and_scalars(tmp_path):
    tensors = {"empty": np.zeros((0, 4), np.float16), "scalar": np.float16(1.5)}
    empty, scalar = load(index_of(tmp_path, **tensors), whole("empty", (0, 4)), whole("scalar", ()))
    assert empty.shape == (0, 4)
    assert scalar.shape == ()
    assert scalar == 1.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_buffers_are_fresh_and_aligned(tmp_path, dtype):
    """JAX may adopt a buffer instead of copying it: whoever filled it again would change its array."""
    values = {f"t{i}": np.full((5, 7), i, np.float32) for i in range(6)}
    adopted, addresses = [], []
    with index_of(tmp_path, **values) as index:
        targets = [whole(name, (5, 7), dtype) for name in values]
        for array in stream(index, targets, ignore=nothing, progress=False):
            assert array.ctypes.data % 64 == 0
            addresses.append(array.ctypes.data)
            adopted.append(jax.device_put(array))
    for i, array in enumerate(adopted):
        np.testing.assert_array_equal(np.asarray(array, np.float32), np.full((5, 7), i))
    for a, b in itertools.combinations(addresses, 2):
        assert abs(a - b) >= 35 * (4 if dtype == "float32" else 2)


def test_jax_adopts_the_buffers(tmp_path):
    """Or a model would be twice in memory for a moment. Holds on the CPU, where it matters."""
    if jax.default_backend() != "cpu":
        pytest.skip("other devices have memory of their own")
    (array,) = load(index_of(tmp_path, a=np.zeros(4096, np.float32)), whole("a", (4096,)))
    assert jax.device_put(array).unsafe_buffer_pointer() == array.ctypes.data


def test_progress_counts_stored_bytes(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(streaming.ByteProgress, "advance", lambda self, count: seen.append(count))
    totals = []
    original = streaming.ByteProgress.__init__

    def record(self, what, total, *, enabled):
        totals.append((total, enabled))
        original(self, what, total, enabled=enabled)

    monkeypatch.setattr(streaming.ByteProgress, "__init__", record)
    index = index_of(tmp_path, a=np.zeros(3, np.float16), b=np.zeros(5, np.float32))
    load(index, whole("a", (3,)), whole("b", (5,), "bfloat16"))
    assert seen == [6, 20]
    assert totals == [(26, False)]


def test_a_file_that_fails_later(tmp_path):
    index = index_of(tmp_path, a=np.zeros(4, np.float32), b=np.zeros(4096, np.float32))
    path = tmp_path / SINGLE_FILE
    with index:
        arrays = stream(index, [whole("a", (4,)), whole("b", (4096,))], ignore=nothing, progress=False)
        next(arrays)
        os.truncate(path, path.stat().st_size - 100)
        with pytest.raises(CheckpointError, match="reading 'b': the file has become shorter"):
            next(arrays)


# Quantised tensors ---------------------------------------------------------------------------------------

E8M0 = ml_dtypes.float8_e8m0fnu
FP8 = ml_dtypes.float8_e4m3fn


@pytest.mark.parametrize(
    ("kind", "shape", "target", "target_shape"),
    [
        (np.uint8, (6, 8), "uint8", (6, 8)),
        (np.int8, (6, 8), "uint8", (6, 8)),
        (np.int32, (6, 2), "uint8", (6, 8)),  # eight int4 a word
        (E8M0, (6, 8), "uint8", (6, 8)),
        (FP8, (6, 8), "float8_e4m3fn", (6, 8)),
    ],
)
def test_raw_bytes_are_taken_as_they_are(tmp_path, rng, kind, shape, target, target_shape):
    """Whatever they are called, and NaNs included; into the rows of a stack too."""
    blob = rng.permutation(np.resize(np.arange(256, dtype=np.uint8), 2 * 48)).reshape(2, 48)
    stored = {str(i): blob[i].view(kind).reshape(shape) for i in range(2)}
    pieces = tuple(Piece(str(i), (0,), (6 * i, 6 * i + 6), (shape,)) for i in range(2))
    name = {v: k for k, v in NUMPY_DTYPES.items()}[np.dtype(kind)]
    (got,) = load(
        index_of(tmp_path, **stored), Target((1, 12, *target_shape[1:]), target, pieces, (name,), raw=True)
    )
    assert got.dtype.name == target
    assert got.tobytes() == blob.tobytes()


@pytest.mark.parametrize("kind", [np.float32, ml_dtypes.bfloat16, np.uint8, E8M0])
def test_repeated_rows(tmp_path, kind):
    """Each stored row fills three rows of its part; the last one what is left."""
    exponents = np.arange(120, 128, dtype=np.uint8).reshape(4, 2)
    powers = np.ldexp(np.float32(1), exponents.astype(int) - 127)
    rows = exponents.view(kind) if np.dtype(kind).itemsize == 1 else powers.astype(kind)
    pieces = (Piece("up", (), (0, 5), ((2, 2),), 3), Piece("gate", (), (5, 9), ((2, 2),), 3))
    target = Target((9, 2), "float32", pieces, ("F32", "BF16", "U8", "F8_E8M0"))
    (got,) = load(index_of(tmp_path, up=rows[:2], gate=rows[2:]), target)
    np.testing.assert_array_equal(got, powers[[0, 0, 0, 1, 1, 2, 2, 2, 3]])


def test_repeated_raw_rows(tmp_path):
    rows = np.arange(6, dtype=np.uint8).reshape(3, 2)
    target = Target((5, 2), "uint8", (Piece("a", (), None, ((3, 2),), 2),), ("U8",), raw=True)
    (got,) = load(index_of(tmp_path, a=rows), target)
    np.testing.assert_array_equal(got, rows[[0, 0, 1, 1, 2]])


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_number_for_all_rows(tmp_path, shape):
    index = index_of(tmp_path, a=np.full(shape, 3.0, np.float32), b=np.full(shape, 4, ml_dtypes.bfloat16))
    pieces = tuple(Piece(name, (1,), rows, (shape,), 4) for name, rows in (("a", (0, 4)), ("b", (4, 8))))
    pieces += tuple(Piece(name, (0,), rows, (shape,), 4) for name, rows in (("b", (0, 4)), ("a", (4, 8))))
    (got,) = load(index, Target((2, 8), "float32", pieces))
    assert got.tolist() == [[4.0] * 4 + [3.0] * 4, [3.0] * 4 + [4.0] * 4]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_number(tmp_path, shape):
    """Of a whole tensor, or one an expert."""
    index = index_of(tmp_path, a=np.full(shape, 127 + 3, np.uint8), b=np.full(shape, 0.5, np.float32))
    a = Target((), "float32", (Piece("a", (), None, (shape,)),), ("U8",))
    both = Target(
        (2,), "float32", (Piece("a", (0,), None, (shape,)), Piece("b", (1,), None, (shape,))), ("U8", "F32")
    )
    got, pair = load(index, a, both)
    assert (got.shape, float(got)) == ((), 8.0)
    assert pair.tolist() == [8.0, 0.5]


@pytest.mark.parametrize("kind", [np.uint8, E8M0])
def test_every_e8m0_byte(tmp_path, kind):
    codes = np.arange(256, dtype=np.uint8)
    target = Target((16, 16), "float32", (Piece("a"),), ("U8", "F8_E8M0"))
    (got,) = load(index_of(tmp_path, a=codes.view(kind).reshape(16, 16)), target)
    with np.errstate(over="ignore"):
        expected = np.ldexp(np.float64(1), codes.astype(int) - 127).astype(np.float32)
    expected[255] = np.nan
    np.testing.assert_array_equal(got.ravel(), expected)


def test_other_spellings_of_a_shape(tmp_path):
    column = Piece("a", (), None, ((4,), (4, 1)))
    assert column.shapes_in((4,)) == ((4,), (4, 1))
    for shape in ((4,), (4, 1)):
        (got,) = load(
            index_of(tmp_path, a=np.arange(4, dtype=np.float32).reshape(shape)),
            Target((4,), "float32", (column,)),
        )
        assert got.tolist() == [0.0, 1.0, 2.0, 3.0]
    with (
        index_of(tmp_path, a=np.zeros((1, 4), np.float32)) as index,
        pytest.raises(CheckpointError, match=r"a: expected \(4,\) or \(4, 1\), got \(1, 4\)"),
    ):
        check(index, [Target((4,), "float32", (column,))], nothing)


def test_dtypes_are_those_of_the_target(tmp_path):
    codes = Target((2, 2), "uint8", (Piece("a"),), ("U8", "I8"), raw=True)
    with (
        index_of(tmp_path, a=np.zeros((2, 2), np.float32)) as index,
        pytest.raises(CheckpointError, match="a: expected U8, I8, got F32"),
    ):
        check(index, [codes], nothing)


def test_progress_counts_stored_bytes_of_repeated_rows(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(streaming.ByteProgress, "advance", lambda self, count: seen.append(count))
    load(
        index_of(tmp_path, a=np.zeros((2, 2), np.float32)),
        Target((5, 2), "float32", (Piece("a", (), None, ((2, 2),), 3),)),
    )
    assert seen == [16]
