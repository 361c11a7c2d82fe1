// FFI binding of mla_jax.linear_mxfp4.v1, which only GPUs have.
#include "common/backend.h"
#include "common/quantized_ffi.h"
#include "linear_mxfp4/kernel.h"
#include "python/gpu_handlers.h"

namespace mla {
namespace {

ffi::Error LinearMxfp4Call(Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer x_scale,
                           ffi::AnyBuffer data, ffi::AnyBuffer scale,
                           ffi::Result<ffi::AnyBuffer> y) {
  Checker check("mla_jax.linear_mxfp4");
  constexpr auto kCode = static_cast<int64_t>(Code::kE2M1);
  int64_t stack = 1;
  const QuantizedMatrix left = QuantizedArgument(&check, "x", x, x_scale, kCode, 1, 32, &stack);
  check.Require(stack == 1, "x", "one matrix", "shape " + ShapeText(x.dimensions()));
  const QuantizedMatrix right =
      QuantizedArgument(&check, "data", data, scale, kCode, 1, 32, &stack);
  check.Require(stack == 1, "data", "one matrix", "shape " + ShapeText(data.dimensions()));
  check.Require(right.k % 32 == 0, "data", "a multiple of 32 columns", std::to_string(right.k));
  check.Require(left.k == right.k, "x", std::to_string(right.k) + " columns (those of 'data')",
                std::to_string(left.k));
  LinearMxfp4Args args = {};
  args.y_type = check.Type("y", *y, {DType::kF32, DType::kBF16});
  check.Shape("y", *y, {left.n, right.n});
  if (!check.ok()) return check.error();
  args.x = static_cast<const uint8_t*>(left.data);
  args.x_scale = static_cast<const uint8_t*>(left.scale);
  args.w = static_cast<const uint8_t*>(right.data);
  args.w_scale = static_cast<const uint8_t*>(right.scale);
  args.y = y->untyped_data();
  args.m = left.n;
  args.n = right.n;
  args.groups = right.k / 32;
  return MLA_RUN(LinearMxfp4, LinearMxfp4Args, args, backend);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_linear_mxfp4_v1, mla::LinearMxfp4Call,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);
