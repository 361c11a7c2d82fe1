// The merge of the splits' partial results: out = sum_s 2^(lse_s - lse) out_s.
#ifndef MLA_MLA_ATTENTION_GPU_MERGE_H_
#define MLA_MLA_ATTENTION_GPU_MERGE_H_

#include "gpu/convert.h"
#include "mla_attention/gpu_shape.h"

namespace mla {
namespace gpu {

// A thread merges kMergeRun columns of one row; `groups` threads share the splits of it, every
// groups-th each: a serial walk over a hundred splits would wait for memory a hundred times.
template <int groups>
MLA_DEVICE void MergeSplits(const MlaAttentionArgs& args) {
  constexpr int kThreads = kMergeThreads / groups;  // Of a group.
  __shared__ float totals[groups][kThreads];
  __shared__ float sums[groups][kThreads * kMergeRun];
  const int64_t rows = args.tokens * args.heads;
  const int64_t runs = (args.rank + kMergeRun - 1) / kMergeRun;
  const int group = ThreadX() / kThreads, mine = ThreadX() % kThreads;
  const int64_t run = static_cast<int64_t>(BlockX()) * kThreads + mine;
  const bool exists = run < rows * runs;
  const int64_t row = exists ? run / runs : 0;
  const int64_t column = exists ? (run - row * runs) * kMergeRun : args.rank;

  float peak = -__builtin_inff(), total = 0, sum[kMergeRun] = {};
#pragma unroll 16
  for (int64_t s = 0; s < args.splits; ++s) {
    const float lse = args.partial_lse[s * rows + row];
    peak = lse > peak ? lse : peak;
  }
  const float base = peak == -__builtin_inff() ? 0.0f : peak;
#pragma unroll 4
  for (int64_t s = group; s < args.splits; s += groups) {
    const float lse = args.partial_lse[s * rows + row];
    const float* from = args.partial + (s * rows + row) * args.rank + column;
    // What a share without keys would have given was never written.
    const float weight = Exp2(lse - base);
    total += weight;
    if (lse == -__builtin_inff()) continue;
    if (args.rank % kMergeRun == 0 && exists) {
      const auto values = LoadPack<kMergeRun>(from);
#pragma unroll
      for (int i = 0; i < kMergeRun; ++i) sum[i] += weight * values.at[i];
    } else {
#pragma unroll
      for (int i = 0; i < kMergeRun; ++i) {
        if (column + i < args.rank) sum[i] += weight * from[i];
      }
    }
  }
  if constexpr (groups > 1) {
    totals[group][mine] = total;
#pragma unroll
    for (int i = 0; i < kMergeRun; ++i) sums[group][mine * kMergeRun + i] = sum[i];
    Barrier();
    if (group != 0) return;
#pragma unroll
    for (int g = 1; g < groups; ++g) {
      total += totals[g][mine];
#pragma unroll
      for (int i = 0; i < kMergeRun; ++i) sum[i] += sums[g][mine * kMergeRun + i];
    }
  }
  if (!exists) return;
  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
  if (column == 0) {
    args.lse[row] = total == 0.0f ? -__builtin_inff() : (peak + Log2(total)) * kLn2;
  }
#pragma unroll
  for (int i = 0; i < kMergeRun; ++i) {
    if (column + i < args.rank) {
      WriteOne(args.out, args.io_type, row * args.rank + column + i, sum[i] * inverse);
    }
  }
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_MERGE_H_
