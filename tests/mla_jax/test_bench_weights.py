"""Fast random weights: the table's shapes and dtypes, finite values, about the right deviation."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from custom_calls.quantized_tensor import QuantizedTensor, dequantize
from mla_jax.bench_weights import random_weights
from mla_jax.config import ModelConfig
from mla_jax.parameters import ParamInfo, abstract_parameters, parameter_table, with_storage
from mla_jax.quant import FP8, MXFP4, Storage

CONFIG = ModelConfig.from_file(Path(__file__).resolve().parents[1] / "goldens" / "deepseek_v3")
INT4 = Storage("int4_group", (1, 32), "bfloat16")
FULL_SHAPE = (40, 6000, 32)  # more than one chunk


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_tables_shapes(dtype):
    table = parameter_table(CONFIG)
    made, wanted = random_weights(table, dtype), abstract_parameters(table, dtype)
    assert jax.tree.structure(made) == jax.tree.structure(wanted)
    for array, promised in zip(jax.tree.leaves(made), jax.tree.leaves(wanted), strict=True):
        assert (array.shape, array.dtype) == (promised.shape, promised.dtype)
        assert np.isfinite(np.asarray(array, np.float32)).all()
    np.testing.assert_array_equal(made["model"]["norm"]["weight"], 1)


@pytest.mark.parametrize("storage", [None, MXFP4, FP8, INT4], ids=lambda one: one and one.container)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deviation(storage, dtype):
    table = with_storage(
        {"w": ParamInfo(FULL_SHAPE, ("a", "b", "c"), (), quantizable=True)}, lambda _: storage
    )
    weight = random_weights(table, dtype)["w"]
    assert isinstance(weight, QuantizedTensor) == (storage is not None)
    values = np.asarray(dequantize(weight) if storage else weight, np.float64)
    assert values.shape == FULL_SHAPE
    wanted = 1 / math.sqrt(FULL_SHAPE[-1])
    assert wanted / 1.5 < values.std() < wanted * 1.5
    # int4 codes run from -8 to 7.
    assert abs(values.mean()) < 0.2 * wanted
    # Everything is drawn, from the first chunk to the last.
    parts = values.reshape(8, -1)
    assert all(part.std() > 0.9 * values.std() for part in parts)
    assert len({part.tobytes() for part in parts}) == 8


def test_parameters_differ():
    leaf = ParamInfo((64, 64), ("a", "b"), ())
    made = random_weights({"one": leaf, "two": leaf}, "float32")
    assert not np.array_equal(made["one"], made["two"])
