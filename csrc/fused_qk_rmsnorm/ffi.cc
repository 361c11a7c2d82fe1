// FFI binding of mla_jax.fused_qk_rmsnorm.v2: in place, its options are named attributes.
#include "common/backend.h"
#include "common/ffi_checks.h"
#include "fused_qk_rmsnorm/kernel.h"
#include "python/handlers.h"

namespace mla {
namespace {

ffi::Error Call(Backend backend, ffi::AnyBuffer q_a, ffi::AnyBuffer kv_a, ffi::AnyBuffer q_weight,
                ffi::AnyBuffer kv_weight, float q_eps, float kv_eps,
                ffi::Result<ffi::AnyBuffer> new_q_a, ffi::Result<ffi::AnyBuffer> new_kv_a) {
  Checker check("mla_jax.fused_qk_rmsnorm");
  FusedQkRmsNormArgs args = {};
  args.io_type = check.Type("q_a", q_a, {DType::kF32, DType::kBF16});
  check.SameType("kv_a", kv_a, args.io_type, "q_a");
  args.q.weight_type = check.Type("q_weight", q_weight, {DType::kF32, DType::kBF16});
  args.kv.weight_type = check.Type("kv_weight", kv_weight, {DType::kF32, DType::kBF16});
  check.Rank("q_a", q_a, 2);
  check.Rank("kv_weight", kv_weight, 1);
  args.rows = Dim(q_a, 0);
  args.q.width = args.q.n = Dim(q_a, 1);
  args.kv.width = Dim(kv_a, 1);
  args.kv.n = Dim(kv_weight, 0);
  check.Shape("kv_a", kv_a, {args.rows, kAny});
  check.Shape("q_weight", q_weight, {args.q.n});
  check.Require(args.kv.n <= args.kv.width, "kv_weight",
                "at most " + std::to_string(args.kv.width) + " elements (the width of 'kv_a')",
                std::to_string(args.kv.n));
  check.SameType("new_q_a", *new_q_a, args.io_type, "q_a");
  check.Shape("new_q_a", *new_q_a, {args.rows, args.q.width});
  check.SameType("new_kv_a", *new_kv_a, args.io_type, "q_a");
  check.Shape("new_kv_a", *new_kv_a, {args.rows, args.kv.width});
  check.Same("new_q_a", *new_q_a, "q_a", q_a);
  check.Same("new_kv_a", *new_kv_a, "kv_a", kv_a);
  if (!check.ok()) return check.error();
  args.q.values = new_q_a->untyped_data();
  args.q.weight = q_weight.untyped_data();
  args.q.eps = q_eps;
  args.kv.values = new_kv_a->untyped_data();
  args.kv.weight = kv_weight.untyped_data();
  args.kv.eps = kv_eps;
  return MLA_RUN(FusedQkRmsNorm, FusedQkRmsNormArgs, args, backend);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_fused_qk_rmsnorm_v2, mla::Call,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Attr<float>("q_eps")
                                  .Attr<float>("kv_eps")
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);
