// Quantisation of rows on a GPU: a run a thread, or a wave a group where groups are of other sizes.
#include "flatten_quantize/gpu_shape.h"
#include "gpu/group_quantize.h"

namespace mla {
namespace gpu {
namespace {

// Row and part of the row of this block.
struct Part {
  int row, part;
  MLA_DEVICE explicit Part(int parts) : row(BlockX() / parts), part(BlockX() - row * parts) {}
};

template <typename T, GroupFormat format>
MLA_DEVICE void QuantizeRuns(const FlattenQuantizeGpuArgs& all) {
  const QuantizedRows& out = all.args.out;
  const Part here(all.parts);
  const int at = (here.part * kRowBlock + ThreadX()) * kRunValues;
  const bool exists = at < static_cast<int>(out.k);
  Pack<T, kRunValues> read = {};
  if (exists)
    read = LoadPack<kRunValues>(static_cast<const T*>(all.args.x) + here.row * out.k + at);
  float values[kRunValues];
#pragma unroll
  for (int i = 0; i < kRunValues; ++i) values[i] = ToFloat(read.at[i]);
  QuantizeRun<format>(out, here.row, at, values, exists);
}

template <typename T>
MLA_DEVICE void QuantizeAny(const FlattenQuantizeGpuArgs& all) {
  constexpr int64_t kAtOnce = kRowBlock / kWave;
  const Part here(all.parts);
  const T* x = static_cast<const T*>(all.args.x) + here.row * all.args.out.k;
  QuantizeGroups<kRowBlock>(all.args.out, here.row, here.part * kAtOnce, all.parts * kAtOnce,
                            [&](int64_t at) { return ToFloat(x[at]); });
}

}  // namespace
}  // namespace gpu
}  // namespace mla

#define MLA_FLATTEN_QUANTIZE(type, T)                                                             \
  MLA_GPU_KERNEL(mla_flatten_mxfp4_##type, mla::gpu::kRowBlock,                                   \
                 mla::gpu::FlattenQuantizeGpuArgs) {                                              \
    mla::gpu::QuantizeRuns<T, mla::GroupFormat::kMxfp4>(args);                                    \
  }                                                                                               \
  MLA_GPU_KERNEL(mla_flatten_fp8_##type, mla::gpu::kRowBlock, mla::gpu::FlattenQuantizeGpuArgs) { \
    mla::gpu::QuantizeRuns<T, mla::GroupFormat::kFp8>(args);                                      \
  }                                                                                               \
  MLA_GPU_KERNEL(mla_flatten_any_##type, mla::gpu::kRowBlock, mla::gpu::FlattenQuantizeGpuArgs) { \
    mla::gpu::QuantizeAny<T>(args);                                                               \
  }

MLA_FLATTEN_QUANTIZE(f32, float)
MLA_FLATTEN_QUANTIZE(bf16, mla::bf16)
