"""Which file tests which ops' native forms: what runs on a GPU, or on its code objects in an emulator."""

# Test file: the ops whose native form it runs.
OPS: dict[str, tuple[str, ...]] = {
    "test_rope_append_latent.py": ("mla_jax.rope_append_latent", "mla_jax.rope_latent_rows"),
    "test_mla_attention.py": ("mla_jax.mla_attention",),
    "test_mla_attention_expanded.py": ("mla_jax.mla_attention_expanded",),
    "test_mxfp4_quantize.py": ("mla_jax.mxfp4_quantize",),
    "test_linear_quantized.py": (
        "mla_jax.linear_quantized",
        "mla_jax.linear_quantized_bias",
        "mla_jax.mxfp4_dequantize",
    ),
    "test_linear_mxfp4.py": ("mla_jax.linear_mxfp4",),
    "test_linear_shuffled.py": (
        "mla_jax.linear_shuffled",
        "mla_jax.linear_shuffled_bias",
        "mla_jax.shuffled_dequantize",
    ),
    "test_absorb_quantized.py": ("mla_jax.absorb_quantized",),
    "test_expert_mlp.py": ("mla_jax.expert_mlp",),
    "test_expert_mlp_quantized.py": ("mla_jax.expert_mlp_quantized",),
    "test_rmsnorm.py": ("mla_jax.rmsnorm", "mla_jax.rmsnorm_residual"),
    "test_rmsnorm_quantize.py": ("mla_jax.rmsnorm_quantize",),
    "test_flatten_quantize.py": ("mla_jax.flatten_quantize",),
    "test_fused_qk_rmsnorm.py": ("mla_jax.fused_qk_rmsnorm",),
    "test_rope_append_kv.py": ("mla_jax.rope_append_kv", "mla_jax.rope_append_kv_mapped"),
}

CHOSEN = "native and not refused_where_there_is_none"
"""pytest's -k: another platform's lowering is not what a process with one library has."""
