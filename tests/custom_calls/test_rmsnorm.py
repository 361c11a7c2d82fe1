"""rmsnorm and rmsnorm_residual: column ranges of a fused buffer, extreme magnitudes."""

from typing import Any

import jax
import ml_dtypes
import numpy as np
import oracle
import pytest
from op_base import KERNELS, Builder, Call, OpTests, Rng, integers, normal, poison, same_bits

from custom_calls import registry
from custom_calls.rmsnorm import (
    MAX_NATIVE_ROWS,
    RMSNORM,
    RMSNORM_RESIDUAL,
    TARGET,
    TARGET_RESIDUAL,
    rmsnorm,
    rmsnorm_residual,
)

BF16 = ml_dtypes.bfloat16
EPS = 1e-6


def make(
    tokens: int, width: int, offset: int = 0, behind: int = 0, scale: float = 1.0, residual: bool = False
) -> Builder:
    """The columns in front of and behind the range are NaN."""

    def build(rng: Rng, dtype: str, weight_dtype: str) -> Call:
        x = poison((tokens, offset + width + behind), dtype)
        x[:, offset : offset + width] = normal(rng, (tokens, width), dtype, scale)
        arrays = {"x": x, "residual": normal(rng, (tokens, width), dtype, scale)}
        if not residual:
            del arrays["residual"]
        arrays["weight"] = normal(rng, (width,), weight_dtype)
        return Call(arrays, {"eps": EPS, "offset": offset}, extreme=scale < 1e-30)

    return build


def zeros(residual: bool) -> Builder:
    def build(rng: Rng, dtype: str, weight_dtype: str) -> Call:
        call = make(3, 24, residual=residual)(rng, dtype, weight_dtype)
        changes = {
            name: np.zeros_like(call.arrays[name]) for name in ("x", "residual") if name in call.arrays
        }
        return call.changed(**changes)

    return build


def all_cases(residual: bool) -> dict[str, Builder]:
    return {
        "T0": make(0, 24, residual=residual),
        "T1-N1": make(1, 1, residual=residual),
        "T3-N7-middle": make(3, 7, offset=5, behind=3, residual=residual),
        "T17-N40-last": make(17, 40, offset=24, residual=residual),
        "T65-N33-first": make(65, 33, behind=9, residual=residual),
        "T1-N2048": make(1, 2048, residual=residual),
        # Ways of GPU kernels: threads a row, rows in registers or read twice, runs of 8 or of any length.
        "T9-N520-of-536": make(9, 520, offset=8, behind=8, residual=residual),
        "T5-N1032": make(5, 1032, residual=residual),
        "T5-N1025": make(5, 1025, residual=residual),
        "T3-N2049": make(3, 2049, offset=7, residual=residual),
        "T3-N7168-of-7184": make(3, 7168, offset=16, residual=residual),
        "T2-N8200": make(2, 8200, residual=residual),
        "T1-N16392": make(1, 16392, residual=residual),
        "zeros": zeros(residual),
        "large": make(3, 33, scale=1e17, residual=residual),
        "below-eps": make(3, 33, scale=1e-6, residual=residual),
        "subnormal": make(3, 33, scale=1e-39, residual=residual),
    }


VARIANTS = (
    ("float32", "float32"),
    ("float32", "bfloat16"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
)

ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "x-rank": (
        {"x": jax.ShapeDtypeStruct((4,), "float32")},
        "argument 'x': expected shape (T, W), got (4,)",
    ),
    "x-dtype": (
        {"x": jax.ShapeDtypeStruct((4, 12), "int32")},
        "argument 'x': expected dtype float32 or bfloat16, got int32",
    ),
    "weight-rank": (
        {"weight": jax.ShapeDtypeStruct((6, 1), "float32")},
        "argument 'weight': expected shape (N), got (6, 1)",
    ),
    "weight-dtype": (
        {"weight": jax.ShapeDtypeStruct((6,), "float16")},
        "argument 'weight': expected dtype float32 or bfloat16, got float16",
    ),
    "offset-negative": (
        {"offset": -1},
        "argument 'offset': expected a range inside [0, 11) of x's columns, got [-1, 5)",
    ),
    "offset-too-far": (
        {"offset": 6},
        "argument 'offset': expected a range inside [0, 11) of x's columns, got [6, 12)",
    ),
}


def some_rows(call: Call) -> list[tuple[Any, Call]]:
    at = [slice(0, 1), slice(9, 10), slice(16, 17), slice(3, 14)]
    rowed = [name for name in ("x", "residual") if name in call.arrays]
    return [(rows, call.changed(**{name: call.arrays[name][rows] for name in rowed})) for rows in at]


class TestRmsNorm(OpTests):
    function = staticmethod(rmsnorm)
    oracle = staticmethod(oracle.rmsnorm)
    primitive = "mla_jax.rmsnorm"
    op_name = "rmsnorm"
    variants = VARIANTS
    cases = all_cases(residual=False)
    errors = ERRORS
    vmapped = (("x",), ("x", "weight"))
    differentiable = ("x", "weight")

    @staticmethod
    def small(rng: Rng, dtype: str, weight_dtype: str) -> Call:
        call = make(4, 6, offset=2, behind=3)(rng, dtype, weight_dtype)
        # Finite everywhere: the derivative of an unused NaN column is zero, its permutation would be used.
        return call.changed(x=normal(rng, (4, 11), dtype))

    @staticmethod
    def rows(rng: Rng, *variant: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = make(17, 40, offset=3)(rng, *variant)
        return call, some_rows(call)


class TestRmsNormResidual(OpTests):
    function = staticmethod(rmsnorm_residual)
    oracle = staticmethod(oracle.rmsnorm_residual)
    primitive = "mla_jax.rmsnorm_residual"
    op_name = "rmsnorm_residual"
    variants = VARIANTS
    cases = all_cases(residual=True)
    errors = ERRORS | {
        "residual-shape": (
            {"residual": jax.ShapeDtypeStruct((4, 5), "float32")},
            "argument 'residual': expected shape (4, 6), got (4, 5)",
        ),
        "residual-dtype": (
            {"residual": jax.ShapeDtypeStruct((4, 6), "bfloat16")},
            "argument 'residual': expected dtype float32, got bfloat16",
        ),
    }
    vmapped = (("x", "residual"), ("residual", "weight"))
    differentiable = ("x", "residual", "weight")

    @staticmethod
    def small(rng: Rng, dtype: str, weight_dtype: str) -> Call:
        call = make(4, 6, offset=2, behind=3, residual=True)(rng, dtype, weight_dtype)
        return call.changed(x=normal(rng, (4, 11), dtype))

    @staticmethod
    def rows(rng: Rng, *variant: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = make(17, 40, offset=3, residual=True)(rng, *variant)
        return call, some_rows(call)


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_norm_sees_the_unrounded_sum(kernels: str) -> None:
    # In bfloat16 256 + 1 is 256: a norm of the rounded sum would make both elements equal.
    x, residual = np.array([[256, 256]], BF16), np.array([[1, 0]], BF16)
    arrays = {"x": x, "residual": residual, "weight": np.full(2, 100.25, np.float32)}
    norm, total = TestRmsNormResidual.check_call(Call(arrays, {"eps": EPS}), kernels)
    assert np.asarray(total, np.float32).tolist() == [[256, 256]]
    assert np.asarray(norm, np.float32).tolist() == [[100.5, 100]]


@pytest.mark.parametrize("kernels", KERNELS)
def test_sum_rounds_ties_to_even(kernels: str, rng: Rng) -> None:
    x, residual = integers(rng, (17, 33), BF16, 200), integers(rng, (17, 33), BF16, 200)
    exact = x.astype(np.float32) + residual.astype(np.float32)
    assert (exact.view(np.uint32) & 0xFFFF == 0x8000).sum() > 20
    arrays = {"x": x, "residual": residual, "weight": np.ones(33, np.float32)}
    _, total = TestRmsNormResidual.call(Call(arrays, {"eps": EPS}), kernels)
    assert same_bits(total, exact.astype(BF16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [40, 1032, 2056, 8200])
def test_native_bits_do_not_depend_on_where_a_row_lies(width: int, dtype: str, rng: Rng) -> None:
    # At a multiple of 16 bytes, with columns behind it, and at an odd place.
    values, residual, weight = (normal(rng, s, dtype) for s in ((9, width), (9, width), (width,)))
    results = []
    for before, behind in ((0, 0), (8, 16), (3, 1)):
        x = poison((9, before + width + behind), dtype)
        x[:, before : before + width] = values
        arrays = {"x": x, "residual": residual, "weight": weight}
        results.append(TestRmsNormResidual.call(Call(arrays, {"eps": EPS, "offset": before}), "native"))
        del arrays["residual"]
        results[-1] += TestRmsNorm.call(Call(arrays, {"eps": EPS, "offset": before}), "native")
    for other in results[1:]:
        assert all(same_bits(got, want) for got, want in zip(other, results[0], strict=True))


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
@pytest.mark.parametrize("residual", [False, True])
def test_only_cpus_leave_many_rows_to_xla(residual: bool, platform: str) -> None:
    op, target = (RMSNORM_RESIDUAL, TARGET_RESIDUAL) if residual else (RMSNORM, TARGET)
    rows = jax.ShapeDtypeStruct((MAX_NATIVE_ROWS + 1, 8), "bfloat16")
    arrays = (
        [rows, rows, jax.ShapeDtypeStruct((8,), "bfloat16")] if residual else [rows, rows.update(shape=(8,))]
    )
    libraries = [
        registry.Library(name, "declared", frozenset([target]), "declared", {}) for name in ("cpu", platform)
    ]
    for library in libraries:
        with registry.declared(library):
            traced = jax.jit(lambda *a: op(*a, kernels="native", eps=EPS, offset=0)).trace(*arrays)
            text = traced.lower(lowering_platforms=(library.platform,)).as_text()
        assert (f"@{target}" in text) == (library.platform != "cpu")


@pytest.mark.parametrize("kernels", KERNELS)
def test_no_numbers_and_no_root(kernels: str) -> None:
    """A row of zeros without eps, an infinity, a NaN, and a mean of squares that is subnormal."""
    x = np.zeros((4, 24), np.float32)
    x[1, 5], x[2, 7] = np.inf, np.nan
    x[3] = 2.0**-70
    (got,) = TestRmsNorm.call(Call({"x": x, "weight": np.ones(24, np.float32)}, {"eps": 0.0}), kernels)
    got = np.asarray(got)
    assert np.isnan(got[0]).all() and np.isnan(got[2]).all()
    assert np.isnan(got[1, 5]) and not np.delete(got[1], 5).any()
    if kernels == "native":
        np.testing.assert_allclose(got[3], 1, rtol=3e-7)


@pytest.mark.parametrize("kernels", KERNELS)
def test_negative_zero_keeps_its_sign(kernels: str) -> None:
    x = np.array([[-0.0, 0.0, 1.0, -0.0, 2.0]], np.float32)
    (got,) = TestRmsNorm.call(Call({"x": x, "weight": np.ones(5, np.float32)}, {"eps": EPS}), kernels)
    assert np.signbit(got).tolist() == [[True, False, False, True, False]]
    # So does a weight's.
    x, weight = np.ones((1, 8), np.float32), np.full(8, -0.0, np.float32)
    (got,) = TestRmsNorm.call(Call({"x": x, "weight": weight}, {"eps": EPS}), kernels)
    assert np.signbit(got).all()
