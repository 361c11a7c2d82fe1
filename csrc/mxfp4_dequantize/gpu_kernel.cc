// MXFP4 to bf16 on a GPU.
#include "gpu/copy.h"
#include "gpu/decode.h"
#include "mxfp4_dequantize/gpu_shape.h"

namespace mla {
namespace gpu {
namespace {

MLA_DEVICE void Dequantize(const Mxfp4DequantizeArgs& args) {
  const int64_t first =
      static_cast<int64_t>(BlockX()) * (kDequantizeThreads * kDequantizeWords) + ThreadX();
  uint32_t words[kDequantizeWords], scales[kDequantizeWords];
#pragma unroll
  for (int i = 0; i < kDequantizeWords; ++i) {
    const int64_t at = first + i * kDequantizeThreads;
    words[i] = scales[i] = 0;
    if (at < 4 * args.groups) {
      words[i] = reinterpret_cast<const uint32_t*>(args.data)[at];
      scales[i] = args.scale[at / 4];
    }
  }
#pragma unroll
  for (int i = 0; i < kDequantizeWords; ++i) {
    const int64_t at = first + i * kDequantizeThreads;
    if (at >= 4 * args.groups) return;
    const Octet values = FromNibbleOrder(DecodeE2M1<true>(words[i], GroupScale{scales[i]}));
    reinterpret_cast<Chunk*>(args.values)[at] = BitCast<Chunk>(values);
  }
}

}  // namespace
}  // namespace gpu
}  // namespace mla

using mla::Mxfp4DequantizeArgs;

MLA_GPU_KERNEL(mla_mxfp4_dequantize, mla::gpu::kDequantizeThreads, Mxfp4DequantizeArgs) {
  mla::gpu::Dequantize(args);
}
