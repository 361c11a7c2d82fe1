// FFI binding of mla_jax.linear_quantized.v2 and mla_jax.linear_quantized_bias.v2.
#include "common/backend.h"
#include "common/ffi_checks.h"
#include "common/quantized_ffi.h"
#include "linear_quantized/kernel.h"
#include "python/handlers.h"

namespace mla {
namespace {

ffi::Error Call(const char* op, Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer data,
                ffi::AnyBuffer scale, const ffi::AnyBuffer* bias, int64_t code, int64_t block_n,
                int64_t block_k, ffi::AnyBuffer y) {
  Checker check(op);
  LinearQuantizedArgs args = {};
  int64_t stack = 1;
  args.w = QuantizedArgument(&check, "data", data, scale, code, block_n, block_k, &stack);
  args.x_type = check.Type("x", x, {DType::kF32, DType::kBF16});
  args.y_type = check.Type("y", y, {DType::kF32, DType::kBF16});
  check.Require(stack == 1, "data", "one matrix", "shape " + ShapeText(data.dimensions()));
  args.m = Dim(x, 0);
  check.Shape("x", x, {kAny, args.w.k});
  check.Shape("y", y, {args.m, args.w.n});
  check.Require(args.x_type == DType::kBF16 || args.y_type == DType::kF32, "y",
                "float32 (x is float32)", "bfloat16");
  if (bias != nullptr) {
    args.bias_type = check.Type("bias", *bias, {DType::kF32, DType::kBF16});
    check.Shape("bias", *bias, {args.w.n});
    args.bias = bias->untyped_data();
  }
  if (!check.ok()) return check.error();
  args.x = x.untyped_data();
  args.y = y.untyped_data();
  return MLA_RUN(LinearQuantized, LinearQuantizedArgs, args, backend);
}

ffi::Error LinearQuantizedCall(Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer data,
                               ffi::AnyBuffer scale, int64_t code, int64_t block_n, int64_t block_k,
                               ffi::Result<ffi::AnyBuffer> y) {
  return Call("mla_jax.linear_quantized", backend, x, data, scale, nullptr, code, block_n, block_k,
              *y);
}

ffi::Error LinearQuantizedBiasCall(Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer data,
                                   ffi::AnyBuffer scale, ffi::AnyBuffer bias, int64_t code,
                                   int64_t block_n, int64_t block_k,
                                   ffi::Result<ffi::AnyBuffer> y) {
  return Call("mla_jax.linear_quantized_bias", backend, x, data, scale, &bias, code, block_n,
              block_k, *y);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_linear_quantized_v2, mla::LinearQuantizedCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("code")
                                  .Attr<int64_t>("block_n")
                                  .Attr<int64_t>("block_k")
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_linear_quantized_bias_v2, mla::LinearQuantizedBiasCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("code")
                                  .Attr<int64_t>("block_n")
                                  .Attr<int64_t>("block_k")
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);
