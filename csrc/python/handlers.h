// The FFI handlers of this library and the list of their target names.
#ifndef MLA_PYTHON_HANDLERS_H_
#define MLA_PYTHON_HANDLERS_H_

#include "xla/ffi/api/c_api.h"

// target(op, contract) for every target, with `between` in between. `contract` is the version of
// the operands' meaning: it must change whenever an old caller would be misunderstood. The target's
// name, its handler's and the ABI record follow from these two.
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
  target(linear_quantized, 1) between \
  target(linear_quantized_bias, 1) between \
  target(absorb_quantized, 1) between \
  target(expert_mlp_quantized, 1) between \
  target(flatten_quantize, 1) between \
  target(rmsnorm_quantize, 1) between \
  target(fused_qk_rmsnorm, 2)
// clang-format on

#define MLA_TARGET_HANDLER(op, contract) mla_jax_##op##_v##contract
#define MLA_TARGET_NAME(op, contract) "mla_jax." #op ".v" #contract

#define MLA_DECLARE_TARGET(op, contract) \
  extern "C" XLA_FFI_Error* MLA_TARGET_HANDLER(op, contract)(XLA_FFI_CallFrame * call_frame);
MLA_FOR_EACH_TARGET(MLA_DECLARE_TARGET, )
#undef MLA_DECLARE_TARGET

#endif  // MLA_PYTHON_HANDLERS_H_
