// Launches the norm that quantises: rows held in registers where their length, their alignment and
// their groups allow it.
#include "gpu/group_shape.h"
#include "rmsnorm_quantize/kernel.h"

namespace mla {
namespace gpu {

extern const Image kImage_rmsnorm_quantize;

namespace {

// By RowKind for one element type and format.
constexpr const char* kNames[][2][kRowKinds] = {
    {{MLA_HELD_ROW_NAMES("mla_rmsnorm_mxfp4_f32"), MLA_TWICE_ROW_NAMES("mla_rmsnorm_quantize_f32")},
     {MLA_HELD_ROW_NAMES("mla_rmsnorm_fp8_f32"), MLA_TWICE_ROW_NAMES("mla_rmsnorm_quantize_f32")}},
    {{MLA_HELD_ROW_NAMES("mla_rmsnorm_mxfp4_bf16"),
      MLA_TWICE_ROW_NAMES("mla_rmsnorm_quantize_bf16")},
     {MLA_HELD_ROW_NAMES("mla_rmsnorm_fp8_bf16"),
      MLA_TWICE_ROW_NAMES("mla_rmsnorm_quantize_bf16")}}};

}  // namespace

xla::ffi::Error RmsNormQuantize(const RmsNormQuantizeArgs& args, const Stream& stream) {
  const int64_t n = args.out.k;
  const bool wide =
      WholeRuns(n) && WholeRuns(args.width) && WholeRuns(args.offset) && IsLaneGroup(args.out);
  const auto kind = static_cast<int>(RowKindOf(n, wide));
  const char* name =
      kNames[args.io_type == DType::kBF16][args.out.format == GroupFormat::kFp8][kind];
  return Launch({&kImage_rmsnorm_quantize, name}, RowBlocks(args.out.rows, n), kRowBlock, 0, stream,
                &args);
}

}  // namespace gpu
}  // namespace mla
