"""Flax NNX layers that are pure functions of their arguments: `layer(x, cache, meta) -> (y, cache)`."""

from mla_jax.layers.attention import MLAAttention, expanded_is_cheaper
from mla_jax.layers.basic import Embedding, Linear, RMSNorm
from mla_jax.layers.decoder import DecoderLayer
from mla_jax.layers.mlp import MLP
from mla_jax.layers.moe import MoE, Router
from mla_jax.layers.rope_state import RopeState

__all__ = [
    "MLP",
    "DecoderLayer",
    "Embedding",
    "Linear",
    "MLAAttention",
    "MoE",
    "RMSNorm",
    "RopeState",
    "Router",
    "expanded_is_cheaper",
]
