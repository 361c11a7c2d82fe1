// Both norms on a GPU, in one launch.
#include "fused_qk_rmsnorm/gpu_shape.h"
#include "gpu/row_norm.h"

namespace mla {
namespace gpu {
namespace {

template <typename T, int threads, int runs>
MLA_DEVICE void NormRows(const NormInput& in, void* values, int64_t block) {
  if constexpr (runs > 0) {
    NormHeldRow<T, threads, runs>(
        in, block, [&](int64_t row, int64_t at, const float (&normed)[kRunValues], bool exists) {
          if (exists) StoreFloats(At<T>(values, row * in.width + at), normed);
        });
  } else {
    NormRowTwice<T, threads>(in, block, [&](int64_t row, int64_t at, float value) {
      *At<T>(values, row * in.width + at) = FromFloat<T>(value);
    });
  }
}

// `few`: both parts are short enough for few threads a row, which is every model's case.
template <typename T, bool few>
MLA_DEVICE void NormBoth(const FusedQkRmsNormGpuArgs& all) {
  const bool is_q = BlockX() < all.q_blocks;
  const NormedRows& part = is_q ? all.args.q : all.args.kv;
  const int64_t block = is_q ? BlockX() : BlockX() - all.q_blocks;
  const NormInput in{part.values,      nullptr,       part.weight, nullptr,
                     part.weight_type, all.args.rows, part.width,  0,
                     part.n,           part.eps,      -0.0f};
  const RowKind kind = is_q ? all.q_kind : all.kv_kind;
  if (kind == RowKind::kHeld32) {
    NormRows<T, 32, 4>(in, part.values, block);
  } else if (kind == RowKind::kHeld64) {
    NormRows<T, 64, 4>(in, part.values, block);
  } else if constexpr (!few) {
    if (kind == RowKind::kHeld256) {
      NormRows<T, 256, 4>(in, part.values, block);
    } else if (kind == RowKind::kTwice32) {
      NormRows<T, 32, 0>(in, part.values, block);
    } else if (kind == RowKind::kTwice64) {
      NormRows<T, 64, 0>(in, part.values, block);
    } else {
      NormRows<T, 256, 0>(in, part.values, block);
    }
  }
}

}  // namespace
}  // namespace gpu
}  // namespace mla

using mla::gpu::FusedQkRmsNormGpuArgs;

MLA_GPU_KERNEL(mla_fused_qk_rmsnorm_f32, mla::gpu::kRowBlock, FusedQkRmsNormGpuArgs) {
  mla::gpu::NormBoth<float, true>(args);
}
MLA_GPU_KERNEL(mla_fused_qk_rmsnorm_bf16, mla::gpu::kRowBlock, FusedQkRmsNormGpuArgs) {
  mla::gpu::NormBoth<mla::bf16, true>(args);
}
MLA_GPU_KERNEL(mla_fused_qk_rmsnorm_f32_any, mla::gpu::kRowBlock, FusedQkRmsNormGpuArgs) {
  mla::gpu::NormBoth<float, false>(args);
}
MLA_GPU_KERNEL(mla_fused_qk_rmsnorm_bf16_any, mla::gpu::kRowBlock, FusedQkRmsNormGpuArgs) {
  mla::gpu::NormBoth<mla::bf16, false>(args);
}
