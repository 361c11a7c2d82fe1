// FFI bindings of mla_jax.linear_vnni.v1 and mla_jax.linear_vnni_bias.v1, which only CPUs have:
// linear_quantized over MXFP4 weights in the vnni layout.
#include "common/backend.h"
#include "common/ffi_checks.h"
#include "linear_quantized/kernel.h"
#include "python/handlers.h"

namespace mla {
namespace {

ffi::Error Call(const char* op, Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer data,
                ffi::AnyBuffer scale, const ffi::AnyBuffer* bias, ffi::AnyBuffer y) {
  Checker check(op);
  LinearQuantizedArgs args = {};
  args.x_type = check.Type("x", x, {DType::kF32, DType::kBF16});
  args.y_type = check.Type("y", y, {DType::kF32, DType::kBF16});
  check.Type("data", data, {DType::kU8});
  check.Type("scale", scale, {DType::kU8});
  check.Shape("data", data, {kAny, kAny, 4, 64});
  check.Shape("y", y, {kAny, kAny});
  if (!check.ok()) return check.error();
  const int64_t tiles = Dim(data, 0), blocks = Dim(data, 1);
  args.m = Dim(x, 0);
  QuantizedMatrix& w = args.w;
  w = {static_cast<const uint8_t*>(data.untyped_data()),
       scale.untyped_data(),
       Code::kE2M1Vnni,
       DType::kU8,
       Dim(y, 1),
       blocks * kVnniColumns,
       1,
       kVnniColumns};
  check.Shape("scale", scale, {tiles, blocks, kVnniRows});
  check.Require(tiles == (w.n + kVnniRows - 1) / kVnniRows, "data", "a tile for every 16 rows",
                std::to_string(tiles) + " tiles for " + std::to_string(w.n) + " rows");
  check.Shape("x", x, {kAny, w.k});
  check.Shape("y", y, {args.m, w.n});
  check.Require(args.x_type == DType::kBF16 || args.y_type == DType::kF32, "y",
                "float32 (x is float32)", "bfloat16");
  if (bias != nullptr) {
    args.bias_type = check.Type("bias", *bias, {DType::kF32, DType::kBF16});
    check.Shape("bias", *bias, {w.n});
    args.bias = bias->untyped_data();
  }
  if (!check.ok()) return check.error();
  args.x = x.untyped_data();
  args.y = y.untyped_data();
  return MLA_RUN(LinearQuantized, LinearQuantizedArgs, args, backend);
}

ffi::Error LinearVnniCall(Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer data,
                          ffi::AnyBuffer scale, ffi::Result<ffi::AnyBuffer> y) {
  return Call("mla_jax.linear_vnni", backend, x, data, scale, nullptr, *y);
}

ffi::Error LinearVnniBiasCall(Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer data,
                              ffi::AnyBuffer scale, ffi::AnyBuffer bias,
                              ffi::Result<ffi::AnyBuffer> y) {
  return Call("mla_jax.linear_vnni_bias", backend, x, data, scale, &bias, *y);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_linear_vnni_v1, mla::LinearVnniCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_linear_vnni_bias_v1, mla::LinearVnniBiasCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);
