"""The tiny model with both kinds of kernels, and the parity goldens' folder."""

import dataclasses
from pathlib import Path

import pytest
from tiny_model import CONFIG, tiny_model

from mla_jax.config import ModelConfig
from mla_jax.models import FrozenModel


@pytest.fixture(scope="session")
def goldens() -> Path:
    return Path(__file__).resolve().parents[2] / "goldens"


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    return CONFIG


@pytest.fixture(scope="session")
def reference_model() -> FrozenModel:
    return tiny_model()


@pytest.fixture(scope="session")
def native_model(reference_model) -> FrozenModel:
    return dataclasses.replace(reference_model, kernels="native")


@pytest.fixture(params=["reference", "native"])
def model(request, reference_model, native_model) -> FrozenModel:
    return {"reference": reference_model, "native": native_model}[request.param]
