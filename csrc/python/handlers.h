// The targets that the CPU's library serves.
#ifndef MLA_PYTHON_HANDLERS_H_
#define MLA_PYTHON_HANDLERS_H_

#include "python/targets.h"

// target(op, contract) for every target, with `between` in between.
// clang-format off
#define MLA_FOR_EACH_TARGET(target, between) \
  target(rmsnorm, 1) between \
  target(rmsnorm_residual, 1) between \
  target(rope_append_latent, 1) between \
  target(rope_latent_rows, 1) between \
  target(rope_append_kv, 1) between \
  target(rope_append_kv_mapped, 1) between \
  target(mla_attention, 1) between \
  target(mla_attention_expanded, 1) between \
  target(linear, 1) between \
  target(linear_bias, 1) between \
  target(absorb, 1) between \
  target(expert_mlp, 1) between \
  target(mxfp4_quantize, 1) between \
  target(linear_quantized, 2) between \
  target(linear_quantized_bias, 2) between \
  target(linear_vnni, 1) between \
  target(linear_vnni_bias, 1) between \
  target(absorb_quantized, 2) between \
  target(expert_mlp_quantized, 3) between \
  target(flatten_quantize, 1) between \
  target(rmsnorm_quantize, 1) between \
  target(fused_qk_rmsnorm, 2)
// clang-format on

MLA_FOR_EACH_TARGET(MLA_DECLARE_TARGET, )

#endif  // MLA_PYTHON_HANDLERS_H_
