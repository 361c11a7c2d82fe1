"""The numerics report: distances against their definition, and the price of each `absorb_weights`."""

import jax.numpy as jnp
import numpy as np
import pytest

from custom_calls.mxfp4_quantize import mxfp4_quantize
from custom_calls.quantized_tensor import dequantize
from mla_jax import numerics as numerics_module
from mla_jax.numerics import Distance, Numerics, format_report
from mla_jax.quant import fp8_block

NAME = "model.layers.3.self_attn.kv_b_proj.weight"


@pytest.mark.parametrize("block", [1 << 18, 7])
def test_distance(rng, monkeypatch, block):
    monkeypatch.setattr(numerics_module, "_BLOCK", block)
    before = rng.standard_normal((5, 9)).astype(np.float32)
    after = before.copy()
    after[2, 3] += 0.5
    after[4, 8] -= 0.25
    found = Distance.between(before, after)
    one, two = before.astype(np.float64).ravel(), after.astype(np.float64).ravel()
    assert found.error == pytest.approx(0.5 / np.abs(one).max(), rel=1e-6)
    assert found.cosine == pytest.approx(1 - one @ two / np.linalg.norm(one) / np.linalg.norm(two), rel=1e-9)


def test_degenerate_distances():
    zeros, ones = np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)
    assert Distance.between(ones, ones) == Distance(0, 0)
    assert Distance.between(zeros, zeros) == Distance(0, 0)
    assert Distance.between(np.zeros((0, 3)), np.zeros((0, 3))) == Distance(0, 0)
    assert Distance.between(ones, -ones) == Distance(2, 2)
    assert Distance.worst([Distance(1, 5), Distance(2, 3)]) == Distance(2, 5)


@pytest.fixture
def weight(rng):
    return rng.standard_normal((48, 64)).astype(np.float32)


def test_the_price_of_each_choice(weight):
    found = Numerics()
    found.absorb(NAME, weight, jnp.asarray(weight))
    price = {choice: one for choice, ((_, one, _),) in found.absorbed.items()}
    size = {choice: nbytes for choice, ((*_, nbytes),) in found.absorbed.items()}
    assert list(price) == ["auto", "bfloat16", "mxfp4", "fp8"]
    assert price["auto"] == Distance(0, 0)
    assert 0 < price["bfloat16"].cosine < price["fp8"].cosine < price["mxfp4"].cosine < 0.02
    # bfloat16 has 8 bits of precision, e4m3 has 4, and an MXFP4 group of 32 ends at 6 with steps of 2.
    largest = np.abs(weight).max()
    assert price["bfloat16"].error <= 2**-9
    assert price["fp8"].error <= 2**-4
    assert price["mxfp4"].error <= 1 / 4
    expected = np.abs(np.asarray(dequantize(mxfp4_quantize(jnp.asarray(weight)))) - weight).max() / largest
    assert price["mxfp4"].error == pytest.approx(expected, rel=1e-6)
    assert size == {
        "auto": 4 * weight.size,
        "bfloat16": 2 * weight.size,
        "mxfp4": weight.size // 2 + weight.size // 32,
        "fp8": weight.size + 4 * 48,
    }


@pytest.mark.parametrize("quantize", [mxfp4_quantize, fp8_block])
def test_auto_costs_what_the_checkpoint_does(weight, quantize):
    found, stored = Numerics(), quantize(jnp.asarray(weight))
    found.absorb(NAME, weight, stored)
    (_, auto, nbytes) = found.absorbed["auto"][0]
    assert auto == Distance.between(weight, np.asarray(dequantize(stored)))
    assert auto.cosine > 0
    assert nbytes == stored.nbytes
    if quantize is mxfp4_quantize:
        assert found.absorbed["mxfp4"] == found.absorbed["auto"]


def test_what_a_model_cannot_have(rng):
    weight = rng.standard_normal((8, 48)).astype(np.float32)
    found = Numerics()
    found.absorb(NAME, weight, jnp.asarray(weight))
    assert set(found.absorbed) == {"auto", "bfloat16", "fp8"}
    assert "multiple of 32, got 48" in found.refused["mxfp4"]
    assert "multiple of 32, got 48" in format_report(found, "fp8")


def test_report(weight):
    found = Numerics()
    assert format_report(found, "bf16") == "no weight was quantised"
    for layer, factor in ((0, 1.0), (0, 1.1), (12, 1.5)):
        found.add(f"model.layers.{layer}.x{factor}.weight", weight, weight * np.float32(factor) + 0.01)
    found.add("lm_head.weight", weight, weight)
    layers = {layer: (count, worst) for layer, count, worst in found.by_layer()}
    assert {layer: count for layer, (count, _) in layers.items()} == {
        "model.layers.0": 2,
        "model.layers.12": 1,
        "lm_head": 1,
    }
    assert layers["model.layers.0"][1].error == pytest.approx(0.1, rel=0.2)
    assert layers["model.layers.12"][1].error == pytest.approx(0.5, rel=0.2)
    found.absorb(NAME, weight, jnp.asarray(weight))
    found.absorb(NAME.replace("3", "4"), weight, jnp.asarray(weight) * np.float32(2))
    text = format_report(found, "mxfp4")
    assert "model.layers.12" in text
    (line,) = [line for line in text.splitlines() if line.startswith("auto")]
    # Bytes of both layers, the error of the worse one.
    _, size, _, error = line.split()
    assert float(size) == pytest.approx(2 * weight.nbytes / 1e6, abs=0.05)
    assert float(error) == 1.0
