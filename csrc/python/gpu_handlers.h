// The targets that the GPU libraries serve; see handlers.h.
#ifndef MLA_PYTHON_GPU_HANDLERS_H_
#define MLA_PYTHON_GPU_HANDLERS_H_

#include "python/targets.h"

// clang-format off
#define MLA_FOR_EACH_GPU_TARGET(target) \
  target(rope_append_latent, 1) \
  target(rope_latent_rows, 1) \
  target(mla_attention, 2) \
  target(mla_attention_expanded, 1) \
  target(mxfp4_quantize, 1) \
  target(mxfp4_dequantize, 1) \
  target(linear_quantized, 2) \
  target(linear_quantized_bias, 2) \
  target(linear_fp8, 1) \
  target(linear_mxfp4, 1) \
  target(linear_shuffled, 1) \
  target(linear_shuffled_bias, 1) \
  target(shuffled_dequantize, 1) \
  target(absorb_quantized, 2) \
  target(expert_mlp, 2) \
  target(expert_mlp_quantized, 4) \
  target(rmsnorm, 1) \
  target(rmsnorm_residual, 1) \
  target(rmsnorm_quantize, 1) \
  target(flatten_quantize, 1) \
  target(fused_qk_rmsnorm, 2) \
  target(rope_append_kv, 1) \
  target(rope_append_kv_mapped, 1)
// clang-format on

MLA_FOR_EACH_GPU_TARGET(MLA_DECLARE_TARGET)

#endif  // MLA_PYTHON_GPU_HANDLERS_H_
