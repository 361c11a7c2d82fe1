"""flatten_quantize: both formats byte for byte, every number that is not an ordinary one, heads of any width."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import oracle_quantized
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_base import KERNELS, Builder, Call, OpTests, Rng, integers, normal, same_bits
from oracle import Bounded, f64

from custom_calls.element_formats import ROUNDINGS
from custom_calls.flatten_quantize import TARGET, flatten_quantize
from custom_calls.linear import linear
from custom_calls.mxfp4_quantize import mxfp4_quantize
from custom_calls.quantized_tensor import QuantizedTensor, dequantize, to_fnuz

BF16 = ml_dtypes.bfloat16
FP8 = ml_dtypes.float8_e4m3fn
BITS = {"float32": np.uint32, "bfloat16": np.uint16}
LAYOUTS = ("row_major", "column_major")
MXFP4 = {"format": "mxfp4", "group_size": 32, "scale_layout": "row_major"}
FP8_128 = {"format": "fp8", "group_size": 128, "scale_layout": "row_major"}
FLOOR = np.float32(1e-10) / np.float32(448)
"""Scale of a group of zeros."""

BOTH = pytest.mark.parametrize("kernels", KERNELS)
VALUES = jax.jit(dequantize)


def bytes_of(x: Any, **options: Any) -> tuple[jax.Array, jax.Array]:
    tensor = flatten_quantize(x, **options)
    return tensor.data, tensor.scale


def exact(x: np.ndarray, **options: Any) -> tuple[Bounded, Bounded]:
    """Codes and scales as numbers that have no error."""
    data, scale = oracle_quantized.quantize_rows(
        x.reshape(x.shape[0], -1 if x.size else x.shape[1] * x.shape[2]), **options
    )
    data = data if options["format"] == "mxfp4" else data.view(FP8)
    return tuple(Bounded(f64(b), np.zeros(b.shape), 255.0) for b in (data, scale))  # type: ignore[return-value]


def any_bits(rng: Rng, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Ordinary numbers in most rows of heads, any bit pattern in the others."""
    kind = BITS[dtype]
    raw = rng.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True).view(np.dtype(dtype))
    return np.where(rng.random((*shape[:-1], 1)) < 0.8, normal(rng, shape, dtype, 3.0), raw)


def powers(low: int, high: int) -> Any:
    def fill(rng: Rng, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        with np.errstate(under="ignore"):
            x = np.ldexp(rng.uniform(1, 1.99, shape), rng.integers(low, high, shape))
            x = (x * rng.choice([-1.0, 1.0, 1.0, 0.0, -0.0], shape)).astype(np.float32)
        return x.astype(np.dtype(dtype))

    return fill


def with_infinities(rng: Rng, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    x = powers(100, 128)(rng, shape, dtype)
    x[:, :, ::45] = np.dtype(dtype).type(-np.inf)
    return x


def zeros(rng: Rng, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.copysign(np.zeros(shape), rng.standard_normal(shape)).astype(np.dtype(dtype))


def make(*shape: int, fill: Any = any_bits, **options: Any) -> Builder:
    return lambda rng, dtype: Call({"x": fill(rng, shape, dtype)}, {**MXFP4, **options})


def fp8(*shape: int, group: int = 128, layout: str = "row_major", fill: Any = any_bits) -> Builder:
    return make(*shape, fill=fill, format="fp8", group_size=group, scale_layout=layout)


class TestFlattenQuantize(OpTests):
    function = staticmethod(bytes_of)
    oracle = staticmethod(exact)
    primitive = "mla_jax.flatten_quantize"
    op_name = "flatten_quantize"
    cases = {  # noqa: RUF012
        # 96 and 160 are no powers of two.
        "mxfp4-even": make(7, 3, 96),
        "mxfp4-floor-columns": make(37, 2, 160, rounding="floor", scale_layout="column_major"),
        "mxfp4-ceil-columns": make(5, 4, 32, rounding="ceil", scale_layout="column_major"),
        "mxfp4-rceil": make(3, 5, 64, rounding="rceil"),
        "mxfp4-T0": make(0, 3, 32, scale_layout="column_major"),
        "mxfp4-many": make(300, 1, 32),
        "mxfp4-long": make(2, 3, 2752),
        "mxfp4-small": make(9, 2, 64, fill=powers(-152, -120)),
        "mxfp4-huge": make(9, 2, 64, fill=with_infinities),
        "fp8": fp8(7, 2, 128),
        # 300 values in groups of 128: groups cross heads and the last is not whole.
        "fp8-ragged": fp8(37, 3, 100),
        "fp8-ragged-columns": fp8(37, 3, 100, layout="column_major"),
        "fp8-g20": fp8(5, 7, 9, group=20, layout="column_major"),
        "fp8-g53": fp8(5, 7, 17, group=53),
        "fp8-g1": fp8(3, 2, 5, group=1),
        "fp8-one-group": fp8(3, 4, 15, group=1000, layout="column_major"),
        "fp8-T0": fp8(0, 2, 100),
        "fp8-many": fp8(300, 2, 16, group=16),
        "fp8-long": fp8(2, 3, 2743),
        # 8232 values are several blocks of a GPU kernel, 1032 end in a group of 8.
        "fp8-several-blocks": fp8(3, 3, 2744),
        "fp8-last-group-of-8": fp8(5, 3, 344, layout="column_major"),
        "mxfp4-last-block-of-32": make(3, 65, 32, scale_layout="column_major"),
        "fp8-near-the-floor": fp8(9, 2, 48, group=32, fill=powers(-46, -30)),
        "fp8-small": fp8(9, 2, 48, group=32, fill=powers(-152, -120)),
        "fp8-wide": fp8(9, 2, 48, group=32, fill=powers(-8, 10)),
        "fp8-huge": fp8(9, 2, 48, group=32, fill=with_infinities),
        "fp8-zeros": fp8(3, 2, 48, group=32, fill=zeros),
    }
    errors = {  # noqa: RUF012
        "rank": (
            {"x": jax.ShapeDtypeStruct((4, 64), "float32")},
            "argument 'x': expected shape (T, H, D), got (4, 64)",
        ),
        "dtype": (
            {"x": jax.ShapeDtypeStruct((4, 2, 32), "float16")},
            "argument 'x': expected dtype float32 or bfloat16, got float16",
        ),
        "no-heads": (
            {"x": jax.ShapeDtypeStruct((4, 0, 32), "float32")},
            "argument 'x': expected shape (T, H, D) with H and D positive, got (4, 0, 32)",
        ),
        "no-width": (
            {"x": jax.ShapeDtypeStruct((4, 2, 0), "float32"), **FP8_128},
            "argument 'x': expected shape (T, H, D) with H and D positive, got (4, 2, 0)",
        ),
        "head-width": (
            # H * D is a multiple of 32, but groups would cross heads.
            {"x": jax.ShapeDtypeStruct((4, 2, 48), "float32")},
            "argument 'x': expected D to be a multiple of 32 with format 'mxfp4', got 48",
        ),
        "format": ({"format": "fp8_fnuz"}, "argument 'format': expected 'mxfp4' or 'fp8', got 'fp8_fnuz'"),
        "group-mxfp4": (
            {"group_size": 16},
            "argument 'group_size': expected 32 with format 'mxfp4', got 16",
        ),
        "group-fp8": (
            {"format": "fp8", "group_size": 0},
            "argument 'group_size': expected a positive integer, got 0",
        ),
        "group-fraction": (
            {"format": "fp8", "group_size": 1.5},
            "argument 'group_size': expected a positive integer, got 1.5",
        ),
        "layout": (
            {"scale_layout": "strided"},
            "argument 'scale_layout': expected 'row_major' or 'column_major', got 'strided'",
        ),
        "rounding": (
            {"rounding": "nearest"},
            "argument 'rounding': expected 'floor' or 'even' or 'ceil' or 'rceil', got 'nearest'",
        ),
        "rounding-fp8": (
            {**FP8_128, "rounding": "even"},
            "argument 'rounding': expected None with format 'fp8', whose scale is no power of two, got 'even'",
        ),
    }
    vmapped = (("x",),)
    differentiable = ()

    @staticmethod
    def small(rng: Rng, dtype: str) -> Call:
        return fp8(4, 3, 32, group=40, layout="column_major")(rng, dtype).changed(
            format="mxfp4", group_size=32
        )

    @staticmethod
    def rows(rng: Rng, dtype: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = fp8(200, 3, 17, group=20)(rng, dtype)
        at = [slice(0, 1), slice(163, 164), slice(199, 200), slice(5, 190)]
        return call, [(rows, call.changed(x=call.arrays["x"][rows])) for rows in at]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.binary(min_size=4 * 8 * 96, max_size=4 * 8 * 96), exponent=st.integers(0, 251))
@example(data=bytes(4 * 8 * 96), exponent=0)
@example(data=bytes([0xFF]) * (4 * 8 * 96), exponent=0)
@example(data=bytes([0, 0, 0x80, 0x7F]) * (8 * 96), exponent=251)
def test_native_and_reference_agree_on_any_bits(data: bytes, exponent: int) -> None:
    bits = np.frombuffer(data, np.uint32).reshape(8, 3, 32)
    # Half of the rows with exponents near each other: in random bits every other number is negligible.
    near = (bits[4:] & 0x81FFFFFF) | (np.uint32(exponent) << 23)
    x = np.concatenate([bits[:4], near + (bits[4:] & 0x3000000)]).view(np.float32)
    for options in (MXFP4, {**FP8_128, "group_size": 40}):
        want = oracle_quantized.quantize_rows(x.reshape(8, 96), **options)
        for kernels in KERNELS:
            got = bytes_of(jnp.asarray(x), **options, kernels=kernels)
            assert np.array_equal(np.asarray(got[0]).view(np.uint8), want[0]), (options, kernels)
            assert same_bits(got[1], want[1]), (options, kernels)


@BOTH
@pytest.mark.parametrize("options", [MXFP4, FP8_128], ids=["mxfp4", "fp8"])
@pytest.mark.bug("sgl-project/sglang#29275", "test")
def test_column_major_scales_are_the_transposed_array(
    options: dict[str, Any], kernels: str, rng: Rng
) -> None:
    x = jnp.asarray(any_bits(rng, (33, 3, 96), "float32"))
    rows, columns = (
        flatten_quantize(x, **{**options, "scale_layout": layout}, kernels=kernels) for layout in LAYOUTS
    )
    assert same_bits(columns.scale, np.asarray(rows.scale).T)
    assert same_bits(columns.data, rows.data)
    assert same_bits(VALUES(columns), VALUES(rows))


@BOTH
def test_the_result_says_what_it_is(kernels: str) -> None:
    x = jnp.ones((3, 5, 64))
    for layout in LAYOUTS:
        tensor = flatten_quantize(
            x, format="mxfp4", group_size=32, scale_layout=layout, rounding="ceil", kernels=kernels
        )
        assert isinstance(tensor, QuantizedTensor)
        assert (tensor.container, tensor.block, tensor.rounding) == ("mxfp4", (1, 32), "ceil")
        assert (tensor.scale_layout, tensor.shape) == (layout, (3, 320))
        assert tensor.scale.shape == ((3, 10) if layout == "row_major" else (10, 3))
        tensor = flatten_quantize(x[:2], format="fp8", group_size=128, scale_layout=layout, kernels=kernels)
        assert (tensor.container, tensor.block, tensor.rounding) == ("fp8_block", (1, 128), None)
        assert (tensor.scale_layout, tensor.shape) == (layout, (2, 320))
        assert tensor.scale.shape == ((2, 3) if layout == "row_major" else (3, 2))
        assert (tensor.data.dtype, tensor.scale.dtype) == (jnp.float8_e4m3fn, jnp.float32)
    assert flatten_quantize(x, **MXFP4, kernels=kernels).rounding == "even"


@BOTH
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_mxfp4_bytes_are_those_of_mxfp4_quantize(rounding: str, kernels: str, rng: Rng) -> None:
    x = jnp.asarray(any_bits(rng, (6, 3, 96), "bfloat16"))
    flat = mxfp4_quantize(x.reshape(6, 288), rounding=rounding, kernels=kernels)
    got = flatten_quantize(x, **MXFP4, rounding=rounding, kernels=kernels)
    assert same_bits(got.data, flat.data) and same_bits(got.scale, flat.scale)


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_quantises_activations_by_the_same_rule(dtype: str, kernels: str, rng: Rng) -> None:
    tokens, heads, width, out = 5, 3, 96, 40
    x = normal(rng, (tokens, heads, width), dtype)
    weight = QuantizedTensor(
        *map(jnp.asarray, oracle_quantized.random_weight(rng, (out, heads * width), "mxfp4")), "mxfp4"
    )
    got = linear(
        jnp.asarray(x.reshape(tokens, heads * width)),
        weight, activations="mxfp4", out_dtype="float32", kernels=kernels,
    )  # fmt: skip
    quantized = VALUES(flatten_quantize(jnp.asarray(x), **MXFP4, kernels=kernels))
    rows, matrix = f64(quantized), f64(VALUES(weight))
    bound = oracle.relative(heads * width) * (np.abs(rows) @ np.abs(matrix).T)
    assert np.all(np.abs(f64(got) - rows @ matrix.T) <= bound)
    # Another rule would be seen.
    other = f64(VALUES(flatten_quantize(jnp.asarray(x), **MXFP4, rounding="ceil", kernels=kernels)))
    assert np.any(np.abs(f64(got) - other @ matrix.T) > bound)


# ---- fp8 in detail ----


def fp8_bytes(values: list[float], kernels: str, dtype: Any = np.float32) -> tuple[list[int], float]:
    x = np.array(values, np.float32).astype(dtype).reshape(1, 1, len(values))
    data, scale = bytes_of(
        jnp.asarray(x), format="fp8", group_size=len(values), scale_layout="row_major", kernels=kernels
    )
    return np.asarray(data).view(np.uint8)[0].tolist(), float(scale[0, 0])


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_fp8_values_and_ties(dtype: Any, kernels: str) -> None:
    # The largest is 448, so that the scale is 1 and codes are read off directly.
    values = [448, -448, 1, 1.0625, 1.1875, -0.0, 2**-9, 2**-10, 1.5 * 2**-9, -(2**-6), 15.5 * 2**-9, 0.0]
    codes, scale = fp8_bytes(values, kernels, dtype)
    assert scale == 1
    assert codes == [0x7E, 0xFE, 0x38, 0x38, 0x3A, 0x80, 0x01, 0x00, 0x02, 0x88, 0x08 + 8, 0x00]


@BOTH
def test_fp8_codes_near_every_threshold(kernels: str) -> None:
    codes = oracle_quantized.FP8_MAGNITUDES
    marks = np.concatenate([codes, (codes[1:] + codes[:-1]) / 2]).astype(np.float32)
    below, above = (np.nextafter(marks, np.float32(side)) for side in (0, 448))
    x = np.concatenate([marks, below, above, np.float32([1e-45, 1e-38, 2.0**-11])])
    x = np.stack([x, -x, x * np.float32(2.0**40), x * np.float32(2.0**-30)])
    options = {"format": "fp8", "group_size": x.shape[1], "scale_layout": "row_major"}
    data, scale = bytes_of(jnp.asarray(x[:, None]), **options, kernels=kernels)
    assert np.array_equal(scale[:, 0], [1, 1, 2.0**40, 2.0**-30])
    assert np.array_equal(np.asarray(data).view(np.uint8), oracle_quantized.quantize_rows(x, **options)[0])
    assert set(np.asarray(data).view(np.uint8)[0]) == set(range(0x7F))


@BOTH
def test_fp8_nan_stays_alone(kernels: str) -> None:
    codes, scale = fp8_bytes([np.nan, 448, -np.nan, -2.0], kernels)
    assert scale == 1 and codes == [0x7F, 0x7E, 0x7F, 0xC0]
    codes, scale = fp8_bytes([np.nan] * 20, kernels)
    assert scale == FLOOR and codes == [0x7F] * 20


@BOTH
def test_fp8_infinity_is_an_infinity_again(kernels: str) -> None:
    values = [np.inf, -np.inf, 2.0**127, -(2.0**119), 1.0, np.nan, -0.0]
    codes, scale = fp8_bytes(values, kernels)
    assert scale == np.float32(2.0**128 / 448)
    assert codes == [0x7E, 0xFE, 0x76, 0x80 + 0x36, 0x00, 0x7F, 0x80]
    x = jnp.asarray(np.float32(values).reshape(1, 1, 7))
    back = np.asarray(
        VALUES(flatten_quantize(x, format="fp8", group_size=7, scale_layout="row_major", kernels=kernels))
    )
    assert np.array_equal(back[0, :2], [np.inf, -np.inf]) and np.isfinite(back[0, [2, 3, 4, 6]]).all()


@BOTH
def test_fp8_of_the_largest_number_is_finite(kernels: str) -> None:
    largest = np.finfo(np.float32).max
    codes, scale = fp8_bytes([largest, 0.0], kernels)
    assert codes == [0x7E, 0x00] and np.float32(448) * np.float32(scale) == largest


@BOTH
def test_fp8_floor_of_the_scale(kernels: str) -> None:
    assert fp8_bytes([0.0, -0.0, 1e-40, -1e-44], kernels) == ([0x00, 0x80, 0x00, 0x80], FLOOR)
    # Below the floor codes shrink with the values; at it the largest code is reached.
    codes, scale = fp8_bytes([1e-10 / 448, -1e-12], kernels)
    assert scale == FLOOR and codes == [0x38, 0xC9]
    codes, scale = fp8_bytes([1e-10, -1e-10], kernels)
    assert scale == FLOOR and codes == [0x7E, 0xFE]
    codes, scale = fp8_bytes([2e-10], kernels)
    assert scale == np.float32(2e-10) / np.float32(448) and codes == [0x7E]


@BOTH
def test_fp8_scales_are_correctly_rounded_quotients(kernels: str, rng: Rng) -> None:
    bits = rng.integers(0x2EDBE6FF, 0x7F800000, 200_000).astype(np.uint32)  # from 1e-10 on
    # Both sides of where the quotient's exponent changes.
    edge = (np.arange(64)[:, None] + 100 << 23) + 0x600000 + np.arange(-3, 4)
    x = np.concatenate([bits, edge.ravel().astype(np.uint32)]).view(np.float32)
    _, scale = bytes_of(
        jnp.asarray(x.reshape(-1, 1, 1)),
        format="fp8",
        group_size=1,
        scale_layout="row_major",
        kernels=kernels,
    )
    assert same_bits(np.asarray(scale)[:, 0], x / np.float32(448))


@BOTH
def test_fp8_of_every_bfloat16_number_is_that_of_its_float32(kernels: str) -> None:
    # Group i holds 4 i to 4 i + 3 as bits.
    x = np.arange(1 << 16, dtype=np.uint16).reshape(1 << 11, 1, 32)
    wide = (x.astype(np.uint32) << 16).view(np.float32)
    options = {"format": "fp8", "group_size": 4, "scale_layout": "row_major", "kernels": kernels}
    narrow = bytes_of(jnp.asarray(x.view(BF16)), **options)
    assert all(same_bits(a, b) for a, b in zip(narrow, bytes_of(jnp.asarray(wide), **options), strict=True))


@BOTH
def test_fp8_of_whole_groups_of_codes_survives(kernels: str, rng: Rng) -> None:
    codes = rng.integers(0, 256, (20, 1, 64)).astype(np.uint8)
    codes[codes % 128 == 0x7F] = 0
    codes[:, :, ::16] = 0x7E
    power = np.ldexp(np.float32(1), rng.integers(-30, 100, (20, 1, 4))).astype(np.float32)
    x = codes.view(FP8).astype(np.float32) * np.repeat(power, 16, axis=-1)
    data, scale = bytes_of(
        jnp.asarray(x), format="fp8", group_size=16, scale_layout="row_major", kernels=kernels
    )
    assert same_bits(np.asarray(data).view(np.uint8), codes[:, 0]) and same_bits(scale, power[:, 0])


def test_fp8_results_convert_to_fnuz(rng: Rng) -> None:
    x = jnp.asarray(normal(rng, (5, 2, 100)))
    tensor = flatten_quantize(x, format="fp8", group_size=128, scale_layout="column_major")
    other = to_fnuz(tensor)
    assert other.data.dtype == jnp.float8_e4m3fnuz and other.scale_layout == "column_major"
    assert np.array_equal(VALUES(other), VALUES(tensor))


def test_integers_are_exact(rng: Rng) -> None:
    # Up to 4 bits of integer and the group's largest 7 * 2^n: no rounding anywhere.
    x = integers(rng, (4, 2, 64), np.float32, 14)
    x[:, :, ::32] = 14
    for options in (MXFP4 | {"rounding": "even"}, FP8_128 | {"group_size": 32}):
        values = np.asarray(VALUES(flatten_quantize(jnp.asarray(x), **options)))
        if options["format"] == "fp8":
            assert np.array_equal(values, x.reshape(4, 128))
        else:
            assert np.abs(values - x.reshape(4, 128)).max() <= 2


def ffi_case(
    message: str, x: Any = (4, 2, 32), dtype: Any = np.float32, data: Any = ((4, 32), jnp.uint8),
    scale: Any = ((4, 2), jnp.uint8), **attributes: int,
) -> tuple[Any, ...]:  # fmt: skip
    return message, np.zeros(x, dtype), (data, scale), attributes


FP8_DATA, FP8_SCALE = ((4, 64), jnp.float8_e4m3fn), ((4, 2), jnp.float32)
FFI_ERRORS = {
    "x-type": ffi_case("argument 'x': expected float32 or bfloat16, got float16", dtype=np.float16),
    "x-rank": ffi_case("argument 'x': expected rank 3, got shape (4, 64)", x=(4, 64)),
    "x-heads": ffi_case("argument 'x': expected heads whose width is a multiple of 32, got (4, 2, 48)", x=(4, 2, 48)),
    "x-empty": ffi_case("argument 'x': expected rows of an even, positive number of values, got 0", x=(4, 2, 0)),
    "x-empty-fp8": ffi_case("argument 'x': expected rows of a positive number of values, got 0", x=(4, 2, 0), format=1),
    "format": ffi_case("argument 'format': expected 0 or 1, got 2", format=2),
    "group": ffi_case("argument 'group_size': expected 32, got 16", group_size=16),
    "group-fp8": ffi_case("argument 'group_size': expected a positive number, got 0", format=1, group_size=0),
    "rounding": ffi_case("argument 'rounding': expected 0 to 3, got 4", rounding=4),
    "data-type": ffi_case("argument 'data': expected float8_e4m3fn, got uint8", format=1, scale=FP8_SCALE),
    "scale-type": ffi_case("argument 'scale': expected float32, got uint8", format=1, data=FP8_DATA),
    "data": ffi_case("argument 'data': expected shape (4, 64), got shape (4, 32)", format=1,
                     data=((4, 32), jnp.float8_e4m3fn), scale=FP8_SCALE),
    "scale": ffi_case("argument 'scale': expected shape (4, 2), got shape (2, 4)", scale=((2, 4), jnp.uint8)),
    "scale-columns": ffi_case("argument 'scale': expected shape (2, 4), got shape (4, 2)", column_major=1),
}  # fmt: skip


@pytest.mark.parametrize("name", FFI_ERRORS)
def test_the_kernel_refuses_wrong_buffers(name: str) -> None:
    message, x, buffers, changes = FFI_ERRORS[name]
    attributes = {"format": 0, "group_size": 32, "rounding": 1, "column_major": 0} | changes
    outs = [jax.ShapeDtypeStruct(*buffer) for buffer in buffers]
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        jax.ffi.ffi_call(TARGET, outs)(jnp.asarray(x), **{k: np.int64(v) for k, v in attributes.items()})
    assert f"mla_jax.flatten_quantize: {message}" in str(raised.value)
