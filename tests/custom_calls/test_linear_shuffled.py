"""linear over shuffled MXFP4 weights: every kernel of a GPU, ragged tiles, and the row-major op's values."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle_quantized
import pytest
from op_base import KERNELS, Builder, Call, OpTests, Rng, check, normal, same_bits
from oracle_quantized import NAN_SCALE, random_weight

from custom_calls.errors import LayoutError
from custom_calls.linear import linear
from custom_calls.linear_shuffled import MAX_FEW_ROWS, MAX_GPU_ROWS
from custom_calls.quantized_tensor import QuantizedTensor, dequantize, shuffle

BF16 = ml_dtypes.bfloat16
BOTH = pytest.mark.parametrize("kernels", KERNELS)


def tiles_of(rows: np.ndarray, fill: int) -> np.ndarray:
    """Byte 16c + b of row 16t + r at [t, c, r, b], one by one."""
    high, wide = rows.shape
    tiles = np.full((-(-high // 16), -(-wide // 16), 16, 16), fill, np.uint8)
    for row in range(high):
        for column in range(wide):
            tiles[row // 16, column // 16, row % 16, column % 16] = rows[row, column]
    return tiles


def rows_of(tiles: np.ndarray, high: int, wide: int) -> np.ndarray:
    row, column = np.arange(high)[:, None], np.arange(wide)[None, :]
    return tiles[row // 16, column // 16, row % 16, column % 16]


def run(x: Any, data: Any, scale: Any, bias: Any = None, *, padding_rows: int, **static: Any) -> jax.Array:
    weight = QuantizedTensor(data, scale, "mxfp4", data_layout="shuffled", padding_rows=padding_rows)
    return linear(x, weight, bias, **static)


def expected(
    x: Any, data: Any, scale: Any, bias: Any = None, *, padding_rows: int, out_dtype: str
) -> tuple[Any, ...]:
    n, groups = 16 * data.shape[0] - padding_rows, data.shape[1]
    return oracle_quantized.linear(
        x, rows_of(data, n, 16 * groups), rows_of(scale, n, groups), bias,
        out_dtype=out_dtype, container="mxfp4", block=(1, 32),
    )  # fmt: skip


def make(m: int, n: int, k: int, bias: str | None = None) -> Builder:
    def build(rng: Rng, dtype: str, out_dtype: str) -> Call:
        data, scale = random_weight(rng, (n, k), "mxfp4")
        high = -(-n // 16) * 16
        # What fills up the last tile is nobody's: no result may show it.
        wide = np.full((high, scale.shape[1]), NAN_SCALE, np.uint8)
        wide[:n] = scale
        arrays = {
            "x": normal(rng, (m, k), dtype),
            "data": tiles_of(data, 0xAB),
            "scale": tiles_of(wide, 127),
            "bias": None if bias is None else normal(rng, (n,), bias),
        }
        return Call(arrays, {"out_dtype": out_dtype, "padding_rows": high - n})

    return build


class TestLinearShuffled(OpTests):
    function = staticmethod(run)
    oracle = staticmethod(expected)
    primitive = "mla_jax.linear_shuffled"
    op_name = "linear"
    variants = (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"))
    cases = {  # noqa: RUF012
        "M0": make(0, 5, 64),
        "N0": make(3, 0, 64),
        "M1-N1-K32": make(1, 1, 32),
        "M1": make(1, 37, 160, "float32"),
        "M5-K2080": make(5, 40, 2080, "bfloat16"),
        "M8-N2300": make(8, 2300, 128),
        "M9-K544": make(9, 33, 544),
        "M16": make(16, 48, 1024, "float32"),
        "M17": make(17, 31, 96),
        "M40": make(40, 130, 288, "bfloat16"),
        "M128": make(128, 16, 64),
        "M129": make(129, 20, 128, "float32"),
    }
    small = staticmethod(make(3, 20, 64, "float32"))
    errors = {  # noqa: RUF012
        "x-width": (
            {"x": jax.ShapeDtypeStruct((4, 32), "float32")},
            "argument 'weight': expected shape (N, 32), got (20, 64)",
        ),
        "weight-stack": (
            {
                "data": jax.ShapeDtypeStruct((1, 2, 2, 16, 16), "uint8"),
                "scale": jax.ShapeDtypeStruct((1, 2, 1, 16, 16), "uint8"),
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
        call = make(20, 37, 160)(rng, *variant)
        at = [slice(0, 1), slice(19, 20), slice(5, 17)]
        return call, [(rows, call.changed(x=call.arrays["x"][rows])) for rows in at]


# Of Hopper's kernels for many rows: tokens in and between their sizes, ragged rows and steps, clusters that share the
# contraction and clusters whose blocks have most of it alone. Not among the cases above, for an emulator's sake.
LARGE = [
    (17, 18400, 2080),
    (32, 9216, 1024),
    (33, 3000, 6240),
    (64, 18432, 512),
    (65, 7168, 4096),
    (127, 19000, 1056),
]


@pytest.mark.parametrize("size", LARGE, ids=str)
def test_kernels_that_a_gpu_takes_for_large_products_only(size: tuple[int, int, int], rng: Rng) -> None:
    m, n, k = size
    data, scale = (jnp.asarray(each) for each in random_weight(rng, (n, k), "mxfp4"))
    x, bias = jnp.asarray(normal(rng, (m, k), BF16)), jnp.asarray(normal(rng, (n,), np.float32))
    rows = QuantizedTensor(data, scale, "mxfp4")
    got = linear(x, shuffle(rows), bias, out_dtype="float32", kernels="native")
    want = oracle_quantized.linear(
        *(np.asarray(each) for each in (x, data, scale, bias)), out_dtype="float32", container="mxfp4", block=(1, 32)
    )  # fmt: skip
    check(got, want[0], f"linear_shuffled {size}")


@BOTH
@pytest.mark.parametrize("rows", [1, MAX_FEW_ROWS, MAX_FEW_ROWS + 1, MAX_GPU_ROWS + 1])
def test_every_mxfp4_value_reaches_the_product_exactly(rows: int, kernels: str) -> None:
    # One code of each row is not zero, so the sum is the value. Each code meets each scale.
    width = 160
    codes, scales = (a.reshape(-1) for a in np.meshgrid(np.arange(16), np.arange(256)))
    data = np.zeros((4096, width), np.uint8)
    at = np.arange(4096) * 7 % width
    data[np.arange(4096), at] = codes
    scale = np.full((4096, width // 32), 127, np.uint8)
    scale[np.arange(4096), at // 32] = scales
    packed = QuantizedTensor(jnp.asarray(oracle_quantized.pack(data)), jnp.asarray(scale), "mxfp4")
    x = np.ones((rows, width), BF16)
    got = np.asarray(linear(jnp.asarray(x), shuffle(packed), out_dtype="float32", kernels=kernels))
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
@pytest.mark.parametrize("rows", [1, 12, 30, 140])
def test_every_place_of_the_contraction_meets_its_token(rows: int, kernels: str, rng: Rng) -> None:
    # Powers of two that no two places share: a value at another place, or twice, or missing, shows exactly.
    n, k = 35, 288
    codes = np.zeros((n, k), np.uint8)
    at = rng.integers(0, k, (n, 3))
    np.put_along_axis(codes, at, rng.integers(1, 8, (n, 3)).astype(np.uint8), 1)
    scale = rng.integers(124, 131, (n, k // 32)).astype(np.uint8)
    packed = QuantizedTensor(jnp.asarray(oracle_quantized.pack(codes)), jnp.asarray(scale), "mxfp4")
    x = rng.integers(-100, 101, (rows, k)).astype(np.float32).astype(BF16)
    got = linear(jnp.asarray(x), shuffle(packed), out_dtype="float32", kernels=kernels)
    values = oracle_quantized.values(oracle_quantized.pack(codes), scale, "mxfp4", (1, 32))
    assert same_bits(got, (x.astype(np.float64) @ values.T).astype(np.float32))


def test_the_reference_is_that_of_row_major_weights(rng: Rng) -> None:
    data, scale = random_weight(rng, (37, 160), "mxfp4")
    weight = QuantizedTensor(jnp.asarray(data), jnp.asarray(scale), "mxfp4")
    x = jnp.asarray(normal(rng, (5, 160)))
    assert same_bits(linear(x, shuffle(weight), kernels="reference"), linear(x, weight, kernels="reference"))
    assert same_bits(linear(x, shuffle(weight), kernels="native"), linear(x, weight, kernels="native"))
    assert same_bits(dequantize(shuffle(weight)), dequantize(weight))


def test_quantised_activations_refuse_shuffled_weights(rng: Rng) -> None:
    data, scale = random_weight(rng, (16, 64), "mxfp4")
    weight = shuffle(QuantizedTensor(jnp.asarray(data), jnp.asarray(scale), "mxfp4"))
    message = (
        "linear, activations='mxfp4': argument 'weight': expected data_layout 'row_major', got 'shuffled'"
    )
    with pytest.raises(LayoutError, match=message):
        linear(jnp.ones((2, 64)), weight, activations="mxfp4")
