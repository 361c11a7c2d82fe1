// Launches MXFP4 dequantisation.
#include "mxfp4_dequantize/gpu_shape.h"

namespace mla {
namespace gpu {

extern const Image kImage_mxfp4_dequantize;

xla::ffi::Error Mxfp4Dequantize(const Mxfp4DequantizeArgs& args, const Stream& stream) {
  constexpr int64_t kWords = kDequantizeThreads * kDequantizeWords;
  return Launch({&kImage_mxfp4_dequantize, "mla_mxfp4_dequantize"},
                CeilDiv(4 * args.groups, kWords), kDequantizeThreads, 0, stream, &args);
}

}  // namespace gpu
}  // namespace mla
