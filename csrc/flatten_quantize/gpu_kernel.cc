// Quantisation of rows on a GPU: a run a thread, or a wave a group where groups are of other sizes.
#include "flatten_quantize/gpu_shape.h"
#include "gpu/group_quantize.h"

namespace mla {
namespace gpu {
namespace {

template <typename T>
MLA_DEVICE void QuantizeRuns(const FlattenQuantizeGpuArgs& all) {
  const QuantizedRows& out = all.args.out;
  const int64_t row = BlockX() / all.parts;
  const int64_t at =
      (static_cast<int64_t>(BlockX() % all.parts) * kRowBlock + ThreadX()) * kRunValues;
  const bool exists = at < out.k;
  Pack<T, kRunValues> read = {};
  if (exists) read = LoadPack<kRunValues>(static_cast<const T*>(all.args.x) + row * out.k + at);
  float values[kRunValues];
#pragma unroll
  for (int i = 0; i < kRunValues; ++i) values[i] = ToFloat(read.at[i]);
  QuantizeRun(out, all.shift, row, at, values, exists);
}

template <typename T>
MLA_DEVICE void QuantizeAnyGroups(const FlattenQuantizeGpuArgs& all) {
  const QuantizedRows& out = all.args.out;
  const int64_t row = BlockX() / all.parts;
  const int64_t group =
      static_cast<int64_t>(BlockX() % all.parts) * (kRowBlock / kWave) + ThreadX() / kWave;
  const int64_t groups = (out.k + out.group - 1) / out.group;
  const T* x = static_cast<const T*>(all.args.x) + row * out.k;
  if (group < groups) {
    QuantizeGroup(out, row, group, groups, [&](int64_t at) { return ToFloat(x[at]); });
  }
}

}  // namespace
}  // namespace gpu
}  // namespace mla

using mla::gpu::FlattenQuantizeGpuArgs;

MLA_GPU_KERNEL(mla_flatten_quantize_f32, mla::gpu::kRowBlock, FlattenQuantizeGpuArgs) {
  mla::gpu::QuantizeRuns<float>(args);
}
MLA_GPU_KERNEL(mla_flatten_quantize_bf16, mla::gpu::kRowBlock, FlattenQuantizeGpuArgs) {
  mla::gpu::QuantizeRuns<mla::bf16>(args);
}
MLA_GPU_KERNEL(mla_flatten_quantize_f32_any, mla::gpu::kRowBlock, FlattenQuantizeGpuArgs) {
  mla::gpu::QuantizeAnyGroups<float>(args);
}
MLA_GPU_KERNEL(mla_flatten_quantize_bf16_any, mla::gpu::kRowBlock, FlattenQuantizeGpuArgs) {
  mla::gpu::QuantizeAnyGroups<mla::bf16>(args);
}
