// FFI binding of mla_jax.linear.v1 and mla_jax.linear_bias.v1.
#include "common/ffi_checks.h"
#include "common/parallel_for.h"
#include "linear/cpu_kernel.h"
#include "python/handlers.h"

namespace mla {
namespace {

ffi::Error Call(const char* op, ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w,
                const ffi::AnyBuffer* bias, ffi::AnyBuffer y) {
  Checker check(op);
  LinearArgs args = {};
  args.x_type = check.Type("x", x, {DType::kF32, DType::kBF16});
  args.w_type = check.Type("w", w, {DType::kF32, DType::kBF16});
  args.y_type = check.Type("y", y, {DType::kF32, DType::kBF16});
  check.Rank("x", x, 2);
  args.m = Dim(x, 0);
  args.k = Dim(x, 1);
  check.Shape("w", w, {kAny, args.k});
  args.n = Dim(w, 0);
  check.Shape("y", y, {args.m, args.n});
  check.Require(args.x_type == DType::kF32 || args.w_type == DType::kBF16, "w",
                "bfloat16 (x is bfloat16)", "float32");
  check.Require(args.x_type == DType::kBF16 || args.y_type == DType::kF32, "y",
                "float32 (x is float32)", "bfloat16");
  if (bias != nullptr) {
    args.bias_type = check.Type("bias", *bias, {DType::kF32, DType::kBF16});
    check.Shape("bias", *bias, {args.n});
    args.bias = bias->untyped_data();
  }
  if (!check.ok()) return check.error();
  args.x = x.untyped_data();
  args.w = w.untyped_data();
  args.y = y.untyped_data();
  MLA_KERNEL(Linear, LinearArgs)(args, PoolExecutor(pool));
  return ffi::Error::Success();
}

ffi::Error LinearCall(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w,
                      ffi::Result<ffi::AnyBuffer> y) {
  return Call("mla_jax.linear", pool, x, w, nullptr, *y);
}

ffi::Error LinearBiasCall(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w,
                          ffi::AnyBuffer bias, ffi::Result<ffi::AnyBuffer> y) {
  return Call("mla_jax.linear_bias", pool, x, w, &bias, *y);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_linear_v1, mla::LinearCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_linear_bias_v1, mla::LinearBiasCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());
