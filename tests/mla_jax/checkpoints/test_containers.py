"""Quantised checkpoints are refused with a sentence that says what to do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mla_jax.checkpoints.containers import require_supported_container
from mla_jax.config import ModelConfig
from mla_jax.errors import UnsupportedModelError

GOLDENS = Path(__file__).resolve().parents[2] / "goldens"


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig.from_file(GOLDENS / "deepseek_v3")


def test_plain_weights(config):
    assert config.quantization is None
    require_supported_container(config)


@pytest.mark.parametrize("settings", [{}, {"quant_method": "fp8", "weight_block_size": [128, 128]}], ids=str)
def test_quantised_weights(config, settings):
    text = json.dumps(settings)
    with pytest.raises(UnsupportedModelError) as caught:
        require_supported_container(replace(config, quantization=text))
    assert str(caught.value) == (
        "quantised containers (fp8, mxfp4, compressed-tensors) are not supported yet: convert the checkpoint"
        f" to bfloat16 first. Its quantization_config is {text}"
    )


def test_long_settings_are_cut(config):
    with pytest.raises(UnsupportedModelError) as caught:
        require_supported_container(replace(config, quantization="x" * 10_000))
    assert len(str(caught.value)) < 500
    assert str(caught.value).endswith("x...")
