// Launches the quantisation of rows.
#include "flatten_quantize/gpu_shape.h"
#include "gpu/platform.h"

namespace mla {
namespace gpu {

extern const Image kImage_flatten_quantize;

xla::ffi::Error FlattenQuantize(const FlattenQuantizeArgs& args, const Stream& stream) {
  static constexpr const char* kNames[][3] = {
      {"mla_flatten_mxfp4_f32", "mla_flatten_fp8_f32", "mla_flatten_any_f32"},
      {"mla_flatten_mxfp4_bf16", "mla_flatten_fp8_bf16", "mla_flatten_any_bf16"}};
  const QuantizedRows& out = args.out;
  const bool runs = WholeRuns(out.k) && IsLaneGroup(out) && out.k <= kLongestRow;
  const int64_t parts = runs ? CeilDiv(out.k, kRowBlock * kRunValues)
                             : CeilDiv(CeilDiv(out.k, out.group), kRowBlock / kPlatformWave);
  const int of_format = runs ? (out.format == GroupFormat::kFp8 ? 1 : 0) : 2;
  const FlattenQuantizeGpuArgs all{args, static_cast<int32_t>(parts)};
  return Launch({&kImage_flatten_quantize, kNames[args.x_type == DType::kBF16][of_format]},
                out.rows * parts, kRowBlock, 0, stream, &all);
}

}  // namespace gpu
}  // namespace mla
