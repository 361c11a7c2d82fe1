"""Storages: shapes of codes and scales, tensors without data and with random data."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from custom_calls.quantized_tensor import dequantize
from mla_jax.parameters import (
    ParamInfo,
    Source,
    abstract_parameters,
    map_table,
    random_parameters,
    with_storage,
)
from mla_jax.quant import (
    FP8,
    FP8_BLOCK,
    MXFP4,
    Storage,
    abstract_tensor,
    fp8_block,
    fp8_channel,
    random_tensor,
)

SHAPE = (3, 40, 96)
STORAGES = [
    # storage, codes, their dtype, scales
    (MXFP4, (3, 40, 48), "uint8", (3, 40, 3)),
    (FP8, (3, 40, 96), "float8_e4m3fn", (3, 1, 1)),
    (Storage("fp8_block", (32, 64)), (3, 40, 96), "float8_e4m3fn", (3, 2, 2)),
    (Storage("fp8_block", (1, 64)), (3, 40, 96), "float8_e4m3fn", (3, 40, 2)),
    (Storage("fp8_channel", (1, 0)), (3, 40, 96), "float8_e4m3fn", (3, 40)),
    (Storage("fp8_tensor", (0, 0)), (3, 40, 96), "float8_e4m3fn", (3,)),
    (Storage("int4_group", (1, 32), "bfloat16"), (3, 40, 48), "uint8", (3, 40, 3)),
    (Storage("int4_group", (1, 16)), (3, 40, 48), "uint8", (3, 40, 6)),
]


def test_names():
    assert FP8_BLOCK == FP8.block == (128, 128)
    assert (MXFP4.container, MXFP4.block, MXFP4.scale_dtype, MXFP4.rounding) == (
        "mxfp4",
        (1, 32),
        "uint8",
        "even",
    )
    assert FP8.scale_dtype == "float32"


@pytest.mark.parametrize(("storage", "data", "dtype", "scale"), STORAGES)
def test_shapes(storage, data, dtype, scale):
    assert (storage.data_shape(SHAPE), storage.data_dtype, storage.scale_shape(SHAPE)) == (data, dtype, scale)
    tensor = abstract_tensor(storage, SHAPE)
    assert isinstance(tensor.data, jax.ShapeDtypeStruct)
    assert isinstance(tensor.scale, jax.ShapeDtypeStruct)
    assert (tensor.data.shape, tensor.data.dtype) == (data, jnp.dtype(dtype))
    assert (tensor.scale.shape, tensor.scale.dtype) == (scale, jnp.dtype(storage.scale_dtype))
    assert (tensor.container, tensor.block, tensor.rounding) == (
        storage.container,
        storage.block,
        storage.rounding,
    )
    assert tensor.shape == SHAPE


@pytest.mark.parametrize("deviation", [1.0, 0.013])
@pytest.mark.parametrize("storage", [row[0] for row in STORAGES])
def test_random_tensors(storage, deviation):
    tensor = random_tensor(storage, SHAPE, jax.random.key(3), deviation)
    abstract = abstract_tensor(storage, SHAPE)
    assert jax.tree.structure(tensor) == jax.tree.structure(abstract)
    for leaf, shape in zip(jax.tree.leaves(tensor), jax.tree.leaves(abstract), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
    values = np.asarray(dequantize(tensor), np.float64)
    assert np.isfinite(values).all()
    # The e8m0 scale is a power of two; a bfloat16 one has 8 bits; the rest is 11,520 samples.
    factor = {"uint8": math.sqrt(2), "bfloat16": 1.004, "float32": 1.0}[storage.scale_dtype] * 1.02
    assert deviation / factor < np.sqrt(np.mean(values**2)) < deviation * factor
    # int4 codes are -8 to 7, so their mean is -1/2 a step; all others are symmetric.
    mean = -0.5 / math.sqrt(21.5) if storage.container == "int4_group" else 0.0
    assert abs(values.mean() / deviation - mean) < 0.06
    again, other = (random_tensor(storage, SHAPE, jax.random.key(seed), deviation) for seed in (3, 4))
    assert (np.asarray(again.data) == np.asarray(tensor.data)).all()
    assert (np.asarray(other.data) != np.asarray(tensor.data)).mean() > 0.5
    # Every code that may be drawn is.
    codes = np.unique(np.asarray(tensor.data).view(np.uint8))
    assert len(codes) == (256 if storage.data_dtype == "uint8" else 128)


@pytest.mark.parametrize("exponent", [-20, -3, 0, 5])
def test_powers_of_two_are_met_to_the_nearest(exponent):
    rms = math.sqrt((0.25 + 1 + 2.25 + 4 + 9 + 16 + 36) / 8)
    for factor, shift in ((1.0, 0), (1.4, 0), (1.43, 1), (0.72, 0), (0.7, -1)):
        tensor = random_tensor(MXFP4, (2, 32), jax.random.key(0), rms * factor * 2.0**exponent)
        assert np.unique(tensor.scale).tolist() == [127 + exponent + shift]


def test_tables_with_storages():
    """Only what may be quantised is asked about, and random weights have the deviation of plain ones."""
    one = ParamInfo((40, 64), ("mlp", "embed"), (Source("a.weight"),), quantizable=True)
    table = {
        "a": one,
        "b": ParamInfo((40, 64), ("mlp", "embed"), (Source("b.weight"),)),
        "c": ParamInfo((40, 64), ("mlp", "embed"), (Source("c.weight"),), quantizable=True),
        "n": ParamInfo((64,), ("norm",), (Source("n.weight"),), "ones"),
    }
    asked = []

    def choose(info):
        asked.append(info.sources[0].name)
        return MXFP4 if info is one else None

    stored = with_storage(table, choose)
    assert sorted(asked) == ["a.weight", "c.weight"]
    assert map_table(lambda info: info.storage, stored) == {"a": MXFP4, "b": None, "c": None, "n": None}
    abstract = abstract_parameters(stored, "bfloat16")
    params = random_parameters(stored, jax.random.key(0), "bfloat16", scale=2.0)
    assert jax.tree.structure(abstract) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(params), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    deviation = float(np.std(np.asarray(dequantize(params["a"]))))
    assert 0.25 / 1.45 < deviation < 0.25 * 1.45  # 2 / sqrt(64)


# quantising to FP8


@pytest.mark.parametrize(("shape", "block"), [((5, 7), (2, 3)), ((128, 130), (128, 128)), ((3, 4), (3, 4))])
def test_fp8_blocks(rng, shape, block):
    values = rng.standard_normal(shape).astype(np.float32)
    tensor = fp8_block(jnp.asarray(values), block)
    assert tensor.container == "fp8_block" and tensor.block == block and tensor.shape == shape
    scale = np.asarray(tensor.scale)
    for i, j in np.ndindex(scale.shape):
        part = np.s_[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
        np.testing.assert_allclose(scale[i, j], np.abs(values[part]).max() / 448, rtol=2**-22)
        decoded = np.asarray(tensor.data[part], np.float32) * scale[i, j]
        # Three mantissa bits: half a unit is a sixteenth; below the normal numbers, half of 2^-9.
        assert (np.abs(decoded - values[part]) <= np.abs(values[part]) / 16 + scale[i, j] * 2**-10).all()
        assert np.abs(decoded).max() > 0.9 * np.abs(values[part]).max()


def test_fp8_rows():
    values = jnp.asarray([[1.0, -2.0, 0.5], [0.0, 0.0, -0.0], [1e-38, 0.0, 5e-36], [448.0, 1.0, 3e38]])
    tensor = fp8_channel(values)
    assert tensor.container == "fp8_channel" and tensor.block == (1, 0)
    # Zeros, and rows whose scale would be subnormal, get scale 1 and are zeros.
    np.testing.assert_array_equal(np.asarray(tensor.scale)[1:3], 1)
    decoded = np.asarray(dequantize(tensor))
    assert np.isfinite(decoded).all()
    np.testing.assert_array_equal(decoded[1:3], 0)
    np.testing.assert_allclose(decoded[0], [1, -2, 0.5], rtol=1 / 16)
    np.testing.assert_allclose(decoded[3], [0, 0, 3e38], rtol=1 / 16)
