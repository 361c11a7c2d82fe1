// The merge of the splits' partial results: out = sum_s 2^(lse_s - lse) out_s.
#ifndef MLA_MLA_ATTENTION_GPU_MERGE_H_
#define MLA_MLA_ATTENTION_GPU_MERGE_H_

#include "gpu/convert.h"
#include "mla_attention/gpu_shape.h"

namespace mla {
namespace gpu {

// Block (x, y) merges columns [kMergeColumns * y, + kMergeColumns) of row x. Groups of 32 threads
// take every 8th split each: a serial walk over a hundred splits would wait for memory a hundred
// times.
MLA_DEVICE void MergeSplits(const MlaAttentionArgs& args) {
  constexpr int kGroups = kMergeThreads / 32, kRun = kMergeColumns / 32;
  __shared__ float totals[kGroups];
  __shared__ float sums[kGroups][kMergeColumns];
  const int64_t rows = args.tokens * args.heads, row = BlockX();
  const int group = ThreadX() / 32, lane = ThreadX() % 32;
  const int64_t column = static_cast<int64_t>(BlockY()) * kMergeColumns + lane * kRun;

  float peak = -__builtin_inff();
  for (int s = 0; s < args.splits; ++s) {
    const float lse = args.partial_lse[s * rows + row];
    peak = lse > peak || lse != lse ? lse : peak;
  }
  const float base = peak == -__builtin_inff() ? 0.0f : peak;
  float total = 0, sum[kRun] = {};
#pragma unroll 4
  for (int s = group; s < args.splits; s += kGroups) {
    const float lse = args.partial_lse[s * rows + row];
    // What a share without keys would have given was never written.
    if (lse == -__builtin_inff()) continue;
    const float weight = Exp2(lse - base);
    total += weight;
    const float* from = args.partial + (s * rows + row) * args.rank + column;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (column + i < args.rank) sum[i] += weight * from[i];
    }
  }
  if (lane == 0) totals[group] = total;
#pragma unroll
  for (int i = 0; i < kRun; ++i) sums[group][lane * kRun + i] = sum[i];
  Barrier();
  if (group != 0) return;
  total = 0;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) total += totals[g];
  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
  if (BlockY() == 0 && lane == 0) {
    args.lse[row] = total == 0.0f ? -__builtin_inff() : (peak + Log2(total)) * kLn2;
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (column + i >= args.rank) continue;
    float value = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) value += sums[g][lane * kRun + i];
    WriteOne(args.out, args.io_type, row * args.rank + column + i, value * inverse);
  }
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_MERGE_H_
