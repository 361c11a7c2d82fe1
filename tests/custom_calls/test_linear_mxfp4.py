"""linear with activations="mxfp4": rows quantised by the AMD runtimes' rule, times MXFP4 weights."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_quantized
import pytest
from op_base import KERNELS, Builder, Call, OpTests, Rng, check, normal, same_bits
from oracle_quantized import GROUP, LAYOUTS, NAN_SCALE, Weight, random_weight

from custom_calls import registry
from custom_calls.errors import LayoutError, ShapeError, UnsupportedTransformError
from custom_calls.linear import linear
from custom_calls.linear_mxfp4 import linear_mxfp4
from custom_calls.quantized_tensor import QuantizedTensor, dequantize

BOTH = pytest.mark.parametrize("kernels", KERNELS)
MXFP4: dict[str, Any] = {"container": "mxfp4", "block": (1, GROUP)}


def run(x: Any, x_scale: Any, data: Any, scale: Any, bias: Any = None, **static: Any) -> jax.Array:
    container = static.pop("container", "mxfp4")
    layout = static.pop("scale_layout", "row_major")
    rows = QuantizedTensor(x, x_scale, "mxfp4", scale_layout=layout)
    if container == "none":
        return linear_mxfp4(rows, data, bias, **static)
    return linear_mxfp4(rows, QuantizedTensor(data, scale, container), bias, **static)


def expected(
    x: Any,
    x_scale: Any,
    data: Any,
    scale: Any,
    bias: Any = None,
    *,
    out_dtype: str,
    scale_layout: str = "row_major",
) -> tuple[oracle.Bounded]:
    del out_dtype
    rows = Weight.of(x, x_scale if scale_layout == "row_major" else x_scale.T, **MXFP4).values
    return oracle_quantized.linear(rows, data, scale, bias, **MXFP4)


def make(m: int, n: int, k: int, bias: str | None = None, scale_layout: str = "row_major") -> Builder:
    def build(rng: Rng, out_dtype: str) -> Call:
        x, x_scale = random_weight(rng, (m, k), "mxfp4")
        data, scale = random_weight(rng, (n, k), "mxfp4")
        arrays = {
            "x": x,
            "x_scale": x_scale if scale_layout == "row_major" else np.ascontiguousarray(x_scale.T),
            "data": data,
            "scale": scale,
            "bias": None if bias is None else normal(rng, (n,), bias),
        }
        return Call(arrays, {"out_dtype": out_dtype, "scale_layout": scale_layout})

    return build


def of_scale(base: Builder, *bytes_of: tuple[str, int, int, int]) -> Builder:
    """(array, row, group, byte): single scales."""

    def build(rng: Rng, out_dtype: str) -> Call:
        call = base(rng, out_dtype)
        for name, row, group, byte in bytes_of:
            array = call.arrays[name]
            assert array is not None
            array[row, group] = byte
        return call

    return build


class TestLinearMxfp4(OpTests):
    function = staticmethod(run)
    oracle = staticmethod(expected)
    primitive = "mla_jax.linear_mxfp4"
    op_name = "linear_mxfp4"
    variants = (("float32",), ("bfloat16",))
    cases = {  # noqa: RUF012
        "M0": make(0, 5, 64),
        "N0": make(3, 0, 64),
        "M1-N1-K32": make(1, 1, 32),
        "M1": make(1, 37, 160),
        "M16": make(16, 33, 256),
        "M17": make(17, 31, 96),
        "M65": make(65, 70, 128),
        "M130": make(130, 9, 1120),
        "K2048": make(5, 17, 2048),
        "bias": make(4, 9, 64, "bfloat16"),
        "column-major": make(4, 9, 96, None, "column_major"),
        "one-nan": of_scale(make(20, 19, 160), ("x_scale", 3, 2, NAN_SCALE), ("scale", 18, 4, NAN_SCALE)),
        "far-apart": of_scale(
            make(4, 5, 64), ("x_scale", 1, 0, 250), ("scale", 2, 1, 3), ("scale", 3, 0, 100)
        ),
    }
    small = staticmethod(make(3, 4, 64))
    errors = {  # noqa: RUF012
        "out_dtype": (
            {"out_dtype": "float16"}, "argument 'out_dtype': expected dtype float32 or bfloat16, got float16",
        ),
        "rank": (
            {"x": jax.ShapeDtypeStruct((2, 3, 32), "uint8"), "x_scale": jax.ShapeDtypeStruct((2, 3, 2), "uint8")},
            "argument 'x': expected shape (M, K), got (2, 3, 64)",
        ),
        "columns": (
            {"x": jax.ShapeDtypeStruct((3, 16), "uint8"), "x_scale": jax.ShapeDtypeStruct((3, 1), "uint8")},
            "argument 'weight': expected shape (N, 32), got (4, 64)",
        ),
        "K": (
            {
                "x": jax.ShapeDtypeStruct((3, 17), "uint8"), "x_scale": jax.ShapeDtypeStruct((3, 2), "uint8"),
                "data": jax.ShapeDtypeStruct((4, 17), "uint8"), "scale": jax.ShapeDtypeStruct((4, 2), "uint8"),
            },
            "argument 'weight': expected K to be a multiple of 32 for MXFP4, got 34",
        ),
        "container": (
            {"container": "none"}, "argument 'weight': expected an MXFP4 tensor, got ArrayImpl",
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
        """Of the bias alone: everything else is codes."""
        call = make(3, 4, 64, "float32")(rng, "float32")
        arrays = self.device(call)
        got = jax.grad(lambda bias: self.bound(call, kernels)({**arrays, "bias": bias}).sum())(arrays["bias"])
        assert np.array_equal(got, np.full(4, 3, np.float32))

    @staticmethod
    def rows(rng: Rng, out_dtype: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = make(40, 9, 96)(rng, out_dtype)
        parts = (slice(0, 20), slice(17, 40))
        return call, [
            (rows, call.changed(**{name: call.arrays[name][rows] for name in ("x", "x_scale")}))
            for rows in parts
        ]


def weight_of(data: Any, scale: Any, container: str, block: tuple[int, int]) -> QuantizedTensor:
    return QuantizedTensor(jnp.asarray(data), jnp.asarray(scale), container, block)


# ---- `linear`, which quantises the rows ----


@BOTH
@pytest.mark.parametrize("bias", [None, "float32"])
@pytest.mark.parametrize("types", [("float32", "float32"), ("bfloat16", "bfloat16")], ids="-".join)
@pytest.mark.parametrize("m", [0, 5])
def test_activations_in_mxfp4(
    m: int, types: tuple[str, str], bias: str | None, kernels: registry.Kernels, rng: Rng
) -> None:
    data, scale = random_weight(rng, (37, 192), "mxfp4")
    # Groups of very different size, zeros among them.
    x = normal(rng, (m, 192), types[0]).reshape(m, 6, 32)
    x = (x * np.array([1, 1e-3, 1e3, 0, 1, 2]).reshape(6, 1).astype(x.dtype)).reshape(m, 192)
    added = None if bias is None else normal(rng, (37,), bias)
    weight = weight_of(data, scale, **MXFP4)
    got = linear(
        jnp.asarray(x),
        weight,
        None if added is None else jnp.asarray(added),
        activations="mxfp4",
        out_dtype=types[1],
        kernels=kernels,
    )
    (want,) = oracle_quantized.linear(x, data, scale, added, **MXFP4, activations="mxfp4")
    check(got, want, "linear")
    if m:
        plain = linear(jnp.asarray(x), weight, out_dtype=types[1], kernels=kernels)
        assert not same_bits(got, plain)


@BOTH
def test_activations_that_are_mxfp4_already_change_nothing(kernels: registry.Kernels, rng: Rng) -> None:
    codes = rng.integers(0, 16, (5, 64)).astype(np.uint8)
    codes[:, ::32] = 7
    scale = rng.integers(120, 126, (5, 2)).astype(np.uint8)
    x = jax.jit(dequantize, static_argnums=1)(
        weight_of(oracle_quantized.pack(codes), scale, **MXFP4), "bfloat16"
    )
    data, weight_scale = random_weight(rng, (9, 64), "mxfp4")
    # Under one scale every sum is exact, in whatever order.
    weight = weight_of(data, np.full_like(weight_scale, 122), **MXFP4)
    got = linear(x, weight, activations="mxfp4", kernels=kernels)
    assert same_bits(got, linear(x, weight, kernels=kernels))


def test_activations_are_quantised_for_mxfp4_weights_only(rng: Rng) -> None:
    x = jnp.ones((2, 160))
    for layout, (container, block) in LAYOUTS.items():
        if container == "mxfp4":
            continue
        weight = weight_of(*random_weight(rng, (4, 160), layout), container, block)
        with pytest.raises(LayoutError) as raised:
            linear(x, weight, activations="mxfp4")
        assert str(raised.value) == f"linear: activations='mxfp4' needs an MXFP4 weight, got {container!r}"
    with pytest.raises(LayoutError) as raised:
        linear(x, jnp.ones((4, 160)), activations="mxfp4")
    assert str(raised.value) == "linear: activations='mxfp4' needs an MXFP4 weight, got float32"
    with pytest.raises(
        ShapeError, match="argument 'activations': expected 'bf16' or 'mxfp4' or 'fp8', got 'int8'"
    ):
        linear(x, jnp.ones((4, 160)), activations="int8")  # type: ignore[arg-type]


def test_quantised_activations_have_no_derivative(rng: Rng) -> None:
    weight = weight_of(*random_weight(rng, (4, 64), "mxfp4"), **MXFP4)
    with pytest.raises(
        UnsupportedTransformError, match="mla_jax.mxfp4_quantize cannot be differentiated: its rounding"
    ):
        jax.grad(lambda x: linear(x, weight, activations="mxfp4").sum())(jnp.ones((2, 64)))


def test_quantised_activations_are_two_named_equations(rng: Rng) -> None:
    weight = weight_of(*random_weight(rng, (4, 64), "mxfp4"), **MXFP4)
    text = str(jax.make_jaxpr(lambda x, w: linear(x, w, activations="mxfp4"))(jnp.ones((2, 64)), weight))
    assert re.findall(r"mla_jax\.\w+", text) == ["mla_jax.mxfp4_quantize", "mla_jax.linear_mxfp4"]
