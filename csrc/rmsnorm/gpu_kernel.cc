// Norm of rows on a GPU.
#include "gpu/row_norm.h"
#include "rmsnorm/kernel.h"

namespace mla {
namespace gpu {
namespace {

template <typename T, int threads, int runs>
MLA_DEVICE void NormRows(const RmsNormArgs& args) {
  const NormInput in{args.x,           args.residual, args.weight, args.sum,
                     args.weight_type, args.rows,     args.width,  args.offset,
                     args.n,           args.eps,      -0.0f};
  if constexpr (runs > 0) {
    NormHeldRow<T, threads, runs>(
        in, BlockX(), [&](int64_t row, int64_t at, const float (&values)[kRunValues], bool exists) {
          if (exists) StoreFloats(At<T>(args.y, row * args.n + at), values);
        });
  } else {
    NormRowTwice<T, threads>(in, BlockX(), [&](int64_t row, int64_t at, float value) {
      *At<T>(args.y, row * args.n + at) = FromFloat<T>(value);
    });
  }
}

}  // namespace
}  // namespace gpu
}  // namespace mla

#define MLA_RMSNORM(name, T, threads, runs)                     \
  MLA_GPU_KERNEL(name, mla::gpu::kRowBlock, mla::RmsNormArgs) { \
    mla::gpu::NormRows<T, threads, runs>(args);                 \
  }

MLA_HELD_ROW_KERNELS(MLA_RMSNORM, mla_rmsnorm_f32, float)
MLA_TWICE_ROW_KERNELS(MLA_RMSNORM, mla_rmsnorm_f32, float)
MLA_HELD_ROW_KERNELS(MLA_RMSNORM, mla_rmsnorm_bf16, mla::bf16)
MLA_TWICE_ROW_KERNELS(MLA_RMSNORM, mla_rmsnorm_bf16, mla::bf16)
