// Norm of rows on a GPU, quantised in registers where the groups allow it.
#include "gpu/group_quantize.h"
#include "gpu/row_norm.h"
#include "rmsnorm_quantize/kernel.h"

namespace mla {
namespace gpu {
namespace {

MLA_DEVICE NormInput InputOf(const RmsNormQuantizeArgs& args) {
  return {args.x,     args.residual, args.weight, args.sum, args.weight_type,  args.out.rows,
          args.width, args.offset,   args.out.k,  args.eps, args.weight_offset};
}

template <typename T, GroupFormat format, int threads, int runs>
MLA_DEVICE void NormAndQuantize(const RmsNormQuantizeArgs& args) {
  NormHeldRow<T, threads, runs>(
      InputOf(args), BlockX(),
      [&](int64_t row, int at, const float (&values)[kRunValues], bool exists) {
        if (exists && args.unquantized != nullptr)
          StoreFloats(At<T>(args.unquantized, row * args.out.k + at), values);
        QuantizeRun<format>(args.out, row, at, values, exists);
      });
}

// Group after group reads the row again.
template <typename T, int threads>
MLA_DEVICE void NormAndQuantizeTwice(const RmsNormQuantizeArgs& args) {
  const NormInput in = InputOf(args);
  TwiceRow<T> values{in, BlockRow<threads>(BlockX()), 0};
  values.template Sum<threads>();
  if (values.row >= in.rows) return;
  for (int64_t at = ThreadX() % threads; at < in.n; at += threads) {
    const int64_t to = values.row * in.n + at;
    if (in.residual != nullptr) *At<T>(in.sum, to) = FromFloat<T>(values.Read(at));
    if (args.unquantized != nullptr) *At<T>(args.unquantized, to) = FromFloat<T>(values.Normed(at));
  }
  QuantizeGroups<threads>(args.out, values.row, 0, threads < kWave ? 1 : threads / kWave,
                          [&](int64_t at) { return values.Normed(at); });
}

}  // namespace
}  // namespace gpu
}  // namespace mla

#define MLA_QUANTIZE_MXFP4(name, T, threads, runs)                               \
  MLA_GPU_KERNEL(name, mla::gpu::kRowBlock, mla::RmsNormQuantizeArgs) {          \
    mla::gpu::NormAndQuantize<T, mla::GroupFormat::kMxfp4, threads, runs>(args); \
  }
#define MLA_QUANTIZE_FP8(name, T, threads, runs)                               \
  MLA_GPU_KERNEL(name, mla::gpu::kRowBlock, mla::RmsNormQuantizeArgs) {        \
    mla::gpu::NormAndQuantize<T, mla::GroupFormat::kFp8, threads, runs>(args); \
  }
#define MLA_QUANTIZE_TWICE(name, T, threads, runs)                      \
  MLA_GPU_KERNEL(name, mla::gpu::kRowBlock, mla::RmsNormQuantizeArgs) { \
    mla::gpu::NormAndQuantizeTwice<T, threads>(args);                   \
  }

MLA_HELD_ROW_KERNELS(MLA_QUANTIZE_MXFP4, mla_rmsnorm_mxfp4_f32, float)
MLA_HELD_ROW_KERNELS(MLA_QUANTIZE_FP8, mla_rmsnorm_fp8_f32, float)
MLA_TWICE_ROW_KERNELS(MLA_QUANTIZE_TWICE, mla_rmsnorm_quantize_f32, float)
MLA_HELD_ROW_KERNELS(MLA_QUANTIZE_MXFP4, mla_rmsnorm_mxfp4_bf16, mla::bf16)
MLA_HELD_ROW_KERNELS(MLA_QUANTIZE_FP8, mla_rmsnorm_fp8_bf16, mla::bf16)
MLA_TWICE_ROW_KERNELS(MLA_QUANTIZE_TWICE, mla_rmsnorm_quantize_bf16, mla::bf16)
