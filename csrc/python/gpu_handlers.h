// The targets that the GPU libraries serve; see handlers.h for what `contract` means.
#ifndef MLA_PYTHON_GPU_HANDLERS_H_
#define MLA_PYTHON_GPU_HANDLERS_H_

#include "xla/ffi/api/c_api.h"

// clang-format off
#define MLA_FOR_EACH_GPU_TARGET(target) \
  target("mla_jax.rope_append_latent.v1", mla_jax_rope_append_latent_v1, 1) \
  target("mla_jax.rope_latent_rows.v1", mla_jax_rope_latent_rows_v1, 1) \
  target("mla_jax.mla_attention.v1", mla_jax_mla_attention_v1, 1) \
  target("mla_jax.mxfp4_quantize.v1", mla_jax_mxfp4_quantize_v1, 1) \
  target("mla_jax.mxfp4_dequantize.v1", mla_jax_mxfp4_dequantize_v1, 1) \
  target("mla_jax.linear_quantized.v1", mla_jax_linear_quantized_v1, 1) \
  target("mla_jax.linear_quantized_bias.v1", mla_jax_linear_quantized_bias_v1, 1) \
  target("mla_jax.absorb_quantized.v1", mla_jax_absorb_quantized_v1, 1) \
  target("mla_jax.expert_mlp.v1", mla_jax_expert_mlp_v1, 1) \
  target("mla_jax.expert_mlp_quantized.v1", mla_jax_expert_mlp_quantized_v1, 1)
// clang-format on

#define MLA_DECLARE_GPU_TARGET(name, handler, contract) \
  extern "C" XLA_FFI_Error* handler(XLA_FFI_CallFrame* call_frame);
MLA_FOR_EACH_GPU_TARGET(MLA_DECLARE_GPU_TARGET)
#undef MLA_DECLARE_GPU_TARGET

#endif  // MLA_PYTHON_GPU_HANDLERS_H_
