"""The model of the properties: native kernels, which alone promise the same bits."""

import dataclasses

import pytest
from tiny_model import tiny_model

from mla_jax.models import FrozenModel


@pytest.fixture(scope="session")
def model() -> FrozenModel:
    return dataclasses.replace(tiny_model(), kernels="native")
