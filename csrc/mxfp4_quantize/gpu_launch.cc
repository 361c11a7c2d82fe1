// Launches MXFP4 quantisation.
#include "mxfp4_quantize/gpu_shape.h"

namespace mla {
namespace gpu {

extern const Image kImage_mxfp4_quantize;

xla::ffi::Error Mxfp4QuantizeRows(const Mxfp4QuantizeArgs& args, const Stream& stream) {
  const int64_t groups = args.out.rows * CeilDiv(args.out.k, kMxfp4Group);
  constexpr int64_t kGroups = kQuantizeThreads / kLanesOfGroup;
  const char* name =
      args.x_type == DType::kF32 ? "mla_mxfp4_quantize_f32" : "mla_mxfp4_quantize_bf16";
  return Launch({&kImage_mxfp4_quantize, name}, CeilDiv(groups, kGroups), kQuantizeThreads, 0,
                stream, &args);
}

}  // namespace gpu
}  // namespace mla
