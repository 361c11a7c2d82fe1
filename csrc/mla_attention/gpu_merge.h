// The merge of the splits' partial results: out = sum_s 2^(lse_s - lse) out_s.
#ifndef MLA_MLA_ATTENTION_GPU_MERGE_H_
#define MLA_MLA_ATTENTION_GPU_MERGE_H_

#include "gpu/convert.h"
#include "mla_attention/gpu_shape.h"

namespace mla {
namespace gpu {

// Some partial results of one row, kMergeRun columns: sums of their weights, relative to a peak.
struct MergedRun {
  float peak = -__builtin_inff(), total = 0, sum[kMergeRun] = {};
};

// Every `step`-th split from `first` on. What a share without keys would have given was never
// written: it is read with the others, so that all reads are under way at once, and not used.
MLA_DEVICE MergedRun MergeEvery(const MlaAttentionArgs& args, int first, int step, int64_t row,
                                int64_t column) {
  const int64_t rows = args.tokens * args.heads;
  const int splits = static_cast<int>(args.splits);
  MergedRun merged;
#pragma unroll 8
  for (int s = first; s < splits; s += step) {
    const float lse = args.partial_lse[s * rows + row];
    merged.peak = lse > merged.peak ? lse : merged.peak;
  }
  const float base = merged.peak == -__builtin_inff() ? 0.0f : merged.peak;
#pragma unroll 8
  for (int s = first; s < splits; s += step) {
    const float lse = args.partial_lse[s * rows + row];
    const float* from = args.partial + (s * rows + row) * args.rank + column;
    Pack<float, kMergeRun> values = {};
    if (args.rank % kMergeRun == 0) {
      values = LoadPack<kMergeRun>(from);
    } else {
#pragma unroll
      for (int i = 0; i < kMergeRun; ++i) {
        if (column + i < args.rank) values.at[i] = from[i];
      }
    }
    const bool written = lse != -__builtin_inff();
    const float weight = Exp2(lse - base);
    merged.total += weight;
#pragma unroll
    for (int i = 0; i < kMergeRun; ++i) merged.sum[i] += written ? weight * values.at[i] : 0.0f;
  }
  return merged;
}

MLA_DEVICE void StoreMerged(const MlaAttentionArgs& args, int64_t row, int64_t column, float peak,
                            float total, float sum) {
  if (column >= args.rank) return;
  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
  if (column == 0) {
    args.lse[row] = total == 0.0f ? -__builtin_inff() : (peak + Log2(total)) * kLn2;
  }
  WriteOne(args.out, args.io_type, row * args.rank + column, sum * inverse);
}

// A thread merges kMergeRun columns of one row; `groups` threads share the splits of it, every
// groups-th each: a serial walk over a hundred splits would wait for memory a hundred times.
template <int groups>
MLA_DEVICE void MergeSplits(const MlaAttentionArgs& args) {
  constexpr int kRuns = kMergeThreads / groups;  // Of a block.
  const int64_t rows = args.tokens * args.heads;
  const int64_t row_runs = (args.rank + kMergeRun - 1) / kMergeRun;
  const int64_t first = static_cast<int64_t>(BlockX()) * kRuns;
  const int group = ThreadX() / kRuns, mine = ThreadX() % kRuns;
  MergedRun merged;
  int64_t row = (first + mine) / row_runs;
  int64_t column = (first + mine - row * row_runs) * kMergeRun;
  if (row < rows) merged = MergeEvery(args, group, groups, row, column);
  if constexpr (groups == 1) {
    if (row >= rows) return;
#pragma unroll
    for (int i = 0; i < kMergeRun; ++i) {
      StoreMerged(args, row, column + i, merged.peak, merged.total, merged.sum[i]);
    }
  } else {
    __shared__ float peaks[groups][kRuns], totals[groups][kRuns], sums[groups][kRuns * kMergeRun];
    peaks[group][mine] = merged.peak;
    totals[group][mine] = merged.total;
#pragma unroll
    for (int i = 0; i < kMergeRun; ++i) sums[group][mine * kMergeRun + i] = merged.sum[i];
    Barrier();
    // A thread a column from here on.
    if (ThreadX() >= kRuns * kMergeRun) return;
    const int run = ThreadX() / kMergeRun, i = ThreadX() % kMergeRun;
    row = (first + run) / row_runs;
    column = (first + run - row * row_runs) * kMergeRun + i;
    if (row >= rows) return;
    float peak = -__builtin_inff(), total = 0, sum = 0;
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      peak = peaks[g][run] > peak ? peaks[g][run] : peak;
    }
    const float base = peak == -__builtin_inff() ? 0.0f : peak;
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      const float weight = Exp2(peaks[g][run] - base);
      total += weight * totals[g][run];
      sum += weight * sums[g][ThreadX()];
    }
    StoreMerged(args, row, column, peak, total, sum);
  }
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_MERGE_H_
