"""Linear, RMSNorm and Embedding against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mla_jax.layers import Embedding, Linear, RMSNorm

KERNELS = ["reference", "native"]


def normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_x_times_the_transposed_weight(rng, bias, kernels):
    params = {"weight": normal(rng, 7, 5)} | ({"bias": normal(rng, 7)} if bias else {})
    x = normal(rng, 3, 5)
    expected = np.asarray(x, np.float64) @ np.asarray(params["weight"], np.float64).T
    expected = expected + np.asarray(params["bias"], np.float64) if bias else expected
    np.testing.assert_allclose(Linear(params, kernels=kernels)(x), expected, atol=1e-5)


@pytest.mark.parametrize("kernels", KERNELS)
def test_linear_can_widen_its_result(rng, kernels):
    x, weight = normal(rng, 3, 64).astype(jnp.bfloat16), normal(rng, 7, 64).astype(jnp.bfloat16)
    layer = Linear({"weight": weight}, kernels=kernels)
    wide = layer(x, "float32")
    assert (layer(x).dtype, wide.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(layer(x), wide.astype(jnp.bfloat16))
    assert (np.asarray(wide) != np.asarray(wide.astype(jnp.bfloat16).astype(jnp.float32))).any()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rmsnorm_and_its_residual_form(rng, eps, kernels):
    weight, x, residual = normal(rng, 6), normal(rng, 4, 6), normal(rng, 4, 6)
    layer = RMSNorm({"weight": weight}, eps=eps, kernels=kernels)

    def expected(values):
        values = np.asarray(values, np.float64)
        return values / np.sqrt((values**2).mean(-1, keepdims=True) + eps) * np.asarray(weight, np.float64)

    np.testing.assert_allclose(layer(x), expected(x), atol=3e-6)
    normed, total = layer.add(x, residual)
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_allclose(normed, expected(total), atol=3e-6)


def test_embedding_takes_rows_and_gives_nan_outside_the_vocabulary(rng):
    weight = normal(rng, 5, 3)
    tokens = jnp.array([4, 0, 0, 5, -1, 2**31 - 1, -(2**31), 3], jnp.int32)
    rows = np.asarray(Embedding({"weight": weight})(tokens))
    np.testing.assert_array_equal(rows[[0, 1, 2, 7]], np.asarray(weight)[[4, 0, 0, 3]])
    assert np.isnan(rows[3:7]).all()


def test_weights_are_params_named_as_in_the_checkpoint(rng):
    linear = Linear({"weight": normal(rng, 2, 3), "bias": normal(rng, 2)})
    norm = RMSNorm({"weight": normal(rng, 3)}, eps=1e-6)
    for layer, names in (
        (linear, {"weight", "bias"}),
        (norm, {"weight"}),
        (Embedding({"weight": 0}), {"weight"}),
    ):
        assert {path[0] for path, _ in nnx.to_flat_state(nnx.state(layer, nnx.Param))} == names
    assert jax.tree.leaves(Linear({"weight": jnp.ones((2, 2))}).bias) == []
