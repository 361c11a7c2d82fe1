// FFI bindings of mla_jax.linear_shuffled.v1, mla_jax.linear_shuffled_bias.v1 and
// mla_jax.shuffled_dequantize.v1, which only GPUs have.
#include "common/backend.h"
#include "common/ffi_checks.h"
#include "linear_shuffled/kernel.h"
#include "python/gpu_handlers.h"

namespace mla {
namespace {

// Fills in tiles, chunks and rows.
void ShuffledArgument(Checker* check, const ffi::AnyBuffer& data, const ffi::AnyBuffer& scale,
                      int64_t rows, LinearShuffledArgs* args) {
  check->Type("data", data, {DType::kU8});
  check->Type("scale", scale, {DType::kU8});
  check->Shape("data", data, {kAny, kAny, 16, 16});
  if (!check->ok()) return;
  args->tiles = Dim(data, 0);
  args->chunks = Dim(data, 1);
  args->scale_chunks = (args->chunks + 15) / 16;
  args->rows = rows;
  check->Shape("scale", scale, {args->tiles, args->scale_chunks, 16, 16});
  check->Require(args->tiles == (rows + 15) / 16, "data", "a tile for every 16 rows",
                 std::to_string(args->tiles) + " tiles for " + std::to_string(rows) + " rows");
  args->data = static_cast<const uint8_t*>(data.untyped_data());
  args->scale = static_cast<const uint8_t*>(scale.untyped_data());
}

ffi::Error Call(const char* op, Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer data,
                ffi::AnyBuffer scale, const ffi::AnyBuffer* bias, ffi::AnyBuffer y,
                ffi::AnyBuffer arranged) {
  Checker check(op);
  LinearShuffledArgs args = {};
  check.Type("x", x, {DType::kBF16});
  check.Shape("x", x, {kAny, kAny});
  args.y_type = check.Type("y", y, {DType::kF32, DType::kBF16});
  check.Shape("y", y, {kAny, kAny});
  check.Type("arranged", arranged, {DType::kU8});
  if (!check.ok()) return check.error();
  ShuffledArgument(&check, data, scale, Dim(y, 1), &args);
  if (!check.ok()) return check.error();
  args.tokens = Dim(x, 0);
  check.Shape("x", x, {args.tokens, 32 * args.chunks});
  check.Shape("y", y, {args.tokens, args.rows});
  check.Require(args.tokens <= kShuffledTokens, "x",
                "at most " + std::to_string(kShuffledTokens) + " rows",
                std::to_string(args.tokens));
  const int64_t bytes = ArrangedBytes(args.tokens, args.chunks);
  check.Shape("arranged", arranged, {bytes});
  if (bias != nullptr) {
    args.bias_type = check.Type("bias", *bias, {DType::kF32, DType::kBF16});
    check.Shape("bias", *bias, {args.rows});
    args.bias = bias->untyped_data();
  }
  if (!check.ok()) return check.error();
  args.x = static_cast<const bf16*>(x.untyped_data());
  args.y = y.untyped_data();
  args.arranged = static_cast<uint8_t*>(arranged.untyped_data());
  return MLA_RUN(LinearShuffled, LinearShuffledArgs, args, backend);
}

ffi::Error LinearShuffledCall(Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer data,
                              ffi::AnyBuffer scale, ffi::Result<ffi::AnyBuffer> y,
                              ffi::Result<ffi::AnyBuffer> arranged) {
  return Call("mla_jax.linear_shuffled", backend, x, data, scale, nullptr, *y, *arranged);
}

ffi::Error LinearShuffledBiasCall(Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer data,
                                  ffi::AnyBuffer scale, ffi::AnyBuffer bias,
                                  ffi::Result<ffi::AnyBuffer> y,
                                  ffi::Result<ffi::AnyBuffer> arranged) {
  return Call("mla_jax.linear_shuffled_bias", backend, x, data, scale, &bias, *y, *arranged);
}

ffi::Error ShuffledDequantizeCall(Backend backend, ffi::AnyBuffer data, ffi::AnyBuffer scale,
                                  ffi::Result<ffi::AnyBuffer> values) {
  Checker check("mla_jax.shuffled_dequantize");
  LinearShuffledArgs args = {};
  check.Type("values", *values, {DType::kBF16});
  check.Shape("values", *values, {kAny, kAny});
  if (!check.ok()) return check.error();
  ShuffledArgument(&check, data, scale, Dim(*values, 0), &args);
  if (!check.ok()) return check.error();
  check.Shape("values", *values, {args.rows, 32 * args.chunks});
  if (!check.ok()) return check.error();
  args.y = values->untyped_data();
  return MLA_RUN(ShuffledDequantize, LinearShuffledArgs, args, backend);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_linear_shuffled_v1, mla::LinearShuffledCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_linear_shuffled_bias_v1, mla::LinearShuffledBiasCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_shuffled_dequantize_v1, mla::ShuffledDequantizeCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);
