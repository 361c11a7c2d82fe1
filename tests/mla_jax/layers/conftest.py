"""One small configuration that the layer tests vary."""

import pytest

from mla_jax.config import ModelConfig, RopeConfig, RouterConfig


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig(
        model_type="deepseek_v3",
        vocab_size=11,
        hidden_size=18,
        num_hidden_layers=2,
        num_attention_heads=3,
        q_lora_rank=14,
        kv_lora_rank=10,
        qk_nope_head_dim=5,
        qk_rope_head_dim=6,
        v_head_dim=7,
        intermediate_size=20,
        moe_intermediate_size=9,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_shared_experts=2,
        mlp_layer_types=("dense", "sparse"),
        router=RouterConfig("sigmoid", "noaux_tc", 4, 2, True, 2.5),
        rope=RopeConfig(1e4, 6, "interleaved"),
        rms_norm_eps=1e-5,
        latent_norm_eps=1e-6,
        max_position_embeddings=64,
    )
