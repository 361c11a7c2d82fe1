// Launches the norm of rows: held in registers where their length and alignment allow it.
#include "gpu/row_shape.h"
#include "rmsnorm/kernel.h"

namespace mla {
namespace gpu {

extern const Image kImage_rmsnorm;

xla::ffi::Error RmsNorm(const RmsNormArgs& args, const Stream& stream) {
  static constexpr const char* kNames[][kRowKinds] = {
      {MLA_HELD_ROW_NAMES("mla_rmsnorm_f32"), MLA_TWICE_ROW_NAMES("mla_rmsnorm_f32")},
      {MLA_HELD_ROW_NAMES("mla_rmsnorm_bf16"), MLA_TWICE_ROW_NAMES("mla_rmsnorm_bf16")}};
  if (args.n == 0) return xla::ffi::Error::Success();
  const bool wide = WholeRuns(args.n) && WholeRuns(args.width) && WholeRuns(args.offset);
  const auto kind = static_cast<int>(RowKindOf(args.n, wide));
  const char* name = kNames[args.io_type == DType::kBF16][kind];
  return Launch({&kImage_rmsnorm, name}, RowBlocks(args.rows, args.n), kRowBlock, 0, stream, &args);
}

}  // namespace gpu
}  // namespace mla
