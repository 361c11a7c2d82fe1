// Norm of rows on a GPU, quantised in registers where the groups allow it.
#include "gpu/group_quantize.h"
#include "gpu/row_norm.h"
#include "rmsnorm_quantize/gpu_shape.h"

namespace mla {
namespace gpu {
namespace {

// A row's waves take its groups in turns. Group after group reads the row again.
template <typename T, int threads>
MLA_DEVICE void QuantizeRowTwice(const RmsNormQuantizeArgs& args, const NormInput& in) {
  TwiceRow<T> values{in, BlockRow<threads>(BlockX()), 0};
  values.template Sum<threads>();
  if (values.row >= in.rows) return;
  const int64_t row = values.row;
  for (int64_t at = ThreadX() % threads; at < in.n; at += threads) {
    const int64_t to = row * in.n + at;
    if (in.residual != nullptr) *RowOf<T>(in.sum, to) = FromFloat<T>(values.Read(at));
    if (args.unquantized != nullptr)
      *RowOf<T>(args.unquantized, to) = FromFloat<T>(values.Normed(at));
  }
  constexpr int kWaves = threads / kWave;
  const int64_t groups = (in.n + args.out.group - 1) / args.out.group;
  for (int64_t group = ThreadX() / kWave % kWaves; group < groups; group += kWaves) {
    QuantizeGroup(args.out, row, group, groups, [&](int64_t at) { return values.Normed(at); });
  }
}

template <typename T, int threads, int runs>
MLA_DEVICE void NormQuantizeRows(const RmsNormQuantizeGpuArgs& all) {
  const RmsNormQuantizeArgs& args = all.args;
  const NormInput in{args.x,           args.residual, args.weight,       args.sum,
                     args.weight_type, args.out.rows, args.width,        args.offset,
                     args.out.k,       args.eps,      args.weight_offset};
  if constexpr (runs > 0) {
    NormHeldRow<T, threads, runs>(
        in, BlockX(), [&](int64_t row, int64_t at, const float (&values)[kRunValues], bool exists) {
          if (exists && args.unquantized != nullptr)
            StoreFloats(RowOf<T>(args.unquantized, row * in.n + at), values);
          QuantizeRun(args.out, all.shift, row, at, values, exists);
        });
  } else {
    QuantizeRowTwice<T, threads>(args, in);
  }
}

}  // namespace
}  // namespace gpu
}  // namespace mla

#define MLA_RMSNORM_QUANTIZE(name, T, threads, runs)                            \
  MLA_GPU_KERNEL(name, mla::gpu::kRowBlock, mla::gpu::RmsNormQuantizeGpuArgs) { \
    mla::gpu::NormQuantizeRows<T, threads, runs>(args);                         \
  }

MLA_ROW_KERNELS(MLA_RMSNORM_QUANTIZE, mla_rmsnorm_quantize_f32, float)
MLA_ROW_KERNELS(MLA_RMSNORM_QUANTIZE, mla_rmsnorm_quantize_bf16, mla::bf16)
