// FFI binding of mla_jax.flatten_quantize.v1.
#include "common/backend.h"
#include "common/group_format_ffi.h"
#include "flatten_quantize/kernel.h"
#include "python/handlers.h"

namespace mla {
namespace {

ffi::Error FlattenQuantizeCall(Backend backend, ffi::AnyBuffer x, int64_t format,
                               int64_t group_size, int64_t rounding, int64_t column_major,
                               ffi::Result<ffi::AnyBuffer> data,
                               ffi::Result<ffi::AnyBuffer> scale) {
  Checker check("mla_jax.flatten_quantize");
  FlattenQuantizeArgs args = {};
  args.x_type = check.Type("x", x, {DType::kF32, DType::kBF16});
  check.Rank("x", x, 3);
  // Groups of MXFP4 never cross a head.
  check.Require(format != 0 || Dim(x, 2) % kMxfp4Group == 0, "x",
                "heads whose width is a multiple of 32", ShapeText(x.dimensions()));
  if (!check.ok()) return check.error();
  args.out = QuantizedResult(&check, {format, group_size, rounding, column_major}, Dim(x, 0),
                             Dim(x, 1) * Dim(x, 2), *data, *scale);
  if (!check.ok()) return check.error();
  args.x = x.untyped_data();
  return MLA_RUN(FlattenQuantize, FlattenQuantizeArgs, args, backend);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_flatten_quantize_v1, mla::FlattenQuantizeCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("format")
                                  .Attr<int64_t>("group_size")
                                  .Attr<int64_t>("rounding")
                                  .Attr<int64_t>("column_major")
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);
