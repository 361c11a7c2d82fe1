"""Whether the tests of this folder can run, and what they run on."""

import jax
import pytest

from custom_calls import registry
from mla_jax.kernel_table import lowering_platform


def test_there_is_a_gpu_with_its_library() -> None:
    if jax.default_backend() != "gpu":
        pytest.skip(f"tests/gpu needs a GPU, and JAX runs on {jax.default_backend()}")
    library = registry.library(lowering_platform())
    assert library.targets, library.reason
