"""The operations of mla_jax: one module an op, each with its contract, reference and native call.

This package knows arrays and static integers; it knows nothing of models. The typed functions that
users call (`mla_jax.rope_append_latent`, `mla_jax.mla_attention`, ...) wrap these ops with the pytrees
that make misuse impossible.

Importing the package registers every op in `custom_calls.op.OPS`; a new op is one module and one line here.
"""

from custom_calls import (
    absorb,
    absorb_quantized,
    expert_mlp,
    expert_mlp_quantized,
    flatten_quantize,
    fused_qk_rmsnorm,
    gqa_attention,
    linear,
    linear_fp8,
    linear_mxfp4,
    linear_quantized,
    linear_shuffled,
    linear_vnni,
    mla_attention,
    mla_attention_expanded,
    mxfp4_quantize,
    rmsnorm,
    rmsnorm_quantize,
    rope_append_kv,
    rope_append_latent,
)

__all__ = [
    "absorb",
    "absorb_quantized",
    "expert_mlp",
    "expert_mlp_quantized",
    "flatten_quantize",
    "fused_qk_rmsnorm",
    "gqa_attention",
    "linear",
    "linear_fp8",
    "linear_mxfp4",
    "linear_quantized",
    "linear_shuffled",
    "linear_vnni",
    "mla_attention",
    "mla_attention_expanded",
    "mxfp4_quantize",
    "rmsnorm",
    "rmsnorm_quantize",
    "rope_append_kv",
    "rope_append_latent",
]
