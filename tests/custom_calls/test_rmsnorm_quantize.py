"""rmsnorm_quantize: codes and scales within the rounding of the norm, bytes exactly those of the float32 row."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle_quantized
import pytest
from op_base import KERNELS, Builder, Call, OpTests, Rng, normal, poison, same_bits

from custom_calls.flatten_quantize import flatten_quantize
from custom_calls.mxfp4_quantize import mxfp4_quantize
from custom_calls.quantized_tensor import QuantizedTensor
from custom_calls.rmsnorm import rmsnorm, rmsnorm_residual
from custom_calls.rmsnorm_quantize import TARGET, RmsNormQuantized, rmsnorm_quantize

BF16 = ml_dtypes.bfloat16
EPS = 1e-6
MXFP4 = {"format": "mxfp4", "group_size": 32, "scale_layout": "row_major"}
FP8 = {"format": "fp8", "group_size": 128, "scale_layout": "row_major"}
ALL = {"residual": True, "return_unquantized": True}

BOTH = pytest.mark.parametrize("kernels", KERNELS)


def leaves(*arrays: Any, **options: Any) -> list[jax.Array]:
    """Data, scale and, if any, the unquantised rows and the sum."""
    return jax.tree.leaves(rmsnorm_quantize(*arrays, **options))


def make(
    tokens: int,
    width: int,
    offset: int = 0,
    behind: int = 0,
    scale: float = 1.0,
    residual: bool = False,
    **options: Any,
) -> Builder:
    """The columns in front of and behind the range are NaN."""

    def build(rng: Rng, dtype: str, weight_dtype: str) -> Call:
        x = poison((tokens, offset + width + behind), dtype)
        x[:, offset : offset + width] = normal(rng, (tokens, width), dtype, scale)
        arrays = {"x": x, "weight": normal(rng, (width,), weight_dtype)}
        if residual:
            arrays["residual"] = normal(rng, (tokens, width), dtype, scale)
        static = {"eps": EPS, "offset": offset, **MXFP4, **options}
        # Where a value lies at a boundary either code is right: no element's bound is a float32 error.
        return Call(arrays, static, extreme=static["format"] == "mxfp4")

    return build


def zeros(rng: Rng, dtype: str, weight_dtype: str) -> Call:
    call = make(3, 40, **FP8, **ALL)(rng, dtype, weight_dtype)
    return call.changed(**{name: np.zeros_like(call.arrays[name]) for name in ("x", "residual")})


class TestRmsNormQuantize(OpTests):
    function = staticmethod(leaves)
    oracle = staticmethod(oracle_quantized.rmsnorm_quantize)
    primitive = "mla_jax.rmsnorm_quantize"
    op_name = "rmsnorm_quantize"
    variants = (("float32", "bfloat16"), ("bfloat16", "float32"))
    cases = {  # noqa: RUF012
        "mxfp4-T0": make(0, 64, **ALL),
        "mxfp4-middle": make(7, 96, offset=5, behind=3, rounding="even"),
        "mxfp4-ragged-columns": make(17, 50, offset=24, rounding="rceil", scale_layout="column_major", **ALL),
        "mxfp4-floor": make(3, 64, rounding="floor", residual=True),
        "mxfp4-ceil-gemma": make(3, 64, rounding="ceil", weight_offset=1.0, return_unquantized=True),
        "mxfp4-N2": make(3, 2, **ALL),
        "fp8-T0": make(0, 64, **FP8 | {"scale_layout": "column_major"}, **ALL),
        "fp8-T1-N1": make(1, 1, **FP8),
        "fp8-N2048": make(1, 2048, **FP8, **ALL),
        "fp8-many-first": make(65, 33, behind=9, **FP8, **ALL),
        "fp8-ragged-columns": make(
            17, 300, offset=7, **FP8 | {"scale_layout": "column_major"}, residual=True
        ),
        "fp8-g7-gemma": make(5, 33, **FP8 | {"group_size": 7}, weight_offset=1.0, return_unquantized=True),
        "fp8-offset": make(5, 33, **FP8, weight_offset=-0.75, **ALL),
        "fp8-large": make(3, 40, scale=1e17, **FP8, **ALL),
        "fp8-below-eps": make(3, 40, scale=1e-6, **FP8, **ALL),
        "fp8-below-the-floor": make(3, 40, scale=1e-14, **FP8, **ALL),
        # Ways of GPU kernels: threads a row, rows in registers or read twice, groups of lanes or any others.
        "mxfp4-N520-of-536": make(9, 520, offset=8, behind=8, **ALL),
        "mxfp4-N1032-columns": make(5, 1032, scale_layout="column_major", **ALL),
        "mxfp4-N7168": make(2, 7168, rounding="floor"),
        "mxfp4-N8216": make(2, 8216, offset=8, rounding="ceil", **ALL),
        "fp8-N520-of-536": make(9, 520, offset=8, behind=8, **FP8, **ALL),
        "fp8-N1032-columns": make(5, 1032, **FP8 | {"scale_layout": "column_major"}, **ALL),
        "fp8-g64-N1032": make(5, 1032, **FP8 | {"group_size": 64}, **ALL),
        "fp8-N2056": make(2, 2056, **FP8, **ALL),
        "fp8-N2051": make(2, 2051, **FP8, **ALL),
        "fp8-N8200": make(2, 8200, offset=8, **FP8, **ALL),
        "fp8-N16392": make(1, 16392, **FP8),
        "fp8-zeros": zeros,
    }
    errors = {  # noqa: RUF012
        "x-rank": (
            {"x": jax.ShapeDtypeStruct((4,), "float32")},
            "argument 'x': expected shape (T, W), got (4,)",
        ),
        "x-dtype": (
            {"x": jax.ShapeDtypeStruct((4, 50), "int32")},
            "argument 'x': expected dtype float32 or bfloat16, got int32",
        ),
        "weight-rank": (
            {"weight": jax.ShapeDtypeStruct((38, 1), "float32")},
            "argument 'weight': expected shape (N), got (38, 1)",
        ),
        "weight-dtype": (
            {"weight": jax.ShapeDtypeStruct((38,), "float16")},
            "argument 'weight': expected dtype float32 or bfloat16, got float16",
        ),
        "weight-odd": (
            {"weight": jax.ShapeDtypeStruct((37,), "float32")},
            "argument 'weight': expected an even number of values with format 'mxfp4', got 37",
        ),
        "offset-negative": (
            {"offset": -1},
            "argument 'offset': expected a range inside [0, 43) of x's columns, got [-1, 37)",
        ),
        "offset-too-far": (
            {"offset": 6},
            "argument 'offset': expected a range inside [0, 43) of x's columns, got [6, 44)",
        ),
        "residual-shape": (
            {"residual": jax.ShapeDtypeStruct((4, 36), "float32")},
            "argument 'residual': expected shape (4, 38), got (4, 36)",
        ),
        "residual-dtype": (
            {"residual": jax.ShapeDtypeStruct((4, 38), "bfloat16")},
            "argument 'residual': expected dtype float32, got bfloat16",
        ),
        "weight-offset": (
            {"weight_offset": float("nan")},
            "argument 'weight_offset': expected a finite float32, got nan",
        ),
        "weight-offset-large": (
            {"weight_offset": 1e39},
            "argument 'weight_offset': expected a finite float32, got 1e+39",
        ),
        "format": ({"format": "int8"}, "argument 'format': expected 'mxfp4' or 'fp8', got 'int8'"),
        "group": ({"group_size": 64}, "argument 'group_size': expected 32 with format 'mxfp4', got 64"),
        "group-fp8": (
            {"format": "fp8", "group_size": -1},
            "argument 'group_size': expected a positive integer, got -1",
        ),
        "layout": (
            {"scale_layout": "rows"},
            "argument 'scale_layout': expected 'row_major' or 'column_major', got 'rows'",
        ),
        "rounding": (
            {"format": "fp8", "rounding": "ceil"},
            "argument 'rounding': expected None with format 'fp8', whose scale is no power of two, got 'ceil'",
        ),
    }
    vmapped = (("x",), ("residual", "weight"))
    differentiable = ()

    @staticmethod
    def small(rng: Rng, dtype: str, weight_dtype: str) -> Call:
        call = make(4, 38, offset=2, behind=3, **ALL)(rng, dtype, weight_dtype)
        # Finite everywhere: a permutation of the poison would be used.
        return call.changed(x=normal(rng, (4, 43), dtype))

    @staticmethod
    def rows(rng: Rng, dtype: str, weight_dtype: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = make(17, 300, offset=3, **FP8, **ALL)(rng, dtype, weight_dtype)
        at = [slice(0, 1), slice(9, 10), slice(16, 17), slice(3, 14)]
        rowed = ("x", "residual")
        return call, [(rows, call.changed(**{n: call.arrays[n][rows] for n in rowed})) for rows in at]


OPTIONS = [
    {**quantizer, "scale_layout": layout, "residual": residual, "return_unquantized": unquantized}
    for quantizer, layout, residual, unquantized in itertools.product(
        (MXFP4 | {"rounding": "rceil"}, FP8 | {"group_size": 20}),
        ("row_major", "column_major"),
        (False, True),
        (False, True),
    )
]


@BOTH
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_every_option_works_with_every_other(options: dict[str, Any], kernels: str, rng: Rng) -> None:
    call = make(3, 50, offset=1, behind=1, weight_offset=1.0, **options)(rng, "bfloat16", "bfloat16")
    got = TestRmsNormQuantize.check_call(call, kernels)
    assert len(got) == 2 + options["residual"] + options["return_unquantized"]


def quantized_rows(rows: Any, options: dict[str, Any], kernels: str) -> QuantizedTensor:
    if options["format"] == "mxfp4" and rows.shape[1] % 32:
        return mxfp4_quantize(rows, rounding=options.get("rounding", "even"), kernels=kernels)
    return flatten_quantize(rows[:, None], **options, kernels=kernels)


@pytest.mark.parametrize(
    "options",
    [MXFP4, MXFP4 | {"rounding": "ceil", "scale_layout": "column_major"}, FP8, FP8 | {"group_size": 20}],
    ids=["mxfp4", "mxfp4-ceil", "fp8", "fp8-20"],
)
@pytest.mark.parametrize(("width", "offset"), [(50, 4), (544, 4), (544, 8), (2080, 16)])
def test_native_bytes_are_those_of_its_own_float32_row(
    width: int, offset: int, options: dict[str, Any], rng: Rng
) -> None:
    if options["scale_layout"] == "column_major" and width % 32:
        width += 14
    x, residual = normal(rng, (37, width + 2 * offset)), normal(rng, (37, width))
    x[5] *= 1e-12
    x[11, offset + 8] = np.inf
    x[12, offset + 9] = np.nan
    residual[5] = 0
    arrays = [jnp.asarray(a) for a in (x, normal(rng, (width,)), residual)]
    got = rmsnorm_quantize(
        *arrays,
        eps=1e-30,
        offset=offset,
        **options,
        weight_offset=0.5,
        return_unquantized=True,
        kernels="native",
    )
    assert got.unquantized.dtype == jnp.float32
    assert np.isnan(got.unquantized[12]).all() and np.isnan(got.unquantized[11, 8])
    # On a GPU XLA divides to within one unit in the last place: the reference is no arbiter of single codes there.
    for kernels in KERNELS if jax.default_backend() == "cpu" else ("native",):
        want = quantized_rows(got.unquantized, options, kernels)
        assert same_bits(got.quantized.data, want.data) and same_bits(got.quantized.scale, want.scale)
        assert got.quantized.rounding == want.rounding


def test_native_subnormal_rows_are_not_flushed(rng: Rng) -> None:
    # With eps 1 so small a row is normed to itself. Its subnormal values have codes where the scale is 2^-127.
    x = np.ldexp(rng.uniform(-2, 2, (9, 64)), rng.integers(-132, -124, (9, 64))).astype(np.float32)
    x[:, :32:4] *= np.float32(2.0**-12)
    got = rmsnorm_quantize(
        jnp.asarray(x), jnp.ones(64), eps=1.0, **MXFP4, return_unquantized=True, kernels="native"
    )
    assert same_bits(got.unquantized, x)
    data, scale = oracle_quantized.quantize(x, "even")
    assert same_bits(got.quantized.data, data) and same_bits(got.quantized.scale, scale)
    subnormal = (np.abs(x) < 2.0**-126).reshape(9, 64)
    assert (oracle_quantized.unpack(data)[subnormal] % 8 > 0).any()


@pytest.mark.parametrize("options", [MXFP4, FP8], ids=["mxfp4", "fp8"])
@pytest.mark.parametrize(("width", "offset"), [(64, 3), (64, 8), (1032, 8), (2049, 0)])
def test_native_norm_is_that_of_rmsnorm(width: int, offset: int, options: dict[str, Any], rng: Rng) -> None:
    if options["format"] == "mxfp4":
        width += width % 2
    for dtype in (np.float32, BF16):
        shapes = (9, width + 2 * offset), (width,), (9, width)
        x, weight, residual = (jnp.asarray(normal(rng, shape, dtype)) for shape in shapes)
        more = {"eps": EPS, "offset": offset, "kernels": "native"}
        got = rmsnorm_quantize(x, weight, **more, **options, return_unquantized=True)
        assert same_bits(got.unquantized, rmsnorm(x, weight, **more))
        got = rmsnorm_quantize(x, weight, residual, **more, **options, return_unquantized=True)
        norm, total = rmsnorm_residual(x, residual, weight, **more)
        assert same_bits(got.unquantized, norm) and same_bits(got.residual_sum, total)


@BOTH
def test_the_row_is_not_rounded_before_it_is_quantised(kernels: str, rng: Rng) -> None:
    x, weight = (jnp.asarray(normal(rng, shape, BF16)) for shape in ((64, 256), (256,)))
    got = rmsnorm_quantize(x, weight, eps=EPS, **FP8, return_unquantized=True, kernels=kernels)
    rounded = quantized_rows(got.unquantized, FP8, kernels)
    assert not same_bits(got.quantized.data, rounded.data)
    assert not same_bits(got.quantized.scale, rounded.scale)


@BOTH
def test_the_norm_sees_the_unrounded_sum(kernels: str) -> None:
    # In bfloat16 256 + 1 is 256: a norm of the rounded sum would make both elements equal.
    x, residual = jnp.asarray([[256, 256]], BF16), jnp.asarray([[1, 0]], BF16)
    got = rmsnorm_quantize(
        x,
        jnp.full(2, 100.25, jnp.float32),
        residual,
        eps=EPS,
        **FP8,
        return_unquantized=True,
        kernels=kernels,
    )
    assert np.asarray(got.residual_sum, np.float32).tolist() == [[256, 256]]
    assert np.asarray(got.unquantized, np.float32).tolist() == [[100.5, 100]]


@BOTH
def test_the_result_names_its_parts(kernels: str) -> None:
    x, weight = jnp.ones((3, 64), BF16), jnp.ones(64, BF16)
    for layout in ("row_major", "column_major"):
        options = {"eps": EPS, "scale_layout": layout, "kernels": kernels}
        got = rmsnorm_quantize(x, weight, **options, format="mxfp4", group_size=32)
        assert isinstance(got, RmsNormQuantized) and isinstance(got.quantized, QuantizedTensor)
        assert got.unquantized is None and got.residual_sum is None
        tensor = got.quantized
        assert (tensor.container, tensor.rounding, tensor.shape) == ("mxfp4", "even", (3, 64))
        assert tensor.scale_layout == layout
        got = rmsnorm_quantize(x, weight, x, **options, format="fp8", group_size=16)
        tensor = got.quantized
        assert (tensor.container, tensor.block, tensor.rounding) == ("fp8_block", (1, 16), None)
        assert tensor.scale.shape == ((3, 4) if layout == "row_major" else (4, 3))
        assert got.unquantized is None and np.array_equal(got.residual_sum, np.full((3, 64), 2, BF16))
        got = rmsnorm_quantize(x, weight, **options, format="fp8", group_size=16, return_unquantized=True)
        assert got.residual_sum is None and np.array_equal(got.unquantized, np.ones((3, 64), BF16))


@BOTH
def test_rows_that_are_no_numbers(kernels: str) -> None:
    x = np.ones((3, 64), np.float32)
    x[:, 2] = -1
    x[0, 5] = np.nan
    x[1, 40] = -np.inf
    options = {"eps": EPS, "kernels": kernels}
    data, scale = leaves(jnp.asarray(x), jnp.ones(64), **options, **FP8 | {"group_size": 32})
    # A NaN reaches the whole row through the mean; an infinity leaves zeros, and NaN at itself.
    floor = np.float32(1e-10) / np.float32(448)
    codes = np.asarray(data).view(np.uint8)
    assert np.array_equal(codes[0], np.full(64, 0x7F))
    infinite = np.zeros(64, np.uint8)
    infinite[[2, 40]] = 0x80, 0x7F
    assert np.array_equal(codes[1], infinite)
    assert np.array_equal(scale[:2], np.full((2, 2), floor))
    assert np.array_equal(codes[2], np.where(x[2] < 0, 0xFE, 0x7E))
    data, scale = leaves(jnp.asarray(x), jnp.ones(64), **options, **MXFP4)
    assert np.asarray(scale[:2]).tolist() == [[255, 255], [0, 255]]
    assert not np.asarray(data)[0].any()
    assert np.flatnonzero(data[1]).tolist() == [1] and int(data[1, 1]) == 0x08


@BOTH
def test_negative_zero_keeps_its_sign(kernels: str) -> None:
    x = jnp.asarray([[-0.0, 0.0, 1.0, -0.0, 2.0, 0.0]], jnp.float32)
    for options, sign in ((MXFP4, None), (FP8, 0x80)):
        data = np.asarray(leaves(x, jnp.ones(6), eps=EPS, **options, kernels=kernels)[0]).view(np.uint8)[0]
        if sign is None:
            data = np.stack([data & 15, data >> 4], axis=-1).reshape(-1) << 4
        assert (data >> 7).tolist() == [1, 0, 0, 1, 0, 0]


def ffi_case(message: str, changes: dict[str, Any] | None = None, **attributes: Any) -> tuple[Any, ...]:
    return message, changes or {}, attributes


FFI_ERRORS = {
    "x-type": ffi_case("argument 'x': expected float32 or bfloat16, got float16", {"x": ((4, 40), np.float16)}),
    "x-rank": ffi_case("argument 'x': expected rank 2, got shape (4, 2, 40)", {"x": ((4, 2, 40), np.float32)}),
    "weight": ffi_case("argument 'weight': expected rank 1, got shape (32, 1)", {"weight": ((32, 1), np.float32)}),
    "offset": ffi_case("argument 'offset': expected 0 <= offset and offset + 32 <= 40 (the width of 'x'), got 9",
                       offset=np.int64(9)),
    "offset-negative": ffi_case(
        "argument 'offset': expected 0 <= offset and offset + 32 <= 40 (the width of 'x'), got -1",
        offset=np.int64(-1)),
    "format": ffi_case("argument 'format': expected 0 or 1, got -1", format=np.int64(-1)),
    "scale": ffi_case("argument 'scale': expected shape (4, 1), got shape (1, 4)", {"scale": ((1, 4), np.uint8)}),
    "residual": ffi_case("argument 'residual': expected shape (4, 32), got shape (4, 40)",
                         {"residual": ((4, 40), np.float32)}),
    "residual-type": ffi_case("argument 'residual': expected float32 (the type of 'x'), got bfloat16",
                              {"residual": ((4, 32), BF16)}),
    "sum": ffi_case("argument 'sum': expected shape (4, 32), got shape (3, 32)", {"sum": ((3, 32), np.float32)}),
    "unquantized": ffi_case("argument 'unquantized': expected float32 (the type of 'x'), got bfloat16",
                            {"unquantized": ((4, 32), BF16)}),
    "results": ffi_case("argument 'unquantized': expected 1 results behind 'scale', got 2", unquantized=np.int64(0)),
    "arguments": ffi_case("argument 'residual': expected at most one argument behind 'weight', got 2",
                          {"more": ((4, 32), np.float32)}),
}  # fmt: skip


@pytest.mark.parametrize("name", FFI_ERRORS)
def test_the_kernel_refuses_wrong_buffers(name: str) -> None:
    message, changes, attributes = FFI_ERRORS[name]
    row = ((4, 32), np.float32)
    operands = {"x": ((4, 40), np.float32), "weight": ((32,), np.float32), "residual": row}
    results = {"data": ((4, 16), np.uint8), "scale": ((4, 1), np.uint8), "unquantized": row, "sum": row}
    if "more" in changes:
        operands["more"] = changes["more"]
    operands |= {name: changes[name] for name in operands if name in changes}
    results |= {name: changes[name] for name in results if name in changes}
    values = {
        "eps": np.float32(EPS), "weight_offset": np.float32(0), "offset": np.int64(0), "unquantized": np.int64(1),
        "format": np.int64(0), "group_size": np.int64(32), "rounding": np.int64(1), "column_major": np.int64(0),
    } | attributes  # fmt: skip
    outs = [jax.ShapeDtypeStruct(*result) for result in results.values()]
    arrays = [jnp.zeros(*operand) for operand in operands.values()]
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        jax.ffi.ffi_call(TARGET, outs)(*arrays, **values)
    assert f"mla_jax.rmsnorm_quantize: {message}" in str(raised.value)
