"""The gated MLP against NumPy, and its one rounding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mla_jax.layers import MLP
from mla_jax.parameters import parameter_table, random_parameters


@pytest.mark.parametrize("kernels", ["reference", "native"])
@pytest.mark.parametrize("bias", [False, True])
def test_mlp_is_down_of_silu_gate_times_up(rng, config, bias, kernels):
    table = parameter_table(dataclasses.replace(config, mlp_bias=bias))["model"]["layers"][0]["mlp"]
    params = random_parameters(table, jax.random.key(0), "float32")
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    assert ("bias" in params["up_proj"]) == bias
    x = jnp.asarray(rng.standard_normal((5, 18)), jnp.float32)

    def dense(name, values):
        weight = np.asarray(params[name]["weight"], np.float64)
        return values @ weight.T + (np.asarray(params[name]["bias"], np.float64) if bias else 0)

    exact = np.asarray(x, np.float64)
    gate = dense("gate_proj", exact)
    expected = dense("down_proj", gate / (1 + np.exp(-gate)) * dense("up_proj", exact))
    np.testing.assert_allclose(MLP(params, kernels=kernels)(x), expected, atol=2e-5)


@pytest.mark.parametrize("kernels", ["reference", "native"])
def test_the_product_is_rounded_once(rng, kernels):
    """gate and up stay float32 until their product: exactly what one expert computes."""
    eye = jnp.eye(64, dtype=jnp.bfloat16)
    weights = [jnp.asarray(rng.standard_normal((64, 64)), jnp.bfloat16) for _ in range(2)]
    params = {
        "gate_proj": {"weight": weights[0]},
        "up_proj": {"weight": weights[1]},
        "down_proj": {"weight": eye},
    }
    x = jnp.asarray(rng.standard_normal((9, 64)), jnp.bfloat16)
    gate, up = (np.asarray(x, np.float64) @ np.asarray(w, np.float64).T for w in weights)
    exact = gate / (1 + np.exp(-gate)) * up
    got = np.asarray(MLP(params, kernels=kernels)(x), np.float64)
    # Half a unit in the last of 8 bits, and room for the float32 sums; two roundings reach 1.5 units.
    assert (np.abs(got - exact) <= 2**-9 * 1.02 * np.abs(exact) * 2 + 1e-4).all()
    assert np.mean(got == np.asarray(jnp.asarray(exact, jnp.bfloat16), np.float64)) > 0.98
