// The scratch that GPUs are given as further results.
#ifndef MLA_EXPERT_MLP_SCRATCH_FFI_H_
#define MLA_EXPERT_MLP_SCRATCH_FFI_H_

#include "common/ffi_checks.h"
#include "expert_mlp/kernel.h"

namespace mla {

// Checks it against the sizes in `args`, and stores it there; a GPU must have it.
inline void ExpertScratch(Checker& check, ffi::RemainingRets& scratch, ExpertMlpArgs& args) {
  if (!check.Scratch(scratch, 3) || !check.ok()) return;
  auto plan = *scratch.get<ffi::AnyBuffer>(0);
  auto gated = *scratch.get<ffi::AnyBuffer>(1), sums = *scratch.get<ffi::AnyBuffer>(2);
  const int64_t pairs = args.tokens * args.slots;
  check.Int32("plan", *plan);
  check.Shape("plan", *plan, {PlanSize(args)});
  check.SameType("gated", *gated, args.io_type, "x");
  check.Shape("gated", *gated, {pairs, args.inner});
  check.SameType("sums", *sums, DType::kF32, "topk_weights");
  check.Shape("sums", *sums, {pairs, args.hidden});
  args.plan = static_cast<int32_t*>(plan->untyped_data());
  args.gated = gated->untyped_data();
  args.sums = static_cast<float*>(sums->untyped_data());
}

}  // namespace mla

#endif  // MLA_EXPERT_MLP_SCRATCH_FFI_H_
