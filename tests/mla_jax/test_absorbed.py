"""The choices of absorb_weights: what stays as it is, and what another format makes of it."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from custom_calls.quantized_tensor import dequantize
from mla_jax.absorbed import ABSORB_WEIGHTS, absorbed_weight, check_absorb_weights
from mla_jax.errors import ConfigError
from mla_jax.quant import FP8, MXFP4, fp8_channel, random_tensor

SHAPE = (24, 64)


@pytest.fixture(scope="module")
def tensors():
    made = {
        name: random_tensor(storage, SHAPE, jax.random.key(0), 0.1)
        for name, storage in (("mxfp4", MXFP4), ("fp8", FP8))
    }
    made["plain"] = jax.random.normal(jax.random.key(1), SHAPE, jnp.float32)
    return made


def test_choices():
    assert ABSORB_WEIGHTS == ("auto", "bfloat16", "mxfp4", "fp8")
    for choice in ABSORB_WEIGHTS:
        check_absorb_weights(choice)


@pytest.mark.parametrize("choice", ["", "Auto", "bf16", "float32", None, 1, True])
def test_bad_choices(choice):
    with pytest.raises(
        ConfigError, match=r"absorb_weights: expected one of auto, bfloat16, mxfp4, fp8, got "
    ):
        check_absorb_weights(choice)


@pytest.mark.parametrize("kind", ["plain", "mxfp4", "fp8"])
def test_auto_is_the_checkpoints_own(tensors, kind):
    assert absorbed_weight(tensors[kind], "auto", "bfloat16") is tensors[kind]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["plain", "mxfp4", "fp8"])
def test_plain_numbers_of_the_compute_dtype(tensors, kind, dtype):
    got = absorbed_weight(tensors[kind], "bfloat16", dtype)
    expected = tensors[kind] if kind == "plain" else dequantize(tensors[kind])
    assert got.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(expected).astype(dtype))


def test_mxfp4(tensors):
    assert absorbed_weight(tensors["mxfp4"], "mxfp4", "float32") is tensors["mxfp4"]  # no second rounding
    for kind in ("plain", "fp8"):
        got = absorbed_weight(tensors[kind], "mxfp4", "bfloat16")
        values = np.asarray(tensors[kind] if kind == "plain" else dequantize(tensors[kind]))
        assert (got.container, got.block, got.rounding, got.shape) == ("mxfp4", (1, 32), "even", SHAPE)
        # Half a step of the widest interval, 4 to 6 times the scale; the largest value is at most 7 times it.
        scale = np.repeat(np.ldexp(1.0, np.asarray(got.scale).astype(int) - 127), 32, 1)
        assert (np.abs(np.asarray(dequantize(got)) - values) <= scale * 1.0001).all()
        # Groups run along kv_lora_rank: each has its own largest value.
        largest = np.abs(values).reshape(24, 2, 32).max(-1)
        exponents = (largest.astype(np.float32).view(np.uint32) + 0x200000 >> 23).astype(int) - 2
        np.testing.assert_array_equal(got.scale, exponents)
    narrow = jnp.ones((4, 48), jnp.float32)
    with pytest.raises(ConfigError, match="'mxfp4' needs kv_lora_rank to be a multiple of 32, got 48"):
        absorbed_weight(narrow, "mxfp4", "float32")
    assert absorbed_weight(narrow, "fp8", "float32").shape == (4, 48)


@pytest.mark.parametrize("kind", ["plain", "mxfp4", "fp8"])
def test_fp8(tensors, kind):
    got = absorbed_weight(tensors[kind], "fp8", "bfloat16")
    values = np.asarray(tensors[kind] if kind == "plain" else dequantize(tensors[kind]))
    assert (got.container, got.block, got.shape) == ("fp8_channel", (1, 0), SHAPE)
    scale = np.asarray(got.scale)
    # XLA multiplies by the reciprocal of 448.
    np.testing.assert_allclose(scale, np.abs(values).max(1) / np.float32(448), rtol=1.2e-7)
    expected = np.clip(values / scale[:, None], -448, 448).astype(ml_dtypes.float8_e4m3fn)
    assert np.asarray(got.data).tobytes() == expected.tobytes()


def test_fp8_of_zeros_and_extremes():
    rows = np.zeros((4, 32), np.float32)
    rows[1] = -3e38
    rows[2, 5] = 1e-30
    rows[3, 0] = np.float32(448) / 3  # a quotient that is not 448 exactly
    got = fp8_channel(jnp.asarray(rows))
    assert got.scale[0] == 1
    assert not np.isnan(np.asarray(got.data, np.float32)).any()
    codes = np.asarray(got.data, np.float32)
    assert (codes[0].max(), codes[1].min(), codes[2, 5], codes[3, 0]) == (0, -448, 448, 448)
    np.testing.assert_allclose(np.asarray(got.scale)[:, None] * codes, rows, rtol=1e-6)
    low = fp8_channel(jnp.asarray(rows[3:]).astype(jnp.bfloat16))
    assert (low.scale.dtype, low.data.dtype) == (jnp.float32, jnp.float8_e4m3fn)


def test_every_row_has_its_own_scale():
    """Quotients that rounding takes beyond 448 are not NaN, whatever the largest value is."""
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((4096, 4)) * np.exp2(rng.uniform(-30, 30, (4096, 1)))).astype(np.float32)
    codes = np.asarray(fp8_channel(jnp.asarray(rows)).data, np.float32)
    assert (np.abs(codes).max(1) == 448).all()
