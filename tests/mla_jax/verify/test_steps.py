"""Descriptions of a step's arguments are those of the real ones, and the step is the model's function."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mla_jax
from mla_jax.models import decode_step, prefill
from mla_jax.verify.steps import int32, paged_arguments, paged_step

GOLDEN = Path(__file__).resolve().parents[2] / "goldens" / "deepseek_v3"


@pytest.mark.parametrize(("page_size", "dtype"), [(1, "auto"), (16, "fp8"), (7, "bfloat16")])
def test_arguments_are_those_of_a_real_step(page_size, dtype):
    _, config = mla_jax.load(GOLDEN, progress=False)
    tokens, cache, table, seq_lens, num_new = described = paged_arguments(
        config, num_seqs=2, num_tokens=6, max_len=21, page_size=page_size, dtype=dtype
    )
    real = mla_jax.init_cache(config, num_tokens=2 * (21 + page_size), page_size=page_size, dtype=dtype)
    owned = mla_jax.PageTable.allocate(real, 2, 21)
    arrays = jnp.arange(6, dtype=jnp.int32), real, owned, jnp.array([0, 0]), jnp.array([4, 2])
    assert jax.tree.structure(described) == jax.tree.structure(arrays)
    for one, other in zip(jax.tree.leaves(described), jax.tree.leaves(arrays), strict=True):
        assert isinstance(one, jax.ShapeDtypeStruct)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert (tokens, seq_lens, num_new) == (int32(6), int32(2), int32(2))
    assert table.capacity >= 21 and cache.page_size == page_size


@pytest.mark.parametrize(("function", "rows"), [(prefill, 5), (decode_step, 2)])
def test_a_step_is_the_models_function(function, rows):
    model, config = mla_jax.load(GOLDEN, progress=False)
    frozen = mla_jax.freeze(model)
    cache = mla_jax.init_cache(config, num_tokens=32, page_size=4)
    table = mla_jax.PageTable.allocate(cache, 2, 16)
    tokens = jnp.arange(rows, dtype=jnp.int32)
    num_new = jnp.array([rows - 1, 1]) if function is prefill else jnp.array([1, 1])
    meta = mla_jax.AttentionMetadata.extend(table, jnp.array([0, 0]), num_new)
    want, _ = function(frozen, tokens, cache, meta)
    got, _ = jax.jit(paged_step(function, rows))(frozen, tokens, cache, table, jnp.array([0, 0]), num_new)
    # Compiled as one program: sums may come in another order.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
