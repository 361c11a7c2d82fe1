// Launches the quantisation of rows.
#include "flatten_quantize/gpu_shape.h"
#include "gpu/platform.h"

namespace mla {
namespace gpu {

extern const Image kImage_flatten_quantize;

xla::ffi::Error FlattenQuantize(const FlattenQuantizeArgs& args, const Stream& stream) {
  const QuantizedRows& out = args.out;
  const int shift = WholeRuns(out.k) ? GroupShift(out.group) : -1;
  const bool runs = shift >= 0, f32 = args.x_type == DType::kF32;
  const int64_t parts = runs ? CeilDiv(out.k, kRowBlock * kRunValues)
                             : CeilDiv(CeilDiv(out.k, out.group), kRowBlock / kPlatformWave);
  const FlattenQuantizeGpuArgs all{args, shift, static_cast<int32_t>(parts)};
  const char* name = runs
                         ? (f32 ? "mla_flatten_quantize_f32" : "mla_flatten_quantize_bf16")
                         : (f32 ? "mla_flatten_quantize_f32_any" : "mla_flatten_quantize_bf16_any");
  return Launch({&kImage_flatten_quantize, name}, out.rows * parts, kRowBlock, 0, stream, &all);
}

}  // namespace gpu
}  // namespace mla
