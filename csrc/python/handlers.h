// The FFI handlers of this library and the list of their target names.
#ifndef MLA_PYTHON_HANDLERS_H_
#define MLA_PYTHON_HANDLERS_H_

#include "xla/ffi/api/c_api.h"

// target(name, handler, contract) for every target, with `between` in between. `contract` is the
// version of the operands' meaning: it must change whenever an old caller would be misunderstood.
// clang-format off
#define MLA_FOR_EACH_TARGET(target, between) \
  target("mla_jax.rmsnorm.v1", mla_jax_rmsnorm_v1, 1) between \
  target("mla_jax.rmsnorm_residual.v1", mla_jax_rmsnorm_residual_v1, 1) between \
  target("mla_jax.rope_append_latent.v1", mla_jax_rope_append_latent_v1, 1) between \
  target("mla_jax.rope_latent_rows.v1", mla_jax_rope_latent_rows_v1, 1) between \
  target("mla_jax.mla_attention.v1", mla_jax_mla_attention_v1, 1) between \
  target("mla_jax.mla_attention_expanded.v1", mla_jax_mla_attention_expanded_v1, 1) between \
  target("mla_jax.linear.v1", mla_jax_linear_v1, 1) between \
  target("mla_jax.linear_bias.v1", mla_jax_linear_bias_v1, 1) between \
  target("mla_jax.absorb.v1", mla_jax_absorb_v1, 1) between \
  target("mla_jax.expert_mlp.v1", mla_jax_expert_mlp_v1, 1) between \
  target("mla_jax.mxfp4_quantize.v1", mla_jax_mxfp4_quantize_v1, 1) between \
  target("mla_jax.linear_quantized.v1", mla_jax_linear_quantized_v1, 1) between \
  target("mla_jax.linear_quantized_bias.v1", mla_jax_linear_quantized_bias_v1, 1) between \
  target("mla_jax.absorb_quantized.v1", mla_jax_absorb_quantized_v1, 1) between \
  target("mla_jax.expert_mlp_quantized.v1", mla_jax_expert_mlp_quantized_v1, 1) between \
  target("mla_jax.flatten_quantize.v1", mla_jax_flatten_quantize_v1, 1) between \
  target("mla_jax.rmsnorm_quantize.v1", mla_jax_rmsnorm_quantize_v1, 1)
// clang-format on

#define MLA_DECLARE_TARGET(name, handler, contract) \
  extern "C" XLA_FFI_Error* handler(XLA_FFI_CallFrame* call_frame);
MLA_FOR_EACH_TARGET(MLA_DECLARE_TARGET, )
#undef MLA_DECLARE_TARGET

#endif  // MLA_PYTHON_HANDLERS_H_
