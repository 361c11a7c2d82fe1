// FFI binding of mla_jax.expert_mlp.v1.
#include "common/backend.h"
#include "common/ffi_checks.h"
#include "expert_mlp/kernel.h"
#include "expert_mlp/scratch_ffi.h"
#include "python/targets.h"

namespace mla {
namespace {

ffi::Error Call(Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer gate_up, ffi::AnyBuffer down,
                ffi::AnyBuffer topk_ids, ffi::AnyBuffer topk_weights, ffi::Result<ffi::AnyBuffer> y,
                ffi::RemainingRets scratch) {
  Checker check("mla_jax.expert_mlp");
  ExpertMlpArgs args = {};
  args.io_type = check.Type("x", x, {DType::kF32, DType::kBF16});
  check.SameType("gate_up", gate_up, args.io_type, "x");
  check.SameType("down", down, args.io_type, "x");
  check.Int32("topk_ids", topk_ids);
  check.SameType("topk_weights", topk_weights, DType::kF32, "topk_weights");
  check.SameType("y", *y, args.io_type, "x");
  check.Rank("x", x, 2);
  check.Rank("down", down, 3);
  check.Rank("topk_ids", topk_ids, 2);
  args.tokens = Dim(x, 0);
  args.hidden = Dim(x, 1);
  args.experts = Dim(down, 0);
  args.inner = Dim(down, 2);
  args.slots = Dim(topk_ids, 1);
  check.Shape("down", down, {kAny, args.hidden, kAny});
  check.Shape("gate_up", gate_up, {args.experts, 2 * args.inner, args.hidden});
  check.Shape("topk_ids", topk_ids, {args.tokens, kAny});
  check.Shape("topk_weights", topk_weights, {args.tokens, args.slots});
  check.Shape("y", *y, {args.tokens, args.hidden});
  ExpertScratch(check, scratch, args);
  if (!check.ok()) return check.error();
  args.x = x.untyped_data();
  args.gate_up = gate_up.untyped_data();
  args.down = down.untyped_data();
  args.ids = static_cast<const int32_t*>(topk_ids.untyped_data());
  args.weights = static_cast<const float*>(topk_weights.untyped_data());
  args.y = y->untyped_data();
  return MLA_RUN(ExpertMlp, ExpertMlpArgs, args, backend);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(MLA_SCRATCH_HANDLER(expert_mlp, 1, 2), mla::Call,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .RemainingRets(),
                              MLA_TRAITS);
