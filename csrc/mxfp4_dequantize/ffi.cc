// FFI binding of mla_jax.mxfp4_dequantize.v1, which only GPUs have.
#include "common/backend.h"
#include "common/quantized_ffi.h"
#include "mxfp4_dequantize/kernel.h"
#include "python/gpu_handlers.h"

namespace mla {
namespace {

ffi::Error Mxfp4DequantizeCall(Backend backend, ffi::AnyBuffer data, ffi::AnyBuffer scale,
                               ffi::Result<ffi::AnyBuffer> values) {
  Checker check("mla_jax.mxfp4_dequantize");
  int64_t stack = 1;
  const QuantizedMatrix w = QuantizedArgument(&check, "data", data, scale,
                                              static_cast<int64_t>(Code::kE2M1), 1, 32, &stack);
  check.Type("values", *values, {DType::kBF16});
  check.Require(w.k % 32 == 0, "data", "a multiple of 32 columns", std::to_string(w.k));
  const auto count = static_cast<int64_t>(values->element_count());
  check.Require(count == stack * w.n * w.k, "values",
                std::to_string(stack * w.n * w.k) + " elements", std::to_string(count));
  if (!check.ok()) return check.error();
  Mxfp4DequantizeArgs args = {};
  args.data = w.data;
  args.scale = static_cast<const uint8_t*>(w.scale);
  args.values = static_cast<bf16*>(values->untyped_data());
  args.groups = count / 32;
  return MLA_RUN(Mxfp4Dequantize, Mxfp4DequantizeArgs, args, backend);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_mxfp4_dequantize_v1, mla::Mxfp4DequantizeCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);
