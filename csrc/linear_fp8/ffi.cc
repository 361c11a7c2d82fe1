// FFI binding of mla_jax.linear_fp8.v1, which only GPUs have.
#include "common/backend.h"
#include "common/quantized_ffi.h"
#include "linear_fp8/kernel.h"
#include "python/gpu_handlers.h"

namespace mla {
namespace {

// A matrix of FP8 codes with a float for kFp8Group columns of some rows.
QuantizedMatrix Fp8Argument(Checker* check, const char* name, const ffi::AnyBuffer& data,
                            const ffi::AnyBuffer& scale, int64_t code, int64_t block_n,
                            int64_t block_k) {
  int64_t stack = 1;
  const QuantizedMatrix m =
      QuantizedArgument(check, name, data, scale, code, block_n, block_k, &stack);
  check->Require(m.ByteCodes(), "code", "1 (e4m3) or 3 (e4m3fnuz)", std::to_string(code));
  check->Require(m.scale_type == DType::kF32, "scale", "float32", "bfloat16");
  check->Require(stack == 1, name, "one matrix", "shape " + ShapeText(data.dimensions()));
  check->Require(block_k == kFp8Group, "block", std::to_string(kFp8Group) + " columns",
                 std::to_string(block_k));
  check->Require(m.k % kFp8Aligned == 0, name,
                 "a multiple of " + std::to_string(kFp8Aligned) + " columns", std::to_string(m.k));
  return m;
}

ffi::Error LinearFp8Call(Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer x_scale,
                         ffi::AnyBuffer data, ffi::AnyBuffer scale, int64_t x_code,
                         int64_t x_block_n, int64_t x_block_k, int64_t code, int64_t block_n,
                         int64_t block_k, ffi::Result<ffi::AnyBuffer> y) {
  Checker check("mla_jax.linear_fp8");
  const QuantizedMatrix left = Fp8Argument(&check, "x", x, x_scale, x_code, x_block_n, x_block_k);
  const QuantizedMatrix right = Fp8Argument(&check, "data", data, scale, code, block_n, block_k);
  check.Require(x_block_n == 1, "block", "1 row of 'x'", std::to_string(x_block_n));
  check.Require(left.k == right.k, "x", std::to_string(right.k) + " columns (those of 'data')",
                std::to_string(left.k));
  check.Require(right.n <= INT32_MAX && right.block_n <= INT32_MAX, "data",
                "rows, and rows of a block, in 31 bits",
                std::to_string(right.n) + " in blocks of " + std::to_string(right.block_n));
  LinearFp8Args args = {};
  args.y_type = check.Type("y", *y, {DType::kF32, DType::kBF16});
  check.Shape("y", *y, {left.n, right.n});
  if (!check.ok()) return check.error();
  args.x = left.data;
  args.x_scale = static_cast<const float*>(left.scale);
  args.w = right.data;
  args.w_scale = static_cast<const float*>(right.scale);
  args.y = y->untyped_data();
  args.x_fnuz = left.code == Code::kE4M3Fnuz;
  args.w_fnuz = right.code == Code::kE4M3Fnuz;
  args.m = left.n;
  args.n = right.n;
  args.k = right.k;
  args.groups = right.ScaleCols();
  args.block_n = static_cast<uint32_t>(right.block_n);
  return MLA_RUN(LinearFp8, LinearFp8Args, args, backend);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_linear_fp8_v1, mla::LinearFp8Call,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("x_code")
                                  .Attr<int64_t>("x_block_n")
                                  .Attr<int64_t>("x_block_k")
                                  .Attr<int64_t>("code")
                                  .Attr<int64_t>("block_n")
                                  .Attr<int64_t>("block_k")
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);
