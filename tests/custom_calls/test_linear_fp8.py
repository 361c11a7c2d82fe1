"""linear_fp8, and linear with activations="fp8": rows in FP8 groups of 128 columns times FP8 weights in blocks."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_quantized
import pytest
from op_base import KERNELS, Builder, Call, OpTests, Rng, check, normal, same_bits
from oracle_quantized import FNUZ, FP8, LAYOUTS, NAN_CODES, random_weight, scale_shape

from custom_calls import registry
from custom_calls.errors import LayoutError, ShapeError, UnsupportedTransformError
from custom_calls.linear import linear
from custom_calls.linear_fp8 import GROUP, TARGET, linear_fp8
from custom_calls.quantized_tensor import QuantizedTensor, dequantize
from mla_jax.kernel_table import lowering_platform

BOTH = pytest.mark.parametrize("kernels", KERNELS)
ROWS = (1, GROUP)
Array = np.ndarray


def run(
    x: Any,
    x_scale: Any,
    data: Any,
    scale: Any,
    bias: Any = None,
    *,
    block: tuple[int, int],
    x_block: tuple[int, int] = ROWS,
    scale_layout: Any = "row_major",
    weight_layout: Any = "row_major",
    container: Any = "fp8_block",
    **static: Any,
) -> jax.Array:
    rows = QuantizedTensor(x, x_scale, "fp8_block", x_block, scale_layout=scale_layout)
    if container == "none":
        return linear_fp8(rows, data, bias, **static)
    weight = QuantizedTensor(data, scale, container, block, scale_layout=weight_layout)
    return linear_fp8(rows, weight, bias, **static)


def expected(
    x: Any,
    x_scale: Any,
    data: Any,
    scale: Any,
    bias: Any = None,
    *,
    block: tuple[int, int],
    out_dtype: str,
    scale_layout: str = "row_major",
) -> tuple[oracle.Bounded]:
    del out_dtype
    rows = oracle_quantized.values(
        x, x_scale if scale_layout == "row_major" else x_scale.T, "fp8_block", ROWS
    )
    return oracle_quantized.linear(rows, data, scale, bias, container="fp8_block", block=block)


def codes(rng: Rng, shape: tuple[int, ...], block: tuple[int, int], dtype: Any) -> tuple[Array, Array]:
    """Every code that is a number, subnormal ones and both zeros among them; scales over a few powers of two."""
    data = rng.integers(0, 256, shape).astype(np.uint8).view(dtype)
    data[np.isnan(data.astype(np.float32))] = 0
    size = scale_shape(shape, "fp8_block", block)
    factor = rng.uniform(0.5, 4.0, size) * rng.choice([1.0, 2.0**-3], size)
    return data, np.asarray(factor / 512, np.float32)


def make(
    m: int,
    n: int,
    k: int,
    b: int = 128,
    types: tuple[Any, Any] = (FP8, FP8),
    bias: str | None = None,
    scale_layout: str = "row_major",
) -> Builder:
    """`types`: of the codes of rows and of the weight."""

    def build(rng: Rng, out_dtype: str) -> Call:
        x, x_scale = codes(rng, (m, k), ROWS, types[0])
        data, scale = codes(rng, (n, k), (b, GROUP), types[1])
        arrays = {
            "x": x,
            "x_scale": x_scale if scale_layout == "row_major" else np.ascontiguousarray(x_scale.T),
            "data": data,
            "scale": scale,
            "bias": None if bias is None else normal(rng, (n,), bias),
        }
        return Call(arrays, {"block": (b, GROUP), "out_dtype": out_dtype, "scale_layout": scale_layout})

    return build


def having(base: Builder, *elements: tuple[str, int, int, float]) -> Builder:
    """(array, row, column, value): single scales and codes; a code of NaN is its type's own."""

    def build(rng: Rng, out_dtype: str) -> Call:
        call = base(rng, out_dtype)
        for name, row, column, value in elements:
            array = call.arrays[name]
            assert array is not None
            array[row, column] = value
            if np.isnan(value) and array.dtype in NAN_CODES:
                array.view(np.uint8)[row, column] = NAN_CODES[array.dtype]
        return call

    return build


NAN = float("nan")
TYPES = {"fn-fnuz": (FP8, FNUZ), "fnuz-fn": (FNUZ, FP8), "fnuz-fnuz": (FNUZ, FNUZ)}


class TestLinearFp8(OpTests):
    function = staticmethod(run)
    oracle = staticmethod(expected)
    primitive = "mla_jax.linear_fp8"
    op_name = "linear_fp8"
    variants = (("float32",), ("bfloat16",))
    cases = {  # noqa: RUF012
        "M0": make(0, 5, 128),
        "N0": make(3, 0, 128),
        "M1-N1-K16": make(1, 1, 16),
        "M1": make(1, 37, 160, 16),
        "M16": make(16, 33, 256, 1),
        "M17": make(17, 31, 160, 48),
        "M65": make(65, 70, 128, 48),
        "M130": make(130, 9, 1120),
        "K2048": make(5, 17, 2048, 16),
        "K100": make(5, 17, 100),
        **{f"few-{name}": make(5, 19, 288, 16, types) for name, types in TYPES.items()},
        **{f"many-{name}": make(20, 35, 288, 16, types) for name, types in TYPES.items()},
        "bias": make(4, 9, 128, 128, (FP8, FNUZ), "bfloat16"),
        "column-major": make(4, 9, 400, 1, (FP8, FP8), None, "column_major"),
        "one-nan-scale": having(make(20, 35, 288, 16), ("x_scale", 3, 2, NAN), ("scale", 1, 1, NAN)),
        # In the first chunk, which ragged groups read again, and in the last.
        "one-nan-code": having(
            make(20, 19, 144), ("x", 3, 143, NAN), ("data", 18, 0, NAN), ("x", 19, 2, NAN)
        ),
        "one-nan-code-fnuz": having(
            make(20, 19, 144, 128, (FNUZ, FNUZ)), ("x", 3, 143, NAN), ("data", 18, 0, NAN), ("x", 19, 2, NAN)
        ),
        "far-apart": having(
            make(4, 5, 288, 1), ("x_scale", 1, 0, 1e30), ("scale", 2, 1, 1e-30), ("scale", 3, 0, 1e-8)
        ),
    }
    small = staticmethod(make(3, 4, 144, 1))
    errors = {  # noqa: RUF012
        "out_dtype": (
            {"out_dtype": "float16"}, "argument 'out_dtype': expected dtype float32 or bfloat16, got float16",
        ),
        "rank": (
            {
                "x": jax.ShapeDtypeStruct((2, 3, 144), "float8_e4m3fn"),
                "x_scale": jax.ShapeDtypeStruct((2, 3, 2), "float32"),
            },
            "argument 'x': expected shape (M, K), got (2, 3, 144)",
        ),
        "columns": (
            {
                "x": jax.ShapeDtypeStruct((3, 32), "float8_e4m3fn"),
                "x_scale": jax.ShapeDtypeStruct((3, 1), "float32"),
            },
            "argument 'weight': expected shape (N, 32), got (4, 144)",
        ),
        "x-block": (
            {"x_block": (1, 64), "x_scale": jax.ShapeDtypeStruct((3, 3), "float32")},
            "argument 'x': expected blocks of (1, 128), got (1, 64)",
        ),
        "x-block-rows": (
            {"x_block": (2, 128), "x_scale": jax.ShapeDtypeStruct((2, 2), "float32")},
            "argument 'x': expected blocks of (1, 128), got (2, 128)",
        ),
        "weight-block": (
            {"block": (1, 96)}, "argument 'weight': expected blocks of (b, 128), got (1, 96)",
        ),
        "weight-scales": (
            {"weight_layout": "column_major", "scale": jax.ShapeDtypeStruct((2, 4), "float32")},
            "argument 'weight': expected row_major scales, got column_major: only activations may have column_major "
            "ones",
        ),
        "array": (
            {"container": "none"}, "argument 'weight': expected an fp8_block tensor, got ArrayImpl",
        ),
        "container": (
            {"container": "fp8_channel", "block": (1, 0), "scale": jax.ShapeDtypeStruct((4,), "float32")},
            "argument 'weight': expected an fp8_block tensor, got fp8_channel",
        ),
        "bias": (
            {"bias": jax.ShapeDtypeStruct((3,), "float32")}, "argument 'bias': expected shape (4), got (3,)",
        ),
        "bias-dtype": (
            {"bias": jax.ShapeDtypeStruct((4,), "int32")},
            "argument 'bias': expected dtype float32 or bfloat16, got int32",
        ),
    }  # fmt: skip
    vmapped = (("x", "x_scale"), ("x", "x_scale", "data", "scale"))

    def test_gradient(self, kernels: str, rng: Rng) -> None:
        """Of the bias alone: scales are the codes' own."""
        call = make(3, 4, 144, bias="float32")(rng, "float32")
        arrays = self.device(call)
        got = jax.grad(lambda bias: self.bound(call, kernels)({**arrays, "bias": bias}).sum())(arrays["bias"])
        assert np.array_equal(got, np.full(4, 3, np.float32))
        with pytest.raises(
            UnsupportedTransformError, match="mla_jax.linear_fp8 cannot be differentiated: its operands"
        ):
            jax.grad(lambda scale: self.bound(call, kernels)({**arrays, "scale": scale}).sum())(
                arrays["scale"]
            )

    @staticmethod
    def rows(rng: Rng, out_dtype: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = make(40, 9, 160, 1)(rng, out_dtype)
        parts = (slice(0, 20), slice(17, 40))
        return call, [
            (rows, call.changed(**{name: call.arrays[name][rows] for name in ("x", "x_scale")}))
            for rows in parts
        ]


@pytest.mark.parametrize("types", [(FP8, FP8), *TYPES.values()], ids=["fn-fn", *TYPES])
def test_native_products_of_single_codes_are_exact(types: tuple[Any, Any]) -> None:
    """Every code of the rows by every code of the weight, each product alone in its sum."""
    x, data = (np.zeros((256, 16), np.uint8) for _ in types)
    x[:, 3] = data[:, 3] = np.arange(256)
    x, data = (array.view(dtype) for array, dtype in zip((x, data), types, strict=True))
    scale = np.full((256, 1), 0.5, np.float32)
    got = run(
        jnp.asarray(x), jnp.asarray(scale), jnp.asarray(data), jnp.asarray(scale),
        block=(1, GROUP), out_dtype="float32", kernels="native",
    )  # fmt: skip
    left, right = (array[:, 3].astype(np.float32) for array in (x, data))
    with np.errstate(invalid="ignore"):
        want = np.outer(left, right) / 4
    assert np.array_equal(got, want, equal_nan=True)


@pytest.mark.parametrize(("width", "own"), [(144, True), (100, False)])
def test_rows_of_odd_width_are_decoded_on_gpus(width: int, own: bool, rng: Rng) -> None:
    call = make(3, 4, width)(rng, "bfloat16")
    library = registry.Library(
        "rocm", "declared", frozenset((TARGET, "mla_jax.linear_quantized.v2")), "declared", {}
    )
    with registry.declared(library):
        traced = jax.jit(TestLinearFp8.bound(call, "native")).trace(TestLinearFp8.device(call))
        text = traced.lower(lowering_platforms=("rocm",)).as_text()
    assert (f"@{TARGET}" in text) == own
    assert ("@mla_jax.linear_quantized.v2" in text) == (not own)


def weight_of(data: Any, scale: Any, container: str, block: tuple[int, int]) -> QuantizedTensor:
    return QuantizedTensor(jnp.asarray(data), jnp.asarray(scale), container, block)


# ---- `linear`, which quantises the rows ----


@BOTH
@pytest.mark.parametrize("bias", [None, "float32"])
@pytest.mark.parametrize("types", [("float32", "float32"), ("bfloat16", "bfloat16")], ids="-".join)
@pytest.mark.parametrize("m", [0, 5])
def test_activations_in_fp8(
    m: int, types: tuple[str, str], bias: str | None, kernels: registry.Kernels, rng: Rng
) -> None:
    data, scale = codes(rng, (37, 400), (24, GROUP), FP8)
    # Groups of very different size, zeros among them.
    x = normal(rng, (m, 400), types[0])
    x = x * np.repeat([1, 1e-3, 0, 1e3], 128)[:400].astype(x.dtype)
    added = None if bias is None else normal(rng, (37,), bias)
    weight = weight_of(data, scale, "fp8_block", (24, GROUP))
    got = linear(
        jnp.asarray(x),
        weight,
        None if added is None else jnp.asarray(added),
        activations="fp8",
        out_dtype=types[1],
        kernels=kernels,
    )
    quantised, x_scale = oracle_quantized.quantize_fp8(x, GROUP)
    rows = oracle_quantized.values(quantised.view(FP8), x_scale, "fp8_block", ROWS)
    (want,) = oracle_quantized.linear(rows, data, scale, added, container="fp8_block", block=(24, GROUP))
    check(got, want, "linear")
    if m:
        plain = linear(jnp.asarray(x), weight, out_dtype=types[1], kernels=kernels)
        assert not same_bits(got, plain)


@BOTH
def test_activations_that_are_fp8_already_change_nothing(kernels: registry.Kernels, rng: Rng) -> None:
    # The largest code of each group is 448, its scale a power of two.
    data = rng.integers(0, 0x7F, (5, 256)).astype(np.uint8)
    data[:, ::GROUP] = 0x7E
    scale = np.ldexp(1.0, rng.integers(-2, 3, (5, 2))).astype(np.float32)
    x = jax.jit(dequantize, static_argnums=1)(weight_of(data.view(FP8), scale, "fp8_block", ROWS), "bfloat16")
    # Few enough bits that every sum is exact, in whatever order.
    small = rng.choice([0x00, 0x38, 0xB8], (9, 256)).astype(np.uint8).view(FP8)
    weight = weight_of(small, np.ones((9, 2), np.float32), "fp8_block", ROWS)
    got = linear(x, weight, activations="fp8", kernels=kernels)
    assert same_bits(got, linear(x, weight, kernels=kernels))


def test_activations_are_quantised_for_fp8_blocks_of_128_columns_only(rng: Rng) -> None:
    x = jnp.ones((2, 160))
    needed = "linear: activations='fp8' needs an FP8 weight in blocks of 128 columns, got"
    for layout, (container, block) in LAYOUTS.items():
        if container == "fp8_block" and block[1] == GROUP:
            continue
        weight = weight_of(*random_weight(rng, (4, 160), layout), container, block)
        with pytest.raises(LayoutError) as raised:
            linear(x, weight, activations="fp8")
        assert str(raised.value) == f"{needed} {container!r} in blocks of {block}"
    with pytest.raises(LayoutError) as raised:
        linear(x, jnp.ones((4, 160)), activations="fp8")
    assert str(raised.value) == f"{needed} float32"
    with pytest.raises(ShapeError, match="expected 'bf16' or 'mxfp4' or 'fp8', got 'e5m2'"):
        linear(x, jnp.ones((4, 160)), activations="e5m2")  # type: ignore[arg-type]


def test_quantised_activations_have_no_derivative(rng: Rng) -> None:
    weight = weight_of(*codes(rng, (4, 128), (4, GROUP), FP8), "fp8_block", (4, GROUP))
    with pytest.raises(
        UnsupportedTransformError, match="mla_jax.flatten_quantize cannot be differentiated: its rounding"
    ):
        jax.grad(lambda x: linear(x, weight, activations="fp8").sum())(jnp.ones((2, 128)))


def test_quantised_activations_are_two_named_equations(rng: Rng) -> None:
    weight = weight_of(*codes(rng, (4, 128), (4, GROUP), FP8), "fp8_block", (4, GROUP))
    text = str(jax.make_jaxpr(lambda x, w: linear(x, w, activations="fp8"))(jnp.ones((2, 128)), weight))
    assert re.findall(r"mla_jax\.\w+", text) == ["mla_jax.flatten_quantize", "mla_jax.linear_fp8"]


# ---- the kernel, of which GPUs' libraries alone have one ----

CODES, SCALE = np.zeros((3, 160), FP8), np.ones((3, 2), np.float32)
FFI_ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "x-code": ({"x_code": 0}, "argument 'x': expected uint8, got float8_e4m3fn"),
    "code": (
        {"data": np.zeros((3, 80), np.uint8), "code": 2}, "argument 'code': expected 1 (e4m3) or 3 (e4m3fnuz), got 2",
    ),
    "scale": ({"scale": SCALE.astype(jnp.bfloat16)}, "argument 'scale': expected float32, got bfloat16"),
    "x-rows-of-a-block": ({"x_scale": SCALE[:2], "x_block_n": 2}, "argument 'block': expected 1 row of 'x', got 2"),
    "columns-of-a-block": (
        {"scale": np.ones((3, 3), np.float32), "block_k": 64}, "argument 'block': expected 128 columns, got 64",
    ),
    "aligned": (
        {"x": CODES[:, :152], "data": CODES[:, :152]}, "argument 'x': expected a multiple of 16 columns, got 152",
    ),
    "columns": ({"x": CODES[:, :144]}, "argument 'x': expected 160 columns (those of 'data'), got 144"),
    "stack": (
        {"x": np.stack([CODES] * 2), "x_scale": np.stack([SCALE] * 2)},
        "argument 'x': expected one matrix, got shape (2, 3, 160)",
    ),
    "y-type": ({"out": "float16"}, "argument 'y': expected float32 or bfloat16, got float16"),
    "y": ({"rows": 4}, "argument 'y': expected shape (3, 3), got shape (4, 3)"),
}  # fmt: skip


@pytest.mark.skipif(
    TARGET not in registry.library(lowering_platform()).targets, reason=f"no kernel {TARGET} on this platform"
)
@pytest.mark.parametrize("name", FFI_ERRORS)
def test_the_native_kernel_refuses_wrong_buffers(name: str) -> None:
    changed, message = FFI_ERRORS[name]
    arrays = {"x": CODES, "x_scale": SCALE, "data": CODES, "scale": SCALE}
    attributes = {"x_code": 1, "x_block_n": 1, "x_block_k": GROUP, "code": 1, "block_n": 1, "block_k": GROUP}
    result = jax.ShapeDtypeStruct((changed.get("rows", 3), 3), changed.get("out", "float32"))
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        jax.block_until_ready(
            jax.ffi.ffi_call(TARGET, result)(
                *(jnp.asarray(changed.get(each, array)) for each, array in arrays.items()),
                **{each: np.int64(changed.get(each, value)) for each, value in attributes.items()},
            )
        )
    assert f"mla_jax.linear_fp8: {message}" in str(raised.value)
