"""A tiny random model with every part a DeepSeek model can have."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mla_jax.config import ModelConfig, RopeConfig, RouterConfig, YarnConfig
from mla_jax.models import FrozenModel, MLAForCausalLM, freeze
from mla_jax.rope import RopeTable

CONFIG = ModelConfig(
    model_type="deepseek_v3",
    vocab_size=37,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    q_lora_rank=14,
    kv_lora_rank=16,
    qk_nope_head_dim=10,
    qk_rope_head_dim=6,
    v_head_dim=8,
    intermediate_size=20,
    moe_intermediate_size=9,
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_shared_experts=1,
    mlp_layer_types=("dense", "sparse"),
    router=RouterConfig("sigmoid", "noaux_tc", 4, 2, True, 2.5),
    rope=RopeConfig(1e4, 6, "interleaved", YarnConfig(40.0, 16, mscale=1.0, mscale_all_dim=0.707)),
    rms_norm_eps=1e-5,
    latent_norm_eps=1e-6,
    max_position_embeddings=96,
    attention_bias=True,
    mlp_bias=True,
)


def tiny_model() -> FrozenModel:
    """Weights a little larger than usual; no norm weight is 1 and no bias is 0. Drawn by NumPy: nothing compiles."""
    model = freeze(MLAForCausalLM.abstract(CONFIG, kernels="reference"))
    rng = np.random.default_rng(12)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.ndim > 1:
            values = 1.5 * rng.standard_normal(leaf.shape) / np.sqrt(leaf.shape[-1])
        else:
            is_norm = "norm" in jax.tree_util.keystr(path)
            values = is_norm + np.linspace(-0.2, 0.2, leaf.size)
        return jnp.asarray(values.astype(leaf.dtype))

    params = jax.tree_util.tree_map_with_path(draw, model.params)
    table = RopeTable.from_config(CONFIG.rope, CONFIG.max_position_embeddings)
    return dataclasses.replace(model, params=params, rope_cos=table.cos, rope_sin=table.sin)
