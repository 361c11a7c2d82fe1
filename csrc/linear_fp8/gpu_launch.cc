// Launches a product of FP8 with FP8.
#include "gpu/runtime.h"
#include "linear_fp8/gpu_shape.h"

namespace mla {
namespace gpu {

extern const Image kImage_linear_fp8;

namespace {

// By [x_fnuz][w_fnuz].
using Names = const char* const[2][2];
constexpr Names kFew = {{"mla_linear_fp8_ocp_ocp_few", "mla_linear_fp8_ocp_fnuz_few"},
                        {"mla_linear_fp8_fnuz_ocp_few", "mla_linear_fp8_fnuz_fnuz_few"}};
constexpr Names kMany = {{"mla_linear_fp8_ocp_ocp_many", "mla_linear_fp8_ocp_fnuz_many"},
                         {"mla_linear_fp8_fnuz_ocp_many", "mla_linear_fp8_fnuz_fnuz_many"}};

template <typename Shape>
xla::ffi::Error LaunchShape(const Names& names, LinearFp8Args args, const Stream& stream) {
  const int64_t row_blocks = CeilDiv(args.n, Shape::kRows);
  args.row_blocks = static_cast<int32_t>(row_blocks);
  return Launch({&kImage_linear_fp8, names[args.x_fnuz][args.w_fnuz]},
                row_blocks * CeilDiv(args.m, Shape::kTokens), Shape::kThreads, Shape::kSharedBytes,
                stream, &args);
}

}  // namespace

xla::ffi::Error LinearFp8(const LinearFp8Args& args, const Stream& stream) {
  return args.m <= Fp8Few::kTokens ? LaunchShape<Fp8Few>(kFew, args, stream)
                                   : LaunchShape<Fp8Many>(kMany, args, stream);
}

}  // namespace gpu
}  // namespace mla
