"""linear: every pair of dtypes, odd sizes, exact ties, independence of the batch."""

from typing import Any

import jax
import ml_dtypes
import numpy as np
import oracle
import pytest
from op_base import KERNELS, Builder, Call, OpTests, Rng, integers, normal, same_bits

from custom_calls.linear import INVARIANT_ROWS, linear

BF16 = ml_dtypes.bfloat16


def make(m: int, n: int, k: int, scale: float = 1.0, bias: str | None = None) -> Builder:
    def build(rng: Rng, dtype: str, weight_dtype: str, out_dtype: str) -> Call:
        arrays = {
            "x": normal(rng, (m, k), dtype, scale),
            "weight": normal(rng, (n, k), weight_dtype, scale / np.sqrt(max(k, 1))),
            "bias": None if bias is None else normal(rng, (n,), bias),
        }
        return Call(arrays, {"out_dtype": out_dtype}, extreme=scale != 1.0)

    return build


def cancelling(rng: Rng, dtype: str, weight_dtype: str, out_dtype: str) -> Call:
    """Sums of huge terms that cancel to almost nothing: only the elementwise bound can hold."""
    half = normal(rng, (5, 32), dtype, 1e15)
    x = np.concatenate([half, -half, normal(rng, (5, 1), dtype)], axis=1)
    row = normal(rng, (7, 32), weight_dtype, 1e15)
    weight = np.concatenate([row, row, normal(rng, (7, 1), weight_dtype)], axis=1)
    return Call({"x": x, "weight": weight, "bias": None}, {"out_dtype": out_dtype}, extreme=True)


def subnormal(rng: Rng, dtype: str, weight_dtype: str, out_dtype: str) -> Call:
    x, weight = normal(rng, (3, 9), dtype, 1e-39), normal(rng, (4, 9), weight_dtype)
    return Call({"x": x, "weight": weight, "bias": None}, {"out_dtype": out_dtype}, extreme=True)


class TestLinear(OpTests):
    function = staticmethod(linear)
    oracle = staticmethod(oracle.linear)
    primitive = "mla_jax.linear"
    op_name = "linear"
    variants = (
        ("float32", "float32", "float32"),
        ("float32", "bfloat16", "float32"),
        ("bfloat16", "bfloat16", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
    )
    cases = {  # noqa: RUF012
        "M0": make(0, 5, 7),
        "M1-K1": make(1, 3, 1),
        "M1-K2048": make(1, 65, 2048),
        "M3-N1-K7": make(3, 1, 7),
        "M17-N20-K33": make(17, 20, 33),
        "M47-N17-K40": make(47, 17, 40),
        "M48-N17-K40": make(48, 17, 40),
        "M64-N17-K40": make(INVARIANT_ROWS, 17, 40),
        "M65-N17-K40": make(INVARIANT_ROWS + 1, 17, 40),
        "M97-N110-K1061": make(97, 110, 1061),
        "M9-N9-K4192": make(9, 9, 4192),
        "M130-N131-K24": make(130, 131, 24),
        "bias-float32": make(5, 19, 33, bias="float32"),
        "bias-bfloat16": make(1, 6, 40, bias="bfloat16"),
        "large": make(3, 9, 33, scale=1e18),
        "cancelling": cancelling,
        "subnormal": subnormal,
    }
    errors = {  # noqa: RUF012
        "x-rank": (
            {"x": jax.ShapeDtypeStruct((2, 3, 4), "float32")},
            "argument 'x': expected shape (M, K), got (2, 3, 4)",
        ),
        "x-dtype": (
            {"x": jax.ShapeDtypeStruct((4, 6), "float16")},
            "argument 'x': expected dtype float32 or bfloat16, got float16",
        ),
        "weight-width": (
            {"weight": jax.ShapeDtypeStruct((5, 7), "float32")},
            "argument 'weight': expected shape (N, 6), got (5, 7)",
        ),
        "weight-dtype": (
            {"x": jax.ShapeDtypeStruct((4, 6), "bfloat16"), "out_dtype": None},
            "argument 'weight': expected dtype bfloat16, got float32",
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
    }
    vmapped = (("x",), ("weight",), ("x", "weight", "bias"))
    differentiable = ("x", "weight", "bias")

    @staticmethod
    def small(rng: Rng, dtype: str, weight_dtype: str, out_dtype: str) -> Call:
        return make(4, 5, 6, bias="float32")(rng, dtype, weight_dtype, out_dtype)

    @staticmethod
    def rows(rng: Rng, *variant: str) -> tuple[Call, list[tuple[Any, Call]]]:
        # From 48 rows on (16 where x is float32) weights are copied first; 2500 columns take chunks.
        call = make(INVARIANT_ROWS, 37, 2500)(rng, *variant)
        at = [slice(0, 1), slice(33, 34), slice(63, 64), slice(0, 3), slice(5, 22), slice(40, 46)]
        at += [slice(7, 15), slice(12, 59)]
        return call, [(rows, call.changed(x=call.arrays["x"][rows])) for rows in at]


@pytest.mark.parametrize("variant", TestLinear.variants, ids="-".join)
def test_a_row_is_the_same_in_any_large_batch(variant: tuple[str, ...], rng: Rng) -> None:
    # Rows lie across the lanes: whole and cut tiles, one task's (576) and more.
    call = make(600, 130, 1100)(rng, *variant)
    (full,) = TestLinear.call(call, "native")
    for rows in (slice(0, 65), slice(530, 600), slice(7, 87), slice(3, 580)):
        (part,) = TestLinear.call(call.changed(x=call.arrays["x"][rows]), "native")
        assert same_bits(np.asarray(full)[rows], part), rows


@pytest.mark.parametrize("kernels", KERNELS)
def test_bfloat16_ties_round_to_even(kernels: str, rng: Rng) -> None:
    # Sums of integers are exact in float32; from 257 on every other integer is a bfloat16 tie.
    call = Call({"x": integers(rng, (33, 40), BF16, 16), "weight": integers(rng, (64, 40), BF16, 16)})
    (got,) = TestLinear.call(call, kernels)
    exact = call.arrays["x"].astype(np.float32) @ call.arrays["weight"].astype(np.float32).T
    assert (np.abs(exact) > 256).any()
    assert (exact.view(np.uint32) & 0xFFFF == 0x8000).sum() > 100
    assert same_bits(got, exact.astype(BF16))


@pytest.mark.parametrize("kernels", KERNELS)
def test_nan_and_infinity_stay_in_their_row(kernels: str, rng: Rng) -> None:
    x = normal(rng, (7, 33))
    x[2] = np.nan
    x[4, 5] = np.inf
    weight = np.abs(normal(rng, (9, 33))) + 1
    (got,) = TestLinear.call(Call({"x": x, "weight": weight}), kernels)
    assert np.isnan(got[2]).all()
    assert np.isposinf(got[4]).all()
    assert np.isfinite(np.delete(np.asarray(got), [2, 4], axis=0)).all()
