"""linear over quantised weights: every container, ragged sizes, independence of the batch."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import oracle_quantized
import pytest
from op_base import (
    KERNELS,
    Builder,
    Call,
    OpTests,
    Rng,
    check,
    integers,
    normal,
    same_bits,
)
from oracle_quantized import FNUZ, FP8, LAYOUTS, NAN_CODES, NAN_SCALE, fp8_dtype, random_weight

from custom_calls.errors import LayoutError
from custom_calls.linear import INVARIANT_ROWS, linear
from custom_calls.linear_quantized import MAX_GPU_ROWS, TARGET, TARGET_BIAS
from custom_calls.quantized_tensor import QuantizedTensor, to_fnuz
from custom_calls.registry import library

BF16 = ml_dtypes.bfloat16
BOTH = pytest.mark.parametrize("kernels", KERNELS)
EACH = pytest.mark.parametrize("layout", LAYOUTS)
TYPES = (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"))


def weight_of(data: Any, scale: Any, container: str, block: tuple[int, int], **named: Any) -> QuantizedTensor:
    return QuantizedTensor(jnp.asarray(data), jnp.asarray(scale), container, block, **named)


def run(
    x: Any, data: Any, scale: Any, bias: Any = None, *, container: str, block: tuple[int, int], **static: Any
) -> jax.Array:
    return linear(x, QuantizedTensor(data, scale, container, block), bias, **static)


def make(m: int, n: int, k: int, layout: str, bias: str | None = None, x_scale: float = 1.0) -> Builder:
    def build(rng: Rng, dtype: str, out_dtype: str) -> Call:
        data, scale = random_weight(rng, (n, k), layout)
        container, block = LAYOUTS[layout]
        arrays = {
            "x": normal(rng, (m, k), dtype, x_scale),
            "data": data,
            "scale": scale,
            "bias": None if bias is None else normal(rng, (n,), bias),
        }
        static = {"out_dtype": out_dtype, "container": container, "block": block}
        return Call(arrays, static, extreme=x_scale != 1.0)

    return build


def cancelling(layout: str) -> Builder:
    """Sums of huge terms that cancel to almost nothing: only the elementwise bound can hold."""

    def build(rng: Rng, dtype: str, out_dtype: str) -> Call:
        call = make(5, 7, 128, layout, x_scale=1e15)(rng, dtype, out_dtype)
        x, data, scale = (call.arrays[name].copy() for name in ("x", "data", "scale"))
        x[:, 64:] = -x[:, :64]
        data[:, data.shape[1] // 2 :] = data[:, : data.shape[1] // 2]
        if scale.ndim == 2 and scale.shape[1] > 1:
            scale[:, scale.shape[1] // 2 :] = scale[:, : scale.shape[1] // 2]
        x[:, 5] += normal(rng, (5,), dtype)
        return call.changed(x=x, data=data, scale=scale)

    return build


def tiny_scales(layout: str) -> Builder:
    """Scales and values around the smallest normal float32, where XLA may flush."""

    def build(rng: Rng, dtype: str, out_dtype: str) -> Call:
        call = make(3, 9, 64, layout)(rng, dtype, out_dtype)
        scale = call.arrays["scale"]
        if scale.dtype == np.uint8:
            small = rng.integers(0, 4, scale.shape).astype(np.uint8)
        else:
            small = np.ldexp(rng.uniform(1, 2, scale.shape), rng.integers(-134, -122, scale.shape)).astype(
                scale.dtype
            )
        return Call({**call.arrays, "scale": small}, call.static, extreme=True)

    return build


class TestLinearQuantized(OpTests):
    function = staticmethod(run)
    oracle = staticmethod(oracle_quantized.linear)
    primitive = "mla_jax.linear_quantized"
    op_name = "linear"
    variants = TYPES
    cases = {  # noqa: RUF012
        **{f"{layout}-M0": make(0, 5, 160, layout) for layout in ("mxfp4", "fp8_block128")},
        **{f"{layout}-M1": make(1, 37, 160, layout, bias="float32") for layout in LAYOUTS},
        "int4_group32-M4-N1": make(4, 1, 320, "int4_group32"),
        "mxfp4-M5": make(5, 7, 160, "mxfp4", bias="bfloat16"),
        "mxfp4-M33": make(33, 67, 192, "mxfp4"),
        "fp8_block128-M33": make(33, 67, 192, "fp8_block128"),
        "fp8_block128-N576": make(2, 576, 130, "fp8_block128"),
        "fp8_block128-N160-K33": make(6, 160, 33, "fp8_block128"),
        "fp8_block24x40-K100": make(5, 50, 100, "fp8_block24x40", bias="float32"),
        "fp8_channel-K1": make(5, 9, 1, "fp8_channel"),
        "fp8_block128_fnuz-M9-K33": make(9, 37, 33, "fp8_block128_fnuz", bias="bfloat16"),
        "fp8_block128_fnuz-M70-N12500": make(70, 12500, 64, "fp8_block128_fnuz"),
        "mxfp4-K2048": make(2, 5, 2048, "mxfp4"),
        # Each of a GPU's kernels, which follow from rows and tokens, and beyond MAX_GPU_ROWS.
        "mxfp4-M3-N8500": make(3, 8500, 64, "mxfp4"),
        **{f"{layout}-M12-N8600": make(12, 8600, 128, layout) for layout in ("mxfp4", "fp8_block128")},
        **{f"{layout}-M33-N8600": make(33, 8600, 32, layout) for layout in ("mxfp4", "int4_group32")},
        **{f"{layout}-M70-N12500": make(70, 12500, 64, layout) for layout in ("mxfp4", "fp8_block128")},
        # MXFP4's kernels of warpgroups: each count of tokens, whole and ragged rows, fewer steps than splits.
        "mxfp4-M9-K128": make(9, 70, 128, "mxfp4", bias="float32"),
        "mxfp4-M13-N25000": make(13, 25000, 128, "mxfp4"),
        "mxfp4-M31-K2944": make(31, 300, 2944, "mxfp4", bias="bfloat16"),
        "mxfp4-M17-N35000": make(17, 35000, 128, "mxfp4"),
        "mxfp4-M17-N5300": make(17, 5300, 1536, "mxfp4", bias="float32"),
        "mxfp4-M64-N17000": make(64, 17000, 128, "mxfp4"),
        "mxfp4-M65-N17200": make(65, 17200, 128, "mxfp4"),
        "mxfp4-M129": make(129, 20, 128, "mxfp4"),
        **{
            f"{layout}-M97": make(97, 20, 64, layout, bias="float32")
            for layout in ("mxfp4", "fp8_channel", "fp8_tensor")
        },
        "fp8_channel-K2050": make(7, 5, 2050, "fp8_channel"),
        **{f"{layout}-large": make(3, 9, 320, layout, x_scale=1e18) for layout in ("mxfp4", "fp8_channel")},
        **{
            f"{layout}-cancelling": cancelling(layout)
            for layout in ("mxfp4", "int4_group32")
        },
        **{
            f"{layout}-tiny": tiny_scales(layout)
            for layout in ("mxfp4", "fp8_channel", "int4_group32")
        },
    }  # fmt: skip
    errors = {  # noqa: RUF012
        "x-rank": (
            {"x": jax.ShapeDtypeStruct((2, 3, 64), "float32")},
            "argument 'x': expected shape (M, K), got (2, 3, 64)",
        ),
        "x-dtype": (
            {"x": jax.ShapeDtypeStruct((4, 64), "float16")},
            "argument 'x': expected dtype float32 or bfloat16, got float16",
        ),
        "x-width": (
            {"x": jax.ShapeDtypeStruct((4, 32), "float32")},
            "argument 'weight': expected shape (N, 32), got (5, 64)",
        ),
        "weight-stack": (
            {"data": jax.ShapeDtypeStruct((1, 5, 32), "uint8"), "scale": jax.ShapeDtypeStruct((1, 5, 2), "uint8")},
            "argument 'weight': expected shape (N, 64), got (1, 5, 64)",
        ),
        "weight-vector": (
            {"data": jax.ShapeDtypeStruct((32,), "uint8"), "scale": jax.ShapeDtypeStruct((2,), "uint8")},
            "argument 'weight': expected shape (N, 64), got (64,)",
        ),
        "ragged-group": (
            {
                "x": jax.ShapeDtypeStruct((4, 34), "float32"),
                "data": jax.ShapeDtypeStruct((5, 17), "uint8"),
                "scale": jax.ShapeDtypeStruct((5, 2), "uint8"),
            },
            "argument 'weight': expected K to be a multiple of 32 for MXFP4, got 34",
        ),
        "bias-size": (
            {"bias": jax.ShapeDtypeStruct((4,), "float32")},
            "argument 'bias': expected shape (5), got (4,)",
        ),
        "bias-dtype": (
            {"bias": jax.ShapeDtypeStruct((5,), "int32")},
            "argument 'bias': expected dtype float32 or bfloat16, got int32",
        ),
        "out-dtype": (
            {"out_dtype": "bfloat16"},
            "argument 'out_dtype': expected dtype float32, got bfloat16",
        ),
        "out-dtype-unknown": (
            {"x": jax.ShapeDtypeStruct((4, 64), "bfloat16"), "out_dtype": "float16"},
            "argument 'out_dtype': expected dtype float32 or bfloat16, got float16",
        ),
        "activations": (
            {"activations": "int8"},
            "argument 'activations': expected 'bf16' or 'mxfp4' or 'fp8', got 'int8'",
        ),
    }  # fmt: skip
    vmapped = (("x",), ("data", "scale"), ("x", "data", "scale", "bias"))
    differentiable = ("x", "bias")

    @staticmethod
    def small(rng: Rng, dtype: str, out_dtype: str) -> Call:
        return make(4, 5, 64, "mxfp4", bias="float32")(rng, dtype, out_dtype)

    @staticmethod
    def rows(rng: Rng, *variant: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = make(INVARIANT_ROWS, 37, 160, "fp8_block24x40")(rng, *variant)
        at = [slice(0, 1), slice(33, 34), slice(63, 64), slice(0, 3), slice(5, 22), slice(58, 64)]
        return call, [(rows, call.changed(x=call.arrays["x"][rows])) for rows in at]


@pytest.mark.parametrize("size", [(50, 7100, 2048), (128, 2100, 1536), (65, 11600, 1024)], ids=str)
def test_kernels_that_a_gpu_takes_for_large_products_only(size: tuple[int, int, int], rng: Rng) -> None:
    # Not among the cases above, for an emulator's sake.
    call = make(*size, "mxfp4", bias="float32")(rng, "bfloat16", "bfloat16")
    (got,) = TestLinearQuantized.call(call, "native")
    check(got, TestLinearQuantized.expected(call)[0], f"linear_quantized {size}")


# What brings each of a GPU's kernels for more than a few weight rows, whether it has 132, 256 or 304 processors.
MANY_ROWS = [(3, 22000, 160), (12, 6000, 160), (12, 25400, 96), (33, 3000, 160), (33, 12700, 96)]


@pytest.mark.parametrize("size", MANY_ROWS, ids=str)
@pytest.mark.parametrize("layout", ["mxfp4", "fp8_block128", "fp8_block128_fnuz", "int4_group32"])
def test_native_products_of_many_weight_rows(layout: str, size: tuple[int, int, int], rng: Rng) -> None:
    call = make(*size, layout, bias="float32")(rng, "bfloat16", "bfloat16")
    TestLinearQuantized.check_call(call, "native")


@EACH
def test_with_matrix_tiles_a_row_is_the_same_in_any_call(layout: str, rng: Rng) -> None:
    if jax.default_backend() != "cpu" or library("cpu").abi.get("isa") != "amx":
        pytest.skip("no AMX here: more than INVARIANT_ROWS rows are summed in another order")
    # One tile of rows and several, pieces of weights that end inside a scale's columns.
    call = make(150, 230, 700 if layout.startswith(("fp8", "int4_group20")) else 704, layout)(
        rng, "bfloat16", "float32"
    )
    (full,) = TestLinearQuantized.call(call, "native")
    check(full, TestLinearQuantized.expected(call)[0], f"linear_quantized {layout}, 150 rows")
    for rows in (slice(0, 1), slice(3, 10), slice(40, 57), slice(100, 148), slice(10, 74), slice(1, 98)):
        (part,) = TestLinearQuantized.call(call.changed(x=call.arrays["x"][rows]), "native")
        assert same_bits(np.asarray(full)[rows], part), rows


# ---- the grid: every container x type x M x N x K, one compiled module a container and type ----

GRID_M = (0, 1, 2, 4, 5, 33, 130)
GRID_N = (1, 7, 37, 300)


def grid_k(layout: str) -> tuple[int, ...]:
    if layout == "int4_group20_bfloat16":
        return (20, 100, 180, 580)
    return (32, 64, 192, 576) + ((33, 100) if layout.startswith("fp8") else ())


@EACH
@pytest.mark.parametrize("types", [TYPES[0], TYPES[2]], ids="-".join)
@pytest.mark.bug("ROCm/aiter#4181", "test")
def test_every_size_against_the_oracle_and_against_the_batch(
    layout: str, types: tuple[str, str], rng: Rng
) -> None:
    dtype, out_dtype = types
    calls: dict[tuple[int, int], Call] = {}
    widths = grid_k(layout)
    # Every N twice and every K at least once; with the containers, every pair of them.
    for number in range(2 * len(GRID_N)):
        n, k = (
            GRID_N[number % 4],
            widths[(number + number // 4 * 2 + list(LAYOUTS).index(layout)) % len(widths)],
        )
        bias = (None, "float32", "bfloat16")[number % 3]
        calls[n, k] = make(max(GRID_M), n, k, layout, bias)(rng, dtype, out_dtype)

    def everything(given: dict[Any, dict[str, Any]]) -> dict[Any, list[jax.Array]]:
        return {
            key: [run(**{**arrays, "x": arrays["x"][:m]}, **calls[key].static, kernels="native") for m in GRID_M]
            for key, arrays in given.items()
        }  # fmt: skip

    got = jax.jit(everything)({key: OpTests.device(call) for key, call in calls.items()})
    for key, call in calls.items():
        (want,) = TestLinearQuantized.expected(call)
        found = [np.asarray(y) for y in got[key]]
        # Also shapes: each has as many rows as it was given.
        assert [len(part) for part in found] == list(GRID_M)
        check(found[-1], want, f"linear_quantized {layout} N, K = {key}")
        for part in found:
            full = found[-2] if len(part) <= INVARIANT_ROWS else found[-1]
            assert same_bits(part, full[: len(part)]), f"{layout} N, K = {key}: {len(part)} rows"
        # A few rows are summed in another order.
        few = calls[key].changed(x=calls[key].arrays["x"][: GRID_M[-2]])
        check(
            found[-2],
            TestLinearQuantized.expected(few)[0],
            f"linear_quantized {layout} N, K = {key}, few rows",
        )


@BOTH
@pytest.mark.parametrize("width", [32, 128])
def test_every_mxfp4_value_reaches_the_product_exactly(width: int, kernels: str) -> None:
    # One code of each row is not zero, so the sum is the value. Scales whose 6 overflows come last.
    codes, scales = (a.reshape(-1) for a in np.meshgrid(np.arange(16), np.arange(256)))
    data = np.zeros((4096, width), np.uint8)
    at = np.arange(4096) % (width - 1)
    data[np.arange(4096), at] = codes
    scale = np.full((4096, width // 32), 127, np.uint8)
    scale[np.arange(4096), at // 32] = scales
    weight = weight_of(oracle_quantized.pack(data), scale, "mxfp4", (1, 32))
    with np.errstate(over="ignore"):
        want = (oracle_quantized.E2M1[codes] * np.ldexp(1.0, np.minimum(scales, 254) - 127)).astype(
            np.float32
        )
    normal_values = (np.abs(want) >= 2.0**-126) | (want == 0)
    for rows, dtype in ((1, BF16), (3, BF16), (6, BF16), (20, BF16), (1, np.float32), (17, np.float32)):
        x = jnp.ones((rows, width), dtype)
        got = np.asarray(linear(x, weight, out_dtype="float32", kernels=kernels))
        for row in got:
            assert np.isnan(row[scales == NAN_SCALE]).all()
            exact = normal_values & (scales != NAN_SCALE)
            assert np.array_equal(row[exact], want[exact])
            subnormal = ~normal_values & (scales != NAN_SCALE)
            assert np.all((row[subnormal] == want[subnormal]) | (row[subnormal] == 0))


@BOTH
@pytest.mark.parametrize(
    "layout", ["fp8_channel", "fp8_block128", "fp8_block24x40", "fp8_block128_fnuz", "int4_group32"]
)
def test_every_code_reaches_the_product_rounded_once(layout: str, kernels: str, rng: Rng) -> None:
    container, block = LAYOUTS[layout]
    is_int4 = container == "int4_group"
    size, width = (16 if is_int4 else 256), 64
    codes = np.full((size, width), 8 if is_int4 else 0, np.uint8)  # 8 is int4's zero
    codes[np.arange(size), rng.integers(0, width, size)] = np.arange(size)
    data = oracle_quantized.pack(codes) if is_int4 else codes.view(fp8_dtype(layout))
    scale = rng.uniform(1e-3, 1, oracle_quantized.scale_shape((size, width), container, block)).astype(
        np.float32
    )
    exact = oracle_quantized.values(data, scale, container, block)
    with np.errstate(invalid="ignore"):
        want = oracle.round_to(np.nansum(exact, axis=1) + 0 * exact.sum(axis=1), np.dtype(np.float32))
    for rows, dtype in ((1, BF16), (2, BF16), (6, BF16), (1, np.float32), (17, np.float32)):
        got = linear(
            jnp.ones((rows, width), dtype), weight_of(data, scale, container, block), out_dtype="float32",
            kernels=kernels,
        )  # fmt: skip
        for row in np.asarray(got, np.float64):
            assert np.array_equal(row, want, equal_nan=True)
    assert np.isnan(want).sum() == (0 if is_int4 else 1 if layout.endswith("fnuz") else 2)


@BOTH
@pytest.mark.parametrize("layout", ["mxfp4", "fp8_tensor", "int4_group32"])
def test_bfloat16_ties_round_to_even(layout: str, kernels: str, rng: Rng) -> None:
    # Codes and scales of one and x of small integers: sums are exact, and many are bfloat16 ties.
    container, block = LAYOUTS[layout]
    data, scale = random_weight(rng, (64, 96), layout)
    if container == "fp8_tensor":
        data = integers(rng, (64, 96), FP8, 16)
    scale = np.full(scale.shape, 128 if container == "mxfp4" else 1.0, scale.dtype)
    x = integers(rng, (33, 96), BF16, 16)
    got = linear(jnp.asarray(x), weight_of(data, scale, container, block), kernels=kernels)
    exact = x.astype(np.float64) @ oracle_quantized.values(data, scale, container, block).T
    assert (exact.astype(np.float32).view(np.uint32) & 0xFFFF == 0x8000).sum() > 100
    assert same_bits(got, exact.astype(np.float32).astype(BF16))


NATIVE_EACH = pytest.mark.parametrize(
    ("layout", "kernels"),
    [*((layout, "native") for layout in LAYOUTS), ("mxfp4", "reference"), ("fp8_block128", "reference")],
)


@NATIVE_EACH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nan_and_infinity_stay_in_their_row(layout: str, dtype: str, kernels: str, rng: Rng) -> None:
    call = make(7, 9, 160, layout)(rng, dtype, "float32")
    clean = call.arrays["x"]
    x = clean.copy()
    x[2], x[4, 5] = np.nan, np.inf
    (got,) = TestLinearQuantized.call(call.changed(x=x), kernels)
    (want,) = TestLinearQuantized.call(call, kernels)
    assert np.isnan(got[2]).all()
    # inf times zero is NaN, times anything else an infinity.
    assert not np.isfinite(got[4]).any()
    keep = [0, 1, 3, 5, 6]
    assert same_bits(np.asarray(got)[keep], np.asarray(want)[keep])


@NATIVE_EACH
def test_a_broken_weight_row_stays_in_its_column(layout: str, kernels: str, rng: Rng) -> None:
    for m, dtype in ((1, "float32"), (1, "bfloat16"), (4, "bfloat16"), (6, "bfloat16"), (20, "float32")):
        call = make(m, 30, 160, layout)(rng, dtype, "float32")
        data, scale = call.arrays["data"].copy(), call.arrays["scale"].copy()
        if data.dtype in NAN_CODES:
            data.view(np.uint8)[7, 3] = NAN_CODES[data.dtype]
        elif scale.dtype == np.uint8:
            scale[7, 2] = NAN_SCALE
        else:
            scale[7, 2] = np.nan
        (got,) = TestLinearQuantized.call(call.changed(data=data, scale=scale), kernels)
        (clean,) = TestLinearQuantized.call(call, kernels)
        got = np.asarray(got)
        assert np.isnan(got[:, 7]).all()
        assert same_bits(np.delete(got, 7, 1), np.delete(np.asarray(clean), 7, 1))


@pytest.mark.parametrize("types", [TYPES[0], TYPES[1]], ids="-".join)
@EACH
def test_a_row_is_the_same_alone_and_in_any_batch(layout: str, types: tuple[str, str], rng: Rng) -> None:
    # More rows than a task takes (576), more columns than a panel (64 or 96) and than a task (128).
    many = make(600, 140, 160, layout, bias="float32")(rng, *types)
    few = many.changed(x=many.arrays["x"][:INVARIANT_ROWS])
    for call, at in (
        (many, (slice(530, 600), slice(300, 430), slice(0, 577), slice(9, 74))),
        (few, (slice(63, 64), slice(50, 54), slice(17, 22), slice(0, 49))),
    ):
        (full,) = TestLinearQuantized.call(call, "native")
        for rows in at:
            (part,) = TestLinearQuantized.call(call.changed(x=call.arrays["x"][rows]), "native")
            assert same_bits(np.asarray(full)[rows], part), rows


@pytest.mark.parametrize("types", [TYPES[0], TYPES[1]], ids="-".join)
@EACH
def test_long_rows_are_the_same_alone_and_in_any_batch(layout: str, types: tuple[str, str], rng: Rng) -> None:
    """Rows of more columns than the kernels take at a time (1024 or 2048): their sums are added in order."""
    call = make(60, 21, 4192, layout, bias=None)(rng, *types)
    if layout == "mxfp4":
        # Scales that the integer arithmetic of MXFP4 does not serve: their rows take another way.
        scale = call.arrays["scale"].copy()
        scale[3, 70], scale[4, 0], scale[20, 130] = 1, 0, 1
        call = call.changed(scale=scale)
    (full,) = TestLinearQuantized.call(call, "native")
    (want,) = TestLinearQuantized.expected(call)
    check(np.asarray(full), want, f"linear_quantized {layout}, long rows")
    for rows in (1, 2, 3, 5, 7, 8, 9, 13, 49):
        (part,) = TestLinearQuantized.call(call.changed(x=call.arrays["x"][:rows]), "native")
        assert same_bits(np.asarray(full)[:rows], part), rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_native_sums_before_their_scale_do_not_overflow(dtype: str, rng: Rng) -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("what a GPU's kernels multiply by a scale, and when, is their own affair")
    # Eight products of the largest code with activations near the largest number, under small scales.
    data = np.full((5, 160), 0x77, np.uint8)
    scale = np.full((5, 10), 60, np.uint8)
    x = (3e38 * rng.uniform(0.9, 1, (70, 320))).astype(np.float32).astype(np.dtype(dtype))
    call = make(70, 5, 320, "mxfp4")(rng, dtype, "float32").changed(x=x, data=data, scale=scale)
    for rows in (1, 4, 8, 33, 70):
        part = call.changed(x=x[:rows])
        (got,) = TestLinearQuantized.call(part, "native")
        assert np.isfinite(np.asarray(got)).all()
        check(got, TestLinearQuantized.expected(part)[0], f"linear_quantized, {rows} rows of large numbers")


# Blocks beside those of LAYOUTS: whole groups of columns a scale, several groups and parts of one.
OTHER_BLOCKS = [
    ("int4_group", (1, 32), BF16),
    ("int4_group", (1, 64), np.float32),
    ("int4_group", (1, 96), np.float32),
    ("int4_group", (1, 128), BF16),
    ("fp8_block", (16, 16), np.float32),
    ("fp8_block", (128, 64), np.float32),
    ("fp8_block", (128, 2048), np.float32),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("container", "block", "scale_dtype"), OTHER_BLOCKS, ids=str)
def test_native_products_of_other_blocks_are_the_same_in_any_batch(
    container: str, block: tuple[int, int], scale_dtype: Any, dtype: str, rng: Rng
) -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("for the loops of the CPU kernels over more columns than they take at a time")
    k = 2112
    if container == "int4_group":
        data = rng.integers(0, 256, (11, k // 2), dtype=np.uint8)
    else:
        data = normal(rng, (11, k), "float32").astype(FP8)
    shape = oracle_quantized.scale_shape((11, k), container, block)
    scale = rng.uniform(0.1, 1, shape).astype(scale_dtype)
    x = normal(rng, (70, k), dtype)
    call = make(70, 11, 64, "mxfp4")(rng, dtype, "float32")
    call = Call(
        {**call.arrays, "x": x, "data": data, "scale": scale},
        {**call.static, "container": container, "block": block},
    )
    (full,) = TestLinearQuantized.call(call.changed(x=x[:64]), "native")
    for rows in (1, 2, 4, 6, 8, 9, 33, 64, 70):
        part = call.changed(x=x[:rows])
        (got,) = TestLinearQuantized.call(part, "native")
        check(
            got, TestLinearQuantized.expected(part)[0], f"linear_quantized {container} {block}, {rows} rows"
        )
        if rows <= INVARIANT_ROWS:
            assert same_bits(np.asarray(full)[:rows], got), rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["mxfp4", "fp8_channel"])
def test_native_rows_of_tiny_and_huge_numbers_are_the_same_in_any_batch(
    layout: str, dtype: str, rng: Rng
) -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("the order of a GPU's sums is its own affair")
    # Products that underflow, or overflow before they cancel: the same way alone as among others.
    call = make(64, 12, 160, layout)(rng, dtype, "float32")
    for exponent in (-125, -120, 120, 126):
        signs = rng.choice([-1.0, 1.0], call.arrays["x"].shape)
        x = (signs * np.ldexp(1.0, exponent)).astype(np.dtype(dtype))
        (full,) = TestLinearQuantized.call(call.changed(x=x), "native")
        for rows in (1, 4, 8, 9, 33):
            (got,) = TestLinearQuantized.call(call.changed(x=x[:rows]), "native")
            assert np.array_equal(np.asarray(full)[:rows], np.asarray(got), equal_nan=True), (exponent, rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_native_products_without_columns_are_zero(dtype: str) -> None:
    for rows in (1, 9, 33, 70):
        weight = weight_of(np.zeros((5, 0), FP8), np.zeros((1, 0), np.float32), "fp8_block", (128, 128))
        got = linear(jnp.zeros((rows, 0), dtype), weight, out_dtype="float32", kernels="native")
        assert np.array_equal(np.asarray(got), np.zeros((rows, 5), np.float32))


def test_many_rows_meet_blocks_of_odd_width(rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair of columns with two scales cannot be multiplied at once."""
    monkeypatch.setitem(LAYOUTS, "fp8_block24x33", ("fp8_block", (24, 33)))
    call = make(INVARIANT_ROWS + 6, 37, 165, "fp8_block24x33")(rng, "bfloat16", "float32")
    (got,) = TestLinearQuantized.call(call, "native")
    (want,) = TestLinearQuantized.expected(call)
    check(np.asarray(got), want, "linear_quantized, blocks of odd width")


# ---- the rest ----


@EACH
def test_gradients_of_every_container(layout: str, rng: Rng) -> None:
    call = make(3, 5, 160, layout)(rng, "float32", "float32")
    container, block = LAYOUTS[layout]
    weight = weight_of(call.arrays["data"], call.arrays["scale"], container, block)
    out = normal(rng, (3, 5))
    got = jax.grad(lambda x: jnp.sum(linear(x, weight, kernels="native") * out))(
        jnp.asarray(call.arrays["x"])
    )
    exact = oracle_quantized.values(call.arrays["data"], call.arrays["scale"], container, block)
    terms = np.abs(out).astype(np.float64) @ np.abs(exact)
    bound = (oracle.relative(5) + oracle.U) * terms + oracle.FLUSHED
    assert np.all(np.abs(np.asarray(got, np.float64) - out.astype(np.float64) @ exact) <= bound)


@BOTH
@pytest.mark.bug("sgl-project/sglang#29275", "type")
@pytest.mark.bug("sgl-project/sglang#28471", "type")
def test_column_major_scales_are_refused(kernels: str, rng: Rng) -> None:
    data, scale = random_weight(rng, (64, 64), "mxfp4")
    weight = weight_of(data, scale.T, "mxfp4", (1, 32), scale_layout="column_major")
    with pytest.raises(LayoutError, match="linear: argument 'weight': expected row_major scales"):
        linear(jnp.ones((2, 64)), weight, kernels=kernels)


@BOTH
@pytest.mark.parametrize("layout", ["fp8_block128", "fp8_block24x40", "fp8_channel", "fp8_tensor"])
def test_recoded_weights_give_the_same_bits(layout: str, kernels: str, rng: Rng) -> None:
    # Codes of half the value under scales of twice the value: every step of every sum is the same but for a
    # power of two, which no rounding sees.
    calls = {
        (n, k, dtype): make(130, n, k, layout, bias="float32")(rng, dtype, dtype)
        for n, k, dtype in ((37, 160, "bfloat16"), (5, 33, "bfloat16"), (9, 31, "float32"))
    }
    for call in calls.values():
        call.arrays["data"].view(np.uint8)[3, 2] = NAN_CODES[np.dtype(FP8)]

    def products(given: Any) -> Any:
        results = []
        for key, arrays in given.items():
            x, weight = arrays["x"], weight_of(arrays["data"], arrays["scale"], *LAYOUTS[layout])
            for m in (1, 9, 130):
                results += [
                    linear(x[:m], w, arrays["bias"], out_dtype=key[2], kernels=kernels)
                    for w in (weight, to_fnuz(weight))
                ]
        return results

    results = jax.jit(products)({key: OpTests.device(call) for key, call in calls.items()})
    for plain, recoded in zip(results[::2], results[1::2], strict=True):
        assert np.isnan(np.asarray(recoded, np.float32)).sum(0).tolist() == [
            len(plain) if column == 3 else 0 for column in range(plain.shape[1])
        ]
        assert same_bits(np.delete(np.asarray(recoded), 3, 1), np.delete(np.asarray(plain), 3, 1))


@BOTH
def test_every_fnuz_code_beyond_the_rows_of_kernels(kernels: str) -> None:
    # On GPUs XLA's own dot takes such a product, of codes that are converted before it.
    data = np.zeros((256, 64), np.uint8)
    data[np.arange(256), np.arange(256) % 64] = np.arange(256)
    weight = weight_of(data.view(FNUZ), np.full(256, 0.5, np.float32), "fp8_channel", (1, 0))
    got = linear(jnp.ones((MAX_GPU_ROWS + 1, 64), BF16), weight, out_dtype="float32", kernels=kernels)
    want = np.arange(256, dtype=np.uint8).view(FNUZ).astype(np.float32) / 2
    assert np.isnan(want).sum() == 1 and np.nanmax(want) == 120
    for row in np.asarray(got):
        assert np.array_equal(row, want, equal_nan=True)


def test_one_jitted_function_takes_every_container(rng: Rng) -> None:
    traces = []

    @jax.jit
    def layer(x: jax.Array, weight: QuantizedTensor) -> jax.Array:
        traces.append(weight.container)
        return linear(x, weight)

    x = jnp.asarray(normal(rng, (2, 160)))
    for _ in range(2):
        for layout in LAYOUTS:
            layer(x, weight_of(*random_weight(rng, (6, 160), layout), *LAYOUTS[layout]))
    assert len(traces) == len(LAYOUTS)


# ---- the kernel's own checks ----

F32 = np.float32


def ffi(
    x: Any, data: Any, scale: Any, out: Any, bias: Any = None, code: int = 0, block: tuple[int, int] = (1, 32)
) -> jax.Array:
    call = jax.ffi.ffi_call(TARGET if bias is None else TARGET_BIAS, jax.ShapeDtypeStruct(*out))
    named = {"code": np.int64(code), "block_n": np.int64(block[0]), "block_k": np.int64(block[1])}
    arrays = (x, data, scale) if bias is None else (x, data, scale, bias)
    return jax.block_until_ready(call(*map(jnp.asarray, arrays), **named))


X, DATA, SCALE, OUT = (
    np.ones((3, 64), F32),
    np.zeros((5, 32), np.uint8),
    np.zeros((5, 2), np.uint8),
    ((3, 5), F32),
)
FP8_DATA, FNUZ_DATA = np.zeros((5, 64), FP8), np.zeros((5, 64), FNUZ)

FFI_ERRORS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "code": (
        (X, DATA, SCALE, OUT), {"code": 4},
        "argument 'code': expected 0 (e2m1), 1 (e4m3), 2 (int4) or 3 (e4m3fnuz), got 4",
    ),
    "code-negative": (
        (X, DATA, SCALE, OUT), {"code": -1},
        "argument 'code': expected 0 (e2m1), 1 (e4m3), 2 (int4) or 3 (e4m3fnuz), got -1",
    ),
    "data-type": ((X, FP8_DATA, SCALE, OUT), {}, "argument 'data': expected uint8, got float8_e4m3fn"),
    "fp8-data-type": (
        (X, DATA, np.ones((1, 1), F32), OUT), {"code": 1, "block": (0, 0)},
        "argument 'data': expected float8_e4m3fn, got uint8",
    ),
    "fnuz-data-as-ocp": (
        (X, FNUZ_DATA, np.ones((1, 1), F32), OUT), {"code": 1, "block": (0, 0)},
        "argument 'data': expected float8_e4m3fn, got float8_e4m3fnuz",
    ),
    "ocp-data-as-fnuz": (
        (X, FP8_DATA, np.ones((1, 1), F32), OUT), {"code": 3, "block": (0, 0)},
        "argument 'data': expected float8_e4m3fnuz, got float8_e4m3fn",
    ),
    "fnuz-scale-type": (
        (X, FNUZ_DATA, np.zeros((5, 2), np.uint8), OUT), {"code": 3},
        "argument 'scale': expected float32 or bfloat16, got uint8",
    ),
    "scale-type": ((X, DATA, np.ones((5, 2), F32), OUT), {}, "argument 'scale': expected uint8, got float32"),
    "fp8-scale-type": (
        (X, FP8_DATA, np.zeros((5, 2), np.uint8), OUT), {"code": 1},
        "argument 'scale': expected float32 or bfloat16, got uint8",
    ),
    "data-rank": (
        (X, np.zeros(160, np.uint8), SCALE, OUT), {}, "argument 'data': expected at least rank 2, got shape (160)"
    ),
    "data-stack": (
        (X, np.zeros((2, 5, 32), np.uint8), np.zeros((2, 5, 2), np.uint8), OUT), {},
        "argument 'data': expected one matrix, got shape (2, 5, 32)",
    ),
    "block-negative": (
        (X, DATA, SCALE, OUT), {"block": (-1, 32)}, "argument 'block': expected no negative sizes, got -1 x 32"
    ),
    "block-odd": (
        (X, DATA, SCALE, OUT), {"block": (1, 31)}, "argument 'block': expected an even number of columns, got 31"
    ),
    "scale-count": (
        (X, DATA, np.zeros((5, 3), np.uint8), OUT), {}, "argument 'scale': expected 10 elements, got shape (5, 3)"
    ),
    "scale-count-blocks": (
        (X, FP8_DATA, np.ones((1, 1), F32), OUT), {"code": 1, "block": (4, 48)},
        "argument 'scale': expected 4 elements, got shape (1, 1)",
    ),
    "x-type": (
        (X.astype(np.float16), DATA, SCALE, OUT), {}, "argument 'x': expected float32 or bfloat16, got float16"
    ),
    "x-shape": (
        (np.ones((3, 32), F32), DATA, SCALE, OUT), {},
        "argument 'x': expected shape (any, 64), got shape (3, 32)",
    ),
    "x-rank": (
        (np.ones((64,), F32), DATA, SCALE, OUT), {}, "argument 'x': expected shape (any, 64), got shape (64)"
    ),
    "y-shape": (
        (X, DATA, SCALE, ((3, 6), F32)), {}, "argument 'y': expected shape (3, 5), got shape (3, 6)"
    ),
    "y-type": (
        (X, DATA, SCALE, ((3, 5), BF16)), {}, "argument 'y': expected float32 (x is float32), got bfloat16"
    ),
    "bias-shape": (
        (X, DATA, SCALE, OUT), {"bias": np.ones(4, F32)}, "argument 'bias': expected shape (5), got shape (4)"
    ),
    "bias-type": (
        (X, DATA, SCALE, OUT), {"bias": np.ones(5, np.int32)},
        "argument 'bias': expected float32 or bfloat16, got int32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FFI_ERRORS)
def test_the_kernel_refuses_wrong_buffers(name: str) -> None:
    arrays, named, message = FFI_ERRORS[name]
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        ffi(*arrays, **named)
    op = "linear_quantized_bias" if "bias" in named else "linear_quantized"
    assert f"mla_jax.{op}: {message}" in str(raised.value)
