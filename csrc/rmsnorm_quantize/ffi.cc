// FFI binding of mla_jax.rmsnorm_quantize.v1.
#include "common/backend.h"
#include "common/group_format_ffi.h"
#include "python/handlers.h"
#include "rmsnorm_quantize/kernel.h"

namespace mla {
namespace {

// Behind x and weight: the residual, if any. Behind data and scale: the unquantised rows, if
// asked for, and the sum with the residual, if any.
ffi::Error RmsNormQuantizeCall(Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer weight,
                               ffi::RemainingArgs more_args, int64_t offset, float eps,
                               float weight_offset, int64_t unquantized, int64_t format,
                               int64_t group_size, int64_t rounding, int64_t column_major,
                               ffi::Result<ffi::AnyBuffer> data, ffi::Result<ffi::AnyBuffer> scale,
                               ffi::RemainingRets more_rets) {
  Checker check("mla_jax.rmsnorm_quantize");
  RmsNormQuantizeArgs args = {};
  args.io_type = check.Type("x", x, {DType::kF32, DType::kBF16});
  args.weight_type = check.Type("weight", weight, {DType::kF32, DType::kBF16});
  check.Rank("x", x, 2);
  check.Rank("weight", weight, 1);
  const int64_t rows = Dim(x, 0);
  const int64_t n = Dim(weight, 0);
  args.width = Dim(x, 1);
  args.offset = offset;
  args.eps = eps;
  args.weight_offset = weight_offset;
  check.Require(offset >= 0 && n <= args.width && offset <= args.width - n, "offset",
                "0 <= offset and offset + " + std::to_string(n) +
                    " <= " + std::to_string(args.width) + " (the width of 'x')",
                std::to_string(offset));
  const bool residual = more_args.size() != 0;
  const size_t results = (unquantized != 0) + residual;
  check.Require(more_args.size() <= 1, "residual", "at most one argument behind 'weight'",
                std::to_string(more_args.size()));
  check.Require(more_rets.size() == results, "unquantized",
                std::to_string(results) + " results behind 'scale'",
                std::to_string(more_rets.size()));
  if (!check.ok()) return check.error();
  args.out =
      QuantizedResult(&check, {format, group_size, rounding, column_major}, rows, n, *data, *scale);
  const auto row_buffer = [&](const char* name, const ffi::AnyBuffer& buffer) {
    check.SameType(name, buffer, args.io_type, "x");
    check.Shape(name, buffer, {rows, n});
    return buffer.untyped_data();
  };
  if (residual) {
    args.residual = row_buffer("residual", *more_args.get<ffi::AnyBuffer>(0));
    args.sum = row_buffer("sum", **more_rets.get<ffi::AnyBuffer>(results - 1));
  }
  if (unquantized != 0) {
    args.unquantized = row_buffer("unquantized", **more_rets.get<ffi::AnyBuffer>(0));
  }
  if (!check.ok()) return check.error();
  args.x = x.untyped_data();
  args.weight = weight.untyped_data();
  return MLA_RUN(RmsNormQuantize, RmsNormQuantizeArgs, args, backend);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_rmsnorm_quantize_v1, mla::RmsNormQuantizeCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Attr<int64_t>("offset")
                                  .Attr<float>("eps")
                                  .Attr<float>("weight_offset")
                                  .Attr<int64_t>("unquantized")
                                  .Attr<int64_t>("format")
                                  .Attr<int64_t>("group_size")
                                  .Attr<int64_t>("rounding")
                                  .Attr<int64_t>("column_major")
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .RemainingRets(),
                              MLA_TRAITS);
