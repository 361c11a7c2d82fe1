// FFI binding of mla_jax.rmsnorm.v1 and mla_jax.rmsnorm_residual.v1.
#include "common/backend.h"
#include "common/ffi_checks.h"
#include "python/handlers.h"
#include "rmsnorm/kernel.h"

namespace mla {
namespace {

ffi::Error Call(const char* op, Backend backend, ffi::AnyBuffer x, const ffi::AnyBuffer* residual,
                ffi::AnyBuffer weight, int64_t offset, float eps, ffi::AnyBuffer y,
                const ffi::AnyBuffer* sum) {
  Checker check(op);
  RmsNormArgs args = {};
  args.io_type = check.Type("x", x, {DType::kF32, DType::kBF16});
  args.weight_type = check.Type("weight", weight, {DType::kF32, DType::kBF16});
  check.Rank("x", x, 2);
  check.Rank("weight", weight, 1);
  args.rows = Dim(x, 0);
  args.width = Dim(x, 1);
  args.n = Dim(weight, 0);
  args.offset = offset;
  args.eps = eps;
  check.Require(offset >= 0 && args.n <= args.width && offset <= args.width - args.n, "offset",
                "0 <= offset and offset + " + std::to_string(args.n) +
                    " <= " + std::to_string(args.width) + " (the width of 'x')",
                std::to_string(offset));
  check.SameType("y", y, args.io_type, "x");
  check.Shape("y", y, {args.rows, args.n});
  if (residual != nullptr) {
    check.SameType("residual", *residual, args.io_type, "x");
    check.Shape("residual", *residual, {args.rows, args.n});
    check.SameType("sum", *sum, args.io_type, "x");
    check.Shape("sum", *sum, {args.rows, args.n});
    args.residual = residual->untyped_data();
    args.sum = sum->untyped_data();
  }
  if (!check.ok()) return check.error();
  args.x = x.untyped_data();
  args.weight = weight.untyped_data();
  args.y = y.untyped_data();
  return MLA_RUN(RmsNorm, RmsNormArgs, args, backend);
}

ffi::Error NormCall(Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer weight, int64_t offset,
                    float eps, ffi::Result<ffi::AnyBuffer> y) {
  return Call("mla_jax.rmsnorm", backend, x, nullptr, weight, offset, eps, *y, nullptr);
}

ffi::Error ResidualCall(Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer residual,
                        ffi::AnyBuffer weight, int64_t offset, float eps,
                        ffi::Result<ffi::AnyBuffer> y, ffi::Result<ffi::AnyBuffer> sum) {
  const ffi::AnyBuffer sum_buffer = *sum;
  return Call("mla_jax.rmsnorm_residual", backend, x, &residual, weight, offset, eps, *y,
              &sum_buffer);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_rmsnorm_v1, mla::NormCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("offset")
                                  .Attr<float>("eps")
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_rmsnorm_residual_v1, mla::ResidualCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("offset")
                                  .Attr<float>("eps")
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);
