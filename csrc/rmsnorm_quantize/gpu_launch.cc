// Launches the norm that quantises: rows held in registers where their length, their alignment and
// their groups allow it.
#include "rmsnorm_quantize/gpu_shape.h"

namespace mla {
namespace gpu {

extern const Image kImage_rmsnorm_quantize;

xla::ffi::Error RmsNormQuantize(const RmsNormQuantizeArgs& args, const Stream& stream) {
  static constexpr const char* kNames[][kRowKinds] = {
      MLA_ROW_KERNEL_NAMES("mla_rmsnorm_quantize_f32"),
      MLA_ROW_KERNEL_NAMES("mla_rmsnorm_quantize_bf16")};
  const int64_t n = args.out.k;
  const RmsNormQuantizeGpuArgs all{args, GroupShift(args.out.group)};
  const bool wide =
      WholeRuns(n) && WholeRuns(args.width) && WholeRuns(args.offset) && all.shift >= 0;
  const auto kind = static_cast<int>(RowKindOf(n, wide));
  const char* name = kNames[args.io_type == DType::kBF16][kind];
  return Launch({&kImage_rmsnorm_quantize, name}, RowBlocks(args.out.rows, n), kRowBlock, 0, stream,
                &all);
}

}  // namespace gpu
}  // namespace mla
