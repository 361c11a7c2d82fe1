// FFI binding of mla_jax.mxfp4_quantize.v1: flatten_quantize of rows without heads, whose last
// group need not be whole.
#include "common/backend.h"
#include "common/ffi_checks.h"
#include "flatten_quantize/kernel.h"
#include "python/handlers.h"

namespace mla {
namespace {

ffi::Error Mxfp4QuantizeCall(Backend backend, ffi::AnyBuffer x, int64_t rounding,
                             ffi::Result<ffi::AnyBuffer> data, ffi::Result<ffi::AnyBuffer> scale) {
  Checker check("mla_jax.mxfp4_quantize");
  FlattenQuantizeArgs args = {};
  args.x_type = check.Type("x", x, {DType::kF32, DType::kBF16});
  check.Type("data", *data, {DType::kU8});
  check.Type("scale", *scale, {DType::kU8});
  const auto dims = x.dimensions();
  const int64_t k = dims.size() == 0 ? 0 : dims.back();
  check.Require(k > 0 && k % 2 == 0, "x", "(..., K) with K even and positive", ShapeText(dims));
  check.Require(rounding >= 0 && rounding <= 3, "rounding", "0 to 3", std::to_string(rounding));
  if (!check.ok()) return check.error();
  const int64_t rows = static_cast<int64_t>(x.element_count()) / k;
  const int64_t groups = (k + kMxfp4Group - 1) / kMxfp4Group;
  check.Require(static_cast<int64_t>(data->element_count()) == rows * k / 2, "data",
                std::to_string(rows * k / 2) + " elements", ShapeText(data->dimensions()));
  check.Require(static_cast<int64_t>(scale->element_count()) == rows * groups, "scale",
                std::to_string(rows * groups) + " elements", ShapeText(scale->dimensions()));
  if (!check.ok()) return check.error();
  args.x = x.untyped_data();
  args.out.data = static_cast<uint8_t*>(data->untyped_data());
  args.out.scale = scale->untyped_data();
  args.out.format = GroupFormat::kMxfp4;
  args.out.rounding = static_cast<Rounding>(rounding);
  args.out.rows = rows;
  args.out.k = k;
  args.out.group = kMxfp4Group;
  return MLA_RUN(FlattenQuantize, FlattenQuantizeArgs, args, backend);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_mxfp4_quantize_v1, mla::Mxfp4QuantizeCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("rounding")
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);
