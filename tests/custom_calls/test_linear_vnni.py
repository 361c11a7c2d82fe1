"""linear over MXFP4 weights in the layout of matrix units: every kernel of a CPU, ragged tiles, extreme values."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle_quantized
import pytest
from op_base import KERNELS, Builder, Call, OpTests, Rng, check, normal, same_bits
from oracle import Bounded
from oracle_quantized import NAN_SCALE, random_weight, vnni_rows, vnni_tiles

from custom_calls.errors import LayoutError
from custom_calls.linear import INVARIANT_ROWS, linear
from custom_calls.linear_vnni import TARGET, TARGET_BIAS
from custom_calls.quantized_tensor import QuantizedTensor, dequantize, to_vnni

BF16 = ml_dtypes.bfloat16
BOTH = pytest.mark.parametrize("kernels", KERNELS)
TYPES = (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"))
EACH_TYPE = pytest.mark.parametrize("types", TYPES, ids="-".join)


def run(x: Any, data: Any, scale: Any, bias: Any = None, *, padding_rows: int, **static: Any) -> jax.Array:
    weight = QuantizedTensor(data, scale, "mxfp4", data_layout="vnni", padding_rows=padding_rows)
    return linear(x, weight, bias, **static)


def expected(
    x: Any, data: Any, scale: Any, bias: Any = None, *, padding_rows: int, out_dtype: str
) -> tuple[Any, ...]:
    rows = vnni_rows(data, scale, 16 * data.shape[0] - padding_rows)
    return oracle_quantized.linear(x, *rows, bias, out_dtype=out_dtype, container="mxfp4", block=(1, 32))


def make(m: int, n: int, k: int, bias: str | None = None) -> Builder:
    def build(rng: Rng, dtype: str, out_dtype: str) -> Call:
        # What fills up the last tile is nobody's: no result may show it.
        data, scale = vnni_tiles(*random_weight(rng, (n, k), "mxfp4"), NAN_SCALE)
        arrays = {
            "x": normal(rng, (m, k), dtype),
            "data": data,
            "scale": scale,
            "bias": None if bias is None else normal(rng, (n,), bias),
        }
        return Call(arrays, {"out_dtype": out_dtype, "padding_rows": 16 * len(data) - n})

    return build


class TestLinearVnni(OpTests):
    function = staticmethod(run)
    oracle = staticmethod(expected)
    primitive = "mla_jax.linear_vnni"
    op_name = "linear"
    variants = TYPES
    cases = {  # noqa: RUF012
        "M0": make(0, 5, 64),
        "N0": make(3, 0, 64),
        "M1-N1-K32": make(1, 1, 32),
        "M1": make(1, 37, 160, "float32"),
        "M1-K2080": make(1, 35, 2080),
        "M2-K2080": make(2, 17, 2080, "float32"),
        "M3-N16": make(3, 16, 32),
        "M5-K2080": make(5, 40, 2080, "bfloat16"),
        "M8-N700": make(8, 700, 96),
        "M15": make(15, 33, 160, "float32"),
        "M16": make(16, 48, 1024, "float32"),
        "M17": make(17, 31, 96),
        "M33-K2080": make(33, 49, 2080),
        "M48": make(48, 65, 160, "bfloat16"),
        "M49": make(49, 15, 160),
        "M64": make(64, 130, 288, "float32"),
        "M65": make(65, 37, 32, "float32"),
        "M100": make(100, 47, 160, "bfloat16"),
        "M100-K2080": make(100, 21, 2080),
        "M600": make(600, 67, 64, "float32"),
    }
    small = staticmethod(make(3, 20, 64, "float32"))
    errors = {  # noqa: RUF012
        "x-width": (
            {"x": jax.ShapeDtypeStruct((4, 32), "float32")},
            "argument 'weight': expected shape (N, 32), got (20, 64)",
        ),
        "weight-stack": (
            {
                "data": jax.ShapeDtypeStruct((1, 2, 2, 4, 64), "uint8"),
                "scale": jax.ShapeDtypeStruct((1, 2, 2, 16), "uint8"),
            },
            "argument 'weight': expected shape (N, 64), got (1, 20, 64)",
        ),
        "bias-size": (
            {"bias": jax.ShapeDtypeStruct((32,), "float32")},
            "argument 'bias': expected shape (20), got (32,)",
        ),
        "out-dtype": (
            {"out_dtype": "bfloat16"}, "argument 'out_dtype': expected dtype float32, got bfloat16",
        ),
    }  # fmt: skip
    vmapped = (("x",), ("data", "scale"), ("x", "data", "scale", "bias"))
    differentiable = ("x", "bias")

    @staticmethod
    def rows(rng: Rng, *variant: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = make(INVARIANT_ROWS, 37, 160, "float32")(rng, *variant)
        at = [slice(0, 1), slice(33, 34), slice(63, 64), slice(0, 3), slice(5, 22), slice(58, 64)]
        return call, [(rows, call.changed(x=call.arrays["x"][rows])) for rows in at]


@pytest.mark.parametrize("size", [(20, 37, 160), (5, 50, 2080), (3, 16, 32)], ids=str)
def test_the_tests_own_layout_is_the_packages(size: tuple[int, int, int], rng: Rng) -> None:
    _, n, k = size
    data, scale = random_weight(rng, (n, k), "mxfp4")
    made = to_vnni(QuantizedTensor(jnp.asarray(data), jnp.asarray(scale), "mxfp4"))
    tiles = vnni_tiles(data, scale, 127)
    assert same_bits(made.data, tiles[0]) and same_bits(made.scale, tiles[1])
    back = vnni_rows(*tiles, n)
    assert same_bits(back[0], data) and same_bits(back[1], scale)


# ---- values ----


@BOTH
@pytest.mark.parametrize("rows", [1, 2, 8, 16, 20, 65, 130])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_mxfp4_value_reaches_the_product_exactly(rows: int, dtype: str, kernels: str) -> None:
    # One code of each row is not zero, so the sum is the value. Each code meets each scale.
    width = 160
    codes, scales = (a.reshape(-1) for a in np.meshgrid(np.arange(16), np.arange(256)))
    data = np.zeros((4096, width), np.uint8)
    at = np.arange(4096) * 7 % width
    data[np.arange(4096), at] = codes
    scale = np.full((4096, width // 32), 127, np.uint8)
    scale[np.arange(4096), at // 32] = scales
    packed = QuantizedTensor(jnp.asarray(oracle_quantized.pack(data)), jnp.asarray(scale), "mxfp4")
    x = jnp.ones((rows, width), dtype)
    got = np.asarray(linear(x, to_vnni(packed), out_dtype="float32", kernels=kernels))
    with np.errstate(over="ignore"):
        want = (oracle_quantized.E2M1[codes] * np.ldexp(1.0, np.minimum(scales, 254) - 127)).astype(
            np.float32
        )
    normal_values = (np.abs(want) >= 2.0**-126) | (want == 0)
    for row in got:
        assert np.isnan(row[scales == NAN_SCALE]).all()
        exact = normal_values & (scales != NAN_SCALE)
        assert np.array_equal(row[exact], want[exact])
        subnormal = ~normal_values & (scales != NAN_SCALE)
        assert np.all((row[subnormal] == want[subnormal]) | (row[subnormal] == 0))


@BOTH
@pytest.mark.parametrize("rows", [1, 3, 12, 30, 140])
def test_every_place_of_the_contraction_meets_its_token(rows: int, kernels: str, rng: Rng) -> None:
    # Whole numbers, of which every sum is exact: a value at another place, or twice, or missing, shows.
    n, k = 35, 2080
    codes = np.zeros((n, k), np.uint8)
    at = rng.integers(0, k, (n, 9))
    np.put_along_axis(codes, at, rng.integers(1, 8, (n, 9)).astype(np.uint8), 1)
    scale = rng.integers(124, 131, (n, k // 32)).astype(np.uint8)
    packed = QuantizedTensor(jnp.asarray(oracle_quantized.pack(codes)), jnp.asarray(scale), "mxfp4")
    x = rng.integers(-100, 101, (rows, k)).astype(np.float32).astype(BF16)
    got = linear(jnp.asarray(x), to_vnni(packed), out_dtype="float32", kernels=kernels)
    values = oracle_quantized.values(oracle_quantized.pack(codes), scale, "mxfp4", (1, 32))
    assert same_bits(got, (x.astype(np.float64) @ values.T).astype(np.float32))


@BOTH
def test_bfloat16_ties_round_to_even(kernels: str, rng: Rng) -> None:
    data, _ = random_weight(rng, (64, 96), "mxfp4")
    scale = np.full((64, 3), 128, np.uint8)
    weight = QuantizedTensor(jnp.asarray(data), jnp.asarray(scale), "mxfp4")
    x = rng.integers(-16, 17, (33, 96)).astype(np.float32).astype(BF16)
    exact = x.astype(np.float64) @ oracle_quantized.values(data, scale, "mxfp4", (1, 32)).T
    assert (exact.astype(np.float32).view(np.uint32) & 0xFFFF == 0x8000).sum() > 50
    for rows in (1, 9, 33):
        got = linear(jnp.asarray(x[:rows]), to_vnni(weight), kernels=kernels)
        assert same_bits(got, exact[:rows].astype(np.float32).astype(BF16))


def same_rows(one: Any, other: Any) -> bool:
    """Bit for bit, but for which NaN a NaN is."""
    left, right = np.asarray(one, np.float32), np.asarray(other, np.float32)
    broken = np.isnan(left)
    return np.array_equal(broken, np.isnan(right)) and same_bits(left[~broken], right[~broken])


EXTREMES = {
    "zero": [0.0, -0.0],
    "denormal": [1e-45, -1e-40, 5e-39, 9.2e-41],
    "tiny": [1e-38, -1e-38, 1.5e-38, -3e-38],
    "small": [2.6e-32, -4.1e-32, 3.3e-32],  # The units of their whole numbers of 24 bits are not normal.
    "huge": [3e38, -3e38, 1e37, -1e38],
    "mixed": [0.0, -0.0, 1e-40, -1e-38, 2e-38, 1.0, -3.0, 1e-20, 1e20, -1e37, 3e38],
    "infinite": [0.0, 1.0, -2.0, 1e-38, 3e38, np.inf, -np.inf],
    "nan": [0.0, 1.0, -2.0, 1e-38, np.inf, np.nan],
}
SCALES = {0: [0, 1, 2], 1: [252, 253, 254], 2: [0, 1, 2, 100, 126, 127, 130, 252], 3: [120, 127, 131]}
"""Of weight rows by their number modulo 4."""


@EACH_TYPE
@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("k", [160, 2080])
@BOTH
def test_extreme_values_meet_the_oracle_and_their_rows_alone(
    k: int, kind: str, types: tuple[str, str], kernels: str, rng: Rng
) -> None:
    dtype, out_dtype = types
    n, m = 37, 20
    data, _ = random_weight(rng, (n, k), "mxfp4")
    scale = np.stack([rng.choice(SCALES[row % 4], k // 32) for row in range(n)]).astype(np.uint8)
    scale[[5, 10, 36], rng.integers(0, k // 32, 3)] = NAN_SCALE
    x = normal(rng, (m, k), dtype)
    chosen = rng.choice(EXTREMES[kind], (m, k)).astype(np.float32).astype(x.dtype)
    # Rows of nothing else, rows with a few of them, one of one, and one of none.
    taken = rng.random((m, k)) < np.where(np.arange(m) % 2, 1.0, 0.05)[:, None]
    taken[4], taken[6] = np.arange(k) == 77, False
    x = np.where(taken, chosen, x)
    tiles, scales = vnni_tiles(data, scale, NAN_SCALE)
    call = Call(
        {"x": x, "data": tiles, "scale": scales, "bias": None},
        {"out_dtype": out_dtype, "padding_rows": 16 * len(tiles) - n},
    )
    (full,) = TestLinearVnni.call(call, kernels)
    got = np.asarray(full)

    with np.errstate(invalid="ignore", over="ignore"):
        (want,) = TestLinearVnni.expected(call)
        values = oracle_quantized.values(data, scale, "mxfp4", (1, 32))
        wide = x.astype(np.float64)
        magnitude = np.abs(wide) @ np.abs(np.nan_to_num(values)).T
    broken = (scale == NAN_SCALE).any(axis=1)
    assert np.isnan(got[:, broken]).all()
    finite = np.isfinite(wide).all(axis=1)
    # An infinity times anything, or times what was flushed to zero.
    assert not np.isfinite(got[~finite].astype(np.float32)).any()
    assert np.isnan(got[np.isnan(wide).any(axis=1)].astype(np.float32)).all()
    # A weight, or a sum of magnitudes, that float32 does not hold may become an infinity on the way.
    held = (np.abs(np.nan_to_num(values)) < 2.0**128).all(axis=1)
    compared = finite[:, None] & (held & ~broken)[None, :] & (magnitude < 2.0**126)
    assert compared.any()
    part = Bounded(want.value[compared], want.error[compared], want.scale)
    check(got[compared], part, f"linear_vnni [{kernels}] {kind}", extreme=True)

    if kernels == "native":
        for first in (*range(6), m - 2):
            for rows in (slice(first, first + 1), slice(first, first + 2)):
                (alone,) = TestLinearVnni.call(call.changed(x=x[rows]), kernels)
                assert same_rows(got[rows], alone), f"{kind}: rows {rows}"


@BOTH
@pytest.mark.parametrize("rows", [1, 5, 21])
@pytest.mark.parametrize("power", [6, 10, 12, 14, 17, 20, 24, 40])
def test_small_values_count_beside_a_large_one(rows: int, power: int, kernels: str, rng: Rng) -> None:
    # One value of every block is 2^power times as large, and meets weights of zero.
    n, k = 20, 160
    data, scale = random_weight(rng, (n, k), "mxfp4")
    codes = np.stack([data & 15, data >> 4], -1).reshape(n, k)
    large = np.arange(k // 32) * 32 + rng.integers(0, 32, k // 32)
    codes[:, large] = rng.choice([0, 8], (n, k // 32))
    packed = oracle_quantized.pack(codes.astype(np.uint8))
    x = normal(rng, (rows, k), "bfloat16")
    x[:, large] = (x[:, large].astype(np.float32) + np.sign(x[:, large].astype(np.float32))) * 2.0**power
    weight = QuantizedTensor(jnp.asarray(packed), jnp.asarray(scale), "mxfp4")
    got = np.asarray(linear(jnp.asarray(x), to_vnni(weight), out_dtype="float32", kernels=kernels))
    values = oracle_quantized.values(packed, scale, "mxfp4", (1, 32))
    exact = x.astype(np.float64) @ values.T
    # At most half of what bfloat16 has rounded the mean of the others by, in a block of 32.
    others = (
        np.abs(np.where(np.isin(np.arange(k), large), 0, x.astype(np.float64))).reshape(rows, -1, 32).mean(-1)
    )
    allowed = np.repeat(others, 32, 1) * 2.0**-10 @ np.abs(values).T
    assert np.all(np.abs(got - exact) <= allowed)


# ---- a row and the other rows ----


@EACH_TYPE
@pytest.mark.parametrize(("n", "k"), [(37, 160), (21, 2080), (140, 32)])
def test_a_row_is_the_same_alone_and_in_any_batch(n: int, k: int, types: tuple[str, str], rng: Rng) -> None:
    many = make(INVARIANT_ROWS + 86, n, k, "float32")(rng, *types)
    # Scales that the arithmetic of ordinary ones may not serve.
    scale = many.arrays["scale"].copy()
    scale[0, 0, 3], scale[0, 0, 4], scale[-1, -1, 0] = 1, 0, 252
    many = many.changed(scale=scale)
    x = many.arrays["x"]
    few = many.changed(x=x[:INVARIANT_ROWS])
    (full,) = TestLinearVnni.call(few, "native")
    for m in (1, 2, 3, 8, 15, 16, 17, 33, 48, 49, 63):
        for first in {0, INVARIANT_ROWS - m}:
            (part,) = TestLinearVnni.call(few.changed(x=x[first : first + m]), "native")
            assert same_bits(np.asarray(full)[first : first + m], part), f"{m} rows from {first}"
    (full,) = TestLinearVnni.call(many, "native")
    for rows in (slice(0, 65), slice(50, 150), slice(85, 150)):
        (part,) = TestLinearVnni.call(many.changed(x=x[rows]), "native")
        assert same_bits(np.asarray(full)[rows], part), f"of many: {rows}"


@BOTH
@pytest.mark.parametrize("m", [1, 3, 17, 70])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_broken_weight_row_stays_in_its_column(m: int, dtype: str, kernels: str, rng: Rng) -> None:
    call = make(m, 30, 160)(rng, dtype, "float32")
    scale = call.arrays["scale"].copy()
    scale[1, 2, 7] = NAN_SCALE  # row 23
    (got,) = TestLinearVnni.call(call.changed(scale=scale), kernels)
    (clean,) = TestLinearVnni.call(call, kernels)
    got = np.asarray(got)
    assert np.isnan(got[:, 23]).all()
    assert same_bits(np.delete(got, 23, 1), np.delete(np.asarray(clean), 23, 1))


# ---- beside the other layouts ----


def test_the_reference_is_that_of_row_major_weights(rng: Rng) -> None:
    data, scale = random_weight(rng, (37, 160), "mxfp4")
    weight = QuantizedTensor(jnp.asarray(data), jnp.asarray(scale), "mxfp4")
    x = jnp.asarray(normal(rng, (5, 160)))
    assert same_bits(linear(x, to_vnni(weight), kernels="reference"), linear(x, weight, kernels="reference"))
    assert same_bits(dequantize(to_vnni(weight)), dequantize(weight))


def test_quantised_activations_refuse_vnni_weights(rng: Rng) -> None:
    data, scale = random_weight(rng, (16, 64), "mxfp4")
    weight = to_vnni(QuantizedTensor(jnp.asarray(data), jnp.asarray(scale), "mxfp4"))
    message = "linear, activations='mxfp4': argument 'weight': expected data_layout 'row_major', got 'vnni'"
    with pytest.raises(LayoutError, match=message):
        linear(jnp.ones((2, 64)), weight, activations="mxfp4")


# ---- the kernel's own checks ----

F32 = np.float32
X, OUT = np.ones((3, 64), F32), ((3, 20), F32)
DATA, SCALE = np.zeros((2, 2, 4, 64), np.uint8), np.zeros((2, 2, 16), np.uint8)


def ffi(x: Any, data: Any, scale: Any, out: Any, bias: Any = None) -> jax.Array:
    call = jax.ffi.ffi_call(TARGET if bias is None else TARGET_BIAS, jax.ShapeDtypeStruct(*out))
    arrays = (x, data, scale) if bias is None else (x, data, scale, bias)
    return jax.block_until_ready(call(*map(jnp.asarray, arrays)))


WRONG_BUFFERS: dict[str, tuple[tuple[Any, ...], str]] = {
    "data-type": ((X, DATA.astype(np.int8), SCALE, OUT), "data"),
    "data-rank": ((X, DATA[0], SCALE, OUT), "data"),
    "data-tile": ((X, np.zeros((2, 2, 16, 16), np.uint8), SCALE, OUT), "data"),
    "scale-type": ((X, DATA, SCALE.astype(F32), OUT), "scale"),
    "scale-shape": ((X, DATA, SCALE[:, :1], OUT), "scale"),
    "x-type": ((X.astype(np.float16), DATA, SCALE, OUT), "x"),
    "x-shape": ((X[:, :32], DATA, SCALE, OUT), "x"),
    "x-rank": ((X[0], DATA, SCALE, OUT), "x"),
    "y-rows": ((X, DATA, SCALE, ((4, 20), F32)), "y"),
    "y-too-wide": ((X, DATA, SCALE, ((3, 33), F32)), "data"),
    "y-too-narrow": ((X, DATA, SCALE, ((3, 16), F32)), "data"),
    "y-type": ((X, DATA, SCALE, ((3, 20), BF16)), "y"),
    "bias-shape": ((X, DATA, SCALE, OUT, np.ones(32, F32)), "bias"),
    "bias-type": ((X, DATA, SCALE, OUT, np.ones(20, np.int32)), "bias"),
}


@pytest.mark.parametrize("name", WRONG_BUFFERS)
def test_the_native_kernel_refuses_wrong_buffers(name: str) -> None:
    arrays, argument = WRONG_BUFFERS[name]
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        ffi(*arrays)
    op = "linear_vnni_bias" if len(arrays) == 5 else "linear_vnni"
    assert f"mla_jax.{op}: argument '{argument}': expected " in str(raised.value)
