// Launches a product of MXFP4 with MXFP4.
#include "gpu/runtime.h"
#include "linear_mxfp4/gpu_shape.h"

namespace mla {
namespace gpu {

extern const Image kImage_linear_mxfp4;

namespace {

template <typename Shape>
xla::ffi::Error LaunchShape(const char* name, LinearMxfp4Args args, const Stream& stream) {
  const int64_t row_blocks = CeilDiv(args.n, Shape::kRows);
  args.row_blocks = static_cast<int32_t>(row_blocks);
  return Launch({&kImage_linear_mxfp4, name}, row_blocks * CeilDiv(args.m, Shape::kTokens),
                Shape::kThreads, Shape::kSharedBytes, stream, &args);
}

}  // namespace

xla::ffi::Error LinearMxfp4(const LinearMxfp4Args& args, const Stream& stream) {
  return args.m <= Mxfp4Few::kTokens
             ? LaunchShape<Mxfp4Few>("mla_linear_mxfp4_few", args, stream)
             : LaunchShape<Mxfp4Many>("mla_linear_mxfp4_many", args, stream);
}

}  // namespace gpu
}  // namespace mla
