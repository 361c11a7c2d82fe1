"""One MLA layer in Flax and its gradient. Usage: python examples/03_layer_gradient.py MODEL"""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from mla_jax import AttentionMetadata, ModelConfig
from mla_jax.layers import MLAAttention

config = replace(ModelConfig.from_file(Path(sys.argv[1]) / "config.json"), dtype="float32")
layer = MLAAttention.init(config, jax.random.key(0), max_positions=64)
x = jax.random.normal(jax.random.key(1), (2 * 10, config.hidden_size), jnp.float32)
meta = AttentionMetadata.dense(batch=2, length=10)  # two whole sequences, no pool

y, _ = layer(x, None, meta)
print("output", y.shape, y.dtype)


def loss(layer, x):
    y, _ = layer(x, None, meta)
    return jnp.mean(y * y)


gradients = nnx.jit(nnx.grad(loss))(layer, x)
for path, gradient in nnx.to_flat_state(gradients):
    print(".".join(map(str, path)), gradient.shape, f"{float(jnp.linalg.norm(gradient[...])):.3e}")
