"""The model and the prompts of the engine's tests."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_case import CONFIG, PROMPT_LENGTHS

import mla_jax
from mla_jax.rope import RopeTable


@pytest.fixture(scope="session")
def model():
    """Weights by NumPy: nothing compiles."""
    abstract, rng = mla_jax.freeze(mla_jax.MLAForCausalLM.abstract(CONFIG)), np.random.default_rng(3)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = rng.standard_normal(leaf.shape) / np.sqrt(leaf.shape[-1]) if leaf.ndim > 1 else 1.0
        return jnp.asarray(np.broadcast_to(values, leaf.shape).astype(leaf.dtype))

    table = RopeTable.from_config(CONFIG.rope, CONFIG.max_position_embeddings)
    params = jax.tree.map(draw, abstract.params)
    return replace(abstract, params=params, rope_cos=table.cos, rope_sin=table.sin)


@pytest.fixture(scope="session")
def prompts():
    generator = np.random.default_rng(11)
    return [tuple(generator.integers(0, CONFIG.vocab_size, n).tolist()) for n in PROMPT_LENGTHS]
