"""absorb: both contractions over row ranges of kv_b_proj, NaN outside the ranges."""

from typing import Any

import jax
import ml_dtypes
import numpy as np
import oracle
import pytest
from op_base import KERNELS, Builder, Call, OpTests, Rng, integers, normal, poison, same_bits

from custom_calls.absorb import absorb

BF16 = ml_dtypes.bfloat16


def make(
    tokens: int,
    heads: int,
    rank: int,
    rows: int,
    contract: str,
    row_offset: int = 0,
    rows_behind: int = 0,
    x_offset: int = 0,
    x_behind: int = 0,
    scale: float = 1.0,
    fill: Any = normal,
) -> Builder:
    """Whatever the static ranges leave out is NaN."""

    def build(rng: Rng, dtype: str) -> Call:
        used = rows if contract == "rows" else rank
        x = poison((tokens, heads, x_offset + used + x_behind), dtype)
        x[:, :, x_offset : x_offset + used] = fill(rng, (tokens, heads, used), dtype, scale)
        weight = poison((heads, row_offset + rows + rows_behind, rank), dtype)
        weight[:, row_offset : row_offset + rows] = fill(rng, (heads, rows, rank), dtype, scale)
        static = {"contract": contract, "row_offset": row_offset, "rows": rows, "x_offset": x_offset}
        return Call({"x": x, "weight": weight}, static, extreme=scale > 100)

    return build


def both(name: str, *args: Any, **kwargs: Any) -> dict[str, Builder]:
    return {f"{name}-{contract}": make(*args, contract, **kwargs) for contract in ("rows", "columns")}


class TestAbsorb(OpTests):
    function = staticmethod(absorb)
    oracle = staticmethod(oracle.absorb)
    primitive = "mla_jax.absorb"
    op_name = "absorb"
    cases = {  # noqa: RUF012
        **both("T0", 0, 3, 8, 4),
        **both("T1-H1-R8", 1, 1, 8, 1),
        **both("T1-H12-R512", 1, 12, 512, 16, row_offset=16),
        **both("T3-H20-R24", 3, 20, 24, 7, row_offset=5, rows_behind=2, x_offset=3, x_behind=1),
        **both("T17-H3-R40", 17, 3, 40, 33, rows_behind=8, x_behind=2),
        **both("T65-H3-R24", 65, 3, 24, 16, row_offset=8, x_offset=2),
        **both("T130-H1-R40", 130, 1, 40, 12, row_offset=1),
        **both("large", 3, 2, 24, 9, scale=1e16),
    }
    errors = {  # noqa: RUF012
        "x-rank": (
            {"x": jax.ShapeDtypeStruct((4, 6), "float32")},
            "argument 'x': expected shape (T, H, D), got (4, 6)",
        ),
        "x-dtype": (
            {"x": jax.ShapeDtypeStruct((4, 3, 7), "int8")},
            "argument 'x': expected dtype float32 or bfloat16, got int8",
        ),
        "weight-heads": (
            {"weight": jax.ShapeDtypeStruct((2, 9, 8), "float32")},
            "argument 'weight': expected shape (3, W, R), got (2, 9, 8)",
        ),
        "weight-dtype": (
            {"weight": jax.ShapeDtypeStruct((3, 9, 8), "bfloat16")},
            "argument 'weight': expected dtype float32, got bfloat16",
        ),
        "rows-too-many": (
            {"row_offset": 5, "rows": 5},
            "argument 'row_offset, rows': expected a range inside [0, 9) of weight's rows, got [5, 10)",
        ),
        "rows-empty": (
            {"rows": 0},
            "argument 'row_offset, rows': expected a range inside [0, 9) of weight's rows, got [2, 2)",
        ),
        "x-offset": (
            {"x_offset": 4},
            "argument 'x_offset': expected a range inside [0, 7) of x's columns, got [4, 8)",
        ),
        "x-offset-columns": (
            {"contract": "columns", "x_offset": 0},
            "argument 'x_offset': expected a range inside [0, 7) of x's columns, got [0, 8)",
        ),
        "contract": ({"contract": "row"}, "argument 'contract': expected 'rows' or 'columns', got 'row'"),
    }
    vmapped = (("x",), ("weight",), ("x", "weight"))
    differentiable = ("x", "weight")

    @staticmethod
    def small(rng: Rng, dtype: str) -> Call:
        call = make(4, 3, 8, 4, "rows", row_offset=2, rows_behind=3, x_offset=1, x_behind=2)(rng, dtype)
        return call.changed(x=normal(rng, (4, 3, 7), dtype), weight=normal(rng, (3, 9, 8), dtype))

    @staticmethod
    def rows(rng: Rng, dtype: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = make(70, 3, 40, 19, "rows", row_offset=2)(rng, dtype)
        at = [slice(0, 1), slice(33, 34), slice(69, 70), slice(5, 22), slice(64, 70)]
        return call, [(rows, call.changed(x=call.arrays["x"][rows])) for rows in at]


def test_columns_do_not_depend_on_the_batch(rng: Rng) -> None:
    call = make(70, 3, 40, 19, "columns", row_offset=2)(rng, "bfloat16")
    (full,) = TestAbsorb.call(call, "native")
    for rows in (slice(0, 1), slice(69, 70), slice(5, 22)):
        (part,) = TestAbsorb.call(call.changed(x=call.arrays["x"][rows]), "native")
        assert same_bits(full[rows], part)


@pytest.mark.parametrize("contract", ["rows", "columns"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_bfloat16_ties_round_to_even(kernels: str, contract: str, rng: Rng) -> None:
    call = make(17, 3, 40, 33, contract, scale=16, fill=integers)(rng, "bfloat16")
    (got,) = TestAbsorb.call(call, kernels)
    exact = TestAbsorb.expected(call)[0].value.astype(np.float32)
    assert (exact.view(np.uint32) & 0xFFFF == 0x8000).sum() > 50
    assert same_bits(got, exact.astype(BF16))


@pytest.mark.parametrize("kernels", KERNELS)
def test_both_products_are_each_others_transpose(kernels: str, rng: Rng) -> None:
    # y . absorb_rows(x) == x . absorb_columns(y): the two forms read the same weight.
    weight = integers(rng, (3, 9, 24))
    x, y = integers(rng, (5, 3, 7)), integers(rng, (5, 3, 24))
    static = {"row_offset": 2, "rows": 7, "x_offset": 0}
    (into,) = TestAbsorb.call(Call({"x": x, "weight": weight}, {**static, "contract": "rows"}), kernels)
    (out,) = TestAbsorb.call(Call({"x": y, "weight": weight}, {**static, "contract": "columns"}), kernels)
    assert np.array_equal((np.asarray(into) * y).sum(-1), (np.asarray(out) * x).sum(-1))
