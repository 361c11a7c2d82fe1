"""mxfp4_quantize: published vectors and golden rows, every rule, native and reference byte for byte."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle_quantized
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_base import KERNELS, Builder, Call, OpTests, Rng, normal, same_bits
from oracle import Bounded

from custom_calls.element_formats import ROUNDINGS
from custom_calls.errors import ShapeError
from custom_calls.mxfp4_quantize import TARGET, mxfp4_quantize
from custom_calls.quantized_tensor import QuantizedTensor, dequantize

BF16 = ml_dtypes.bfloat16
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "mxfp4.json").read_text(encoding="utf-8"))

VALUES = jax.jit(dequantize)
EACH = pytest.mark.parametrize("rounding", ROUNDINGS)
BOTH = pytest.mark.parametrize("kernels", KERNELS)

BITS = {"float32": np.uint32, "bfloat16": np.uint16}


def quantize_bytes(x: Any, *, rounding: str, kernels: str = "reference") -> tuple[jax.Array, jax.Array]:
    tensor = mxfp4_quantize(x, rounding=rounding, kernels=kernels)
    return tensor.data, tensor.scale


def exact(x: np.ndarray, *, rounding: str) -> tuple[Bounded, Bounded]:
    """Bytes as numbers that have no error."""
    both = oracle_quantized.quantize(x, rounding)
    return tuple(Bounded(b.astype(np.float64), np.zeros(b.shape), 255.0) for b in both)  # type: ignore[return-value]


def random_bits(rng: Rng, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Any bit pattern, but groups that are mostly free of NaN and of a few powers of two."""
    kind = BITS[dtype]
    raw = rng.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True).view(np.dtype(dtype))
    centred = normal(rng, shape, dtype) * np.dtype(dtype).type(2.0)
    near = rng.random((*shape[:-1], 1)) < 0.8
    return np.where(near, centred.astype(np.dtype(dtype)), raw)


def make(*shape: int, rounding: str = "even", fill: Any = random_bits) -> Builder:
    return lambda rng, dtype: Call({"x": fill(rng, shape, dtype)}, {"rounding": rounding})


def small_values(rng: Rng, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Subnormals, signed zeros, and normal numbers near the smallest."""
    power = rng.integers(-152, -120, shape)
    with np.errstate(under="ignore"):
        x = np.ldexp(rng.uniform(1, 2, shape), power) * rng.choice([-1.0, 0.0, 1.0], shape)
        return x.astype(np.float32).astype(np.dtype(dtype))


def huge_values(rng: Rng, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    x = np.ldexp(rng.uniform(1, 1.99, shape), rng.integers(120, 128, shape)) * rng.choice([-1, 1], shape)
    x = x.astype(np.float32).astype(np.dtype(dtype))
    x[..., ::37] = np.dtype(dtype).type(-np.inf)
    return x


def zeros(rng: Rng, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.copysign(np.zeros(shape), rng.standard_normal(shape)).astype(np.dtype(dtype))


class TestMxfp4Quantize(OpTests):
    function = staticmethod(quantize_bytes)
    oracle = staticmethod(exact)
    primitive = "mla_jax.mxfp4_quantize"
    op_name = "mxfp4_quantize"
    cases = {  # noqa: RUF012
        **{f"rows-{rule}": make(37, 96, rounding=rule) for rule in ROUNDINGS},
        **{f"N{n}": make(5, n) for n in (2, 4, 28, 34, 68)},
        "160x40": make(160, 40),
        "280x20-rceil": make(280, 20, rounding="rceil"),
        "1-D": make(66, rounding="floor"),
        "3-D": make(3, 5, 64, rounding="ceil"),
        "4-D": make(2, 3, 2, 36),
        "zero-rows": make(0, 64),
        "zero-heads": make(4, 0, 34),
        # More rows than a task takes, and rows longer than a task.
        "many-rows": make(300, 32),
        "long-row": make(2, 8200),
        **{f"small-{rule}": make(20, 64, rounding=rule, fill=small_values) for rule in ROUNDINGS},
        **{f"huge-{rule}": make(20, 64, rounding=rule, fill=huge_values) for rule in ROUNDINGS},
        "zeros": make(3, 40, fill=zeros),
    }
    errors = {  # noqa: RUF012
        "dtype": (
            {"x": jax.ShapeDtypeStruct((4, 32), "float16")},
            "argument 'x': expected dtype float32 or bfloat16, got float16",
        ),
        "odd": (
            {"x": jax.ShapeDtypeStruct((4, 33), "float32")},
            "argument 'x': expected shape (..., K) with K even and positive, got (4, 33)",
        ),
        "empty": (
            {"x": jax.ShapeDtypeStruct((4, 0), "float32")},
            "argument 'x': expected shape (..., K) with K even and positive, got (4, 0)",
        ),
        "scalar": (
            {"x": jax.ShapeDtypeStruct((), "float32")},
            "argument 'x': expected shape (..., K) with K even and positive, got ()",
        ),
        "rounding": (
            {"rounding": "nearest"},
            "argument 'rounding': expected 'floor' or 'even' or 'ceil' or 'rceil', got 'nearest'",
        ),
    }
    vmapped = (("x",),)
    differentiable = ()

    @staticmethod
    def small(rng: Rng, dtype: str) -> Call:
        return make(4, 66)(rng, dtype)

    @staticmethod
    def rows(rng: Rng, dtype: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = make(200, 68)(rng, dtype)
        at = [slice(0, 1), slice(133, 134), slice(199, 200), slice(5, 70)]
        return call, [(rows, call.changed(x=call.arrays["x"][rows])) for rows in at]


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], np.uint32).view(np.float32)


@BOTH
@EACH
def test_vectors(rounding: str, kernels: str) -> None:
    x = np.stack([words(block["input"]) for block in VECTORS["blocks"]])
    tensor = mxfp4_quantize(jnp.asarray(x), rounding=rounding, kernels=kernels)
    values = np.asarray(VALUES(tensor))
    assert len(x) == 51
    for number, block in enumerate(VECTORS["blocks"]):
        want = block[rounding]
        assert int(tensor.scale[number, 0]) == want["scale"], block["name"]
        if want["packed"] is None:
            assert want["scale"] == 255 and not np.asarray(tensor.data[number]).any()
            assert np.isnan(values[number]).all()
        else:
            assert np.asarray(tensor.data[number]).tobytes().hex() == want["packed"], block["name"]
            assert same_bits(values[number], words(want["values"])), block["name"]


# AMD's runtimes (AITER): EVEN, ROUND_UP, ROUND_DOWN and CEIL are our even, rceil, floor and ceil.
GOLDEN_SCALES = {
    1.5: (125, 125, 125, 126),
    1.7499: (125, 126, 125, 126),
    1.75: (126, 126, 125, 126),
    3.49: (126, 127, 126, 127),
    3.5: (127, 127, 126, 127),
    4.0: (127, 127, 127, 127),
    6.0: (127, 127, 127, 128),
    6.01: (127, 128, 127, 128),
    7.0: (128, 128, 127, 128),
    448.0: (134, 134, 133, 134),
    65504.0: (141, 141, 140, 141),
    0.0: (0, 0, 0, 0),
}
TENTHS = [i / 10 for i in range(12)]
ROW = [6, 5, -3.5, 2.5, 1.75, 1.25, 0.75, 0.25, -6, -5, 3.5, -2.5, -1.75, -1.25, -0.75, -0.25]
GOLDEN_ROWS = {
    "even-grid": (
        [*ROW, 5.01, 2.51, -0.0, 0.0, *TENTHS],
        "even",
        127,
        "67 4e 24 02 ef c6 ac 8a 57 08 00 10 11 11 22 22",
    ),
    "even-ramp": (
        [6.01, -3, *(i / 5 for i in range(30))],
        "even",
        127,
        "d7 00 11 22 32 43 44 54 55 55 66 66 66 66 77 77",
    ),
    "rceil-ramp": (
        [6.01, -3, *(i / 5 for i in range(30))],
        "rceil",
        128,
        "b5 00 10 11 11 22 22 32 33 33 44 44 44 44 55 55",
    ),
}


@BOTH
def test_golden_scales(kernels: str) -> None:
    x = np.zeros((len(GOLDEN_SCALES), 32), np.float32)
    x[:, 7] = list(GOLDEN_SCALES)
    for column, rounding in enumerate(("even", "rceil", "floor", "ceil")):
        for sign in (1, -1):
            scale = quantize_bytes(jnp.asarray(sign * x), rounding=rounding, kernels=kernels)[1]
            assert np.array_equal(scale[:, 0], [row[column] for row in GOLDEN_SCALES.values()]), rounding


@BOTH
@pytest.mark.parametrize("name", GOLDEN_ROWS)
def test_golden_rows(name: str, kernels: str) -> None:
    row, rounding, scale, packed = GOLDEN_ROWS[name]
    assert len(row) == 32
    data, got = quantize_bytes(jnp.asarray(np.float32(row)), rounding=rounding, kernels=kernels)
    assert np.array_equal(got, [scale])
    assert np.asarray(data).tobytes().hex(" ") == packed


@BOTH
def test_every_bfloat16_number_is_its_float32(kernels: str) -> None:
    # Group i holds 2 i and 2 i + 1 as bits, so that each is the largest of some group.
    pairs = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 2)
    x = np.tile(pairs, (1, 16)).view(BF16)
    for rounding in ("even", "rceil"):
        narrow = quantize_bytes(jnp.asarray(x), rounding=rounding, kernels=kernels)
        bits = x.view(np.uint16).astype(np.uint32) << 16
        wide = quantize_bytes(jnp.asarray(bits.view(np.float32)), rounding=rounding, kernels=kernels)
        assert all(same_bits(a, b) for a, b in zip(narrow, wide, strict=True))


@EACH
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.binary(min_size=4 * 34 * 8, max_size=4 * 34 * 8), shift=st.integers(0, 255))
@example(data=bytes(4 * 34 * 8), shift=0)
@example(data=bytes([0xFF]) * (4 * 34 * 8), shift=0)
def test_native_and_reference_agree_on_any_bits(rounding: str, data: bytes, shift: int) -> None:
    bits = np.frombuffer(data, np.uint32).reshape(8, 34)
    # Half of the rows with exponents near each other: in random bits every other number is negligible.
    near = (bits[4:] & 0x81FFFFFF) | (np.uint32(min(shift, 251)) << 23)
    x = jnp.asarray(np.concatenate([bits[:4], near + (bits[4:] & 0x3000000)]).view(np.float32))
    got = [quantize_bytes(x, rounding=rounding, kernels=kernels) for kernels in KERNELS]
    assert all(same_bits(a, b) for a, b in zip(*got, strict=True))
    want = oracle_quantized.quantize(np.asarray(x), rounding)
    assert all(same_bits(a, b) for a, b in zip(got[0], want, strict=True))


@BOTH
def test_the_result_says_what_it_is(kernels: str) -> None:
    tensor = mxfp4_quantize(jnp.ones((3, 64)), rounding="rceil", kernels=kernels)
    assert isinstance(tensor, QuantizedTensor)
    assert (tensor.container, tensor.block, tensor.rounding) == ("mxfp4", (1, 32), "rceil")
    assert (tensor.scale_layout, tensor.packing, tensor.shape) == ("row_major", "low_nibble_first", (3, 64))
    assert mxfp4_quantize(jnp.ones((3, 64)), kernels=kernels).rounding == "even"


@BOTH
def test_values_of_the_format_survive(kernels: str, rng: Rng) -> None:
    # A group whose largest code is 6 is quantised to itself by every rule but ceil.
    codes = rng.integers(0, 16, (50, 64)).astype(np.uint8)
    codes[:, ::32] = 7
    scale = rng.integers(0, 253, (50, 2)).astype(np.uint8)
    tensor = QuantizedTensor(jnp.asarray(oracle_quantized.pack(codes)), jnp.asarray(scale), "mxfp4")
    for rounding in ("floor", "even", "rceil"):
        data, again = quantize_bytes(VALUES(tensor), rounding=rounding, kernels=kernels)
        assert same_bits(data, tensor.data) and same_bits(again, tensor.scale)


@BOTH
@EACH
def test_codes_near_every_threshold_at_every_scale(rounding: str, kernels: str) -> None:
    # Each group's first value sets its scale; the others are thresholds and codes and their neighbours.
    marks = np.float64([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5])
    scales = np.arange(253)[:, None]
    at = np.ldexp(marks, scales - 127).astype(np.float32)
    below, above = (np.nextafter(at, np.float32(side)) for side in (0, np.inf))
    first = np.ldexp(np.float32(6), scales - 127).astype(np.float32)
    x = np.concatenate(
        [first, at[:, :7], below, at[:, :10], first, -at[:, 7:], above, -above[:, :10]], axis=1
    )
    assert x.shape == (253, 64)
    got = quantize_bytes(jnp.asarray(x), rounding=rounding, kernels=kernels)
    want = oracle_quantized.quantize(x, rounding)
    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))
    for scale in (got[1], want[1]):
        assert np.array_equal(np.asarray(scale)[:, 0], scales[:, 0] + (rounding == "ceil"))


FFI_ERRORS = {
    "x-type": (np.zeros((4, 32), np.float16), 1, (16, 1), "argument 'x': expected float32 or bfloat16, got float16"),
    "x-odd": (
        np.zeros((4, 33), np.float32), 1, (16, 2),
        "argument 'x': expected (..., K) with K even and positive, got (4, 33)",
    ),
    "x-empty": (
        np.zeros((4, 0), np.float32), 1, (1, 1),
        "argument 'x': expected (..., K) with K even and positive, got (4, 0)",
    ),
    "x-scalar": (
        np.zeros((), np.float32), 1, (1, 1),
        "argument 'x': expected (..., K) with K even and positive, got ()",
    ),
    "rounding": (np.zeros((4, 32), np.float32), 4, (16, 1), "argument 'rounding': expected 0 to 3, got 4"),
    "data": (np.zeros((4, 34), np.float32), 0, (16, 2), "argument 'data': expected 68 elements, got (4, 16)"),
    "scale": (np.zeros((4, 34), np.float32), 0, (17, 1), "argument 'scale': expected 8 elements, got (4, 1)"),
}  # fmt: skip


@pytest.mark.parametrize("name", FFI_ERRORS)
def test_the_kernel_refuses_wrong_buffers(name: str) -> None:
    x, rounding, (data, scale), message = FFI_ERRORS[name]
    outs = [jax.ShapeDtypeStruct((4, data), jnp.uint8), jax.ShapeDtypeStruct((4, scale), jnp.uint8)]
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        jax.ffi.ffi_call(TARGET, outs)(jnp.asarray(x), rounding=np.int64(rounding))
    assert f"mla_jax.mxfp4_quantize: {message}" in str(raised.value)


def test_errors_are_the_projects_own() -> None:
    assert issubclass(ShapeError, ValueError)
