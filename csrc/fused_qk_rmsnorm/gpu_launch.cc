// Launches both norms at once: each part's rows as they are best read.
#include "fused_qk_rmsnorm/gpu_shape.h"

namespace mla {
namespace gpu {

extern const Image kImage_fused_qk_rmsnorm;

xla::ffi::Error FusedQkRmsNorm(const FusedQkRmsNormArgs& args, const Stream& stream) {
  const auto kind_of = [](const NormedRows& part) {
    const RowKind kind = RowKindOf(part.n, WholeRuns(part.n) && WholeRuns(part.width));
    // No latent is that long: not worth the registers.
    return kind == RowKind::kHeldLong ? RowKind::kTwice256 : kind;
  };
  const auto blocks = [&](const NormedRows& part) {
    return part.n == 0 ? 0 : RowBlocks(args.rows, part.n);
  };
  const int64_t q_blocks = blocks(args.q), all_blocks = q_blocks + blocks(args.kv);
  const FusedQkRmsNormGpuArgs all{args, kind_of(args.q), kind_of(args.kv),
                                  static_cast<int32_t>(q_blocks)};
  const bool few = all.q_kind <= RowKind::kHeld64 && all.kv_kind <= RowKind::kHeld64;
  const bool f32 = args.io_type == DType::kF32;
  const char* name = few ? (f32 ? "mla_fused_qk_rmsnorm_f32" : "mla_fused_qk_rmsnorm_bf16")
                         : (f32 ? "mla_fused_qk_rmsnorm_f32_any" : "mla_fused_qk_rmsnorm_bf16_any");
  return Launch({&kImage_fused_qk_rmsnorm, name}, all_blocks, kRowBlock, 0, stream, &all);
}

}  // namespace gpu
}  // namespace mla
