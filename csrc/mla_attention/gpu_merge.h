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

// Every `step`-th split from `first` on, `batch` reads at once. What a share without keys would
// have given was never written: it is read with the others and not used.
template <int batch>
MLA_DEVICE MergedRun MergeEvery(const MlaAttentionArgs& args, int first, int step, int64_t row,
                                int64_t column) {
  const int64_t rows = args.tokens * args.heads;
  const int splits = static_cast<int>(args.splits);
  const bool whole = args.rank % kMergeRun == 0;
  MergedRun merged;
  for (int s0 = first; s0 < splits; s0 += step * batch) {
    float lse[batch], peak = merged.peak;
    Pack<float, kMergeRun> values[batch];
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      const int s = s0 + b * step;
      lse[b] = -__builtin_inff();
      values[b] = {};
      if (s >= splits) continue;
      lse[b] = args.partial_lse[s * rows + row];
      const float* from = args.partial + (s * rows + row) * args.rank + column;
      if (whole) {
        values[b] = LoadPack<kMergeRun>(from);
      } else {
#pragma unroll
        for (int i = 0; i < kMergeRun; ++i) {
          if (column + i < args.rank) values[b].at[i] = from[i];
        }
      }
    }
#pragma unroll
    for (int b = 0; b < batch; ++b) peak = lse[b] > peak ? lse[b] : peak;
    const float base = peak == -__builtin_inff() ? 0.0f : peak;
    const float shrink = Exp2(merged.peak - base);
    merged.peak = peak;
    merged.total *= shrink;
#pragma unroll
    for (int i = 0; i < kMergeRun; ++i) merged.sum[i] *= shrink;
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      const bool written = lse[b] != -__builtin_inff();
      const float weight = Exp2(lse[b] - base);
      merged.total += weight;
#pragma unroll
      for (int i = 0; i < kMergeRun; ++i) {
        merged.sum[i] += written ? weight * values[b].at[i] : 0.0f;
      }
    }
  }
  return merged;
}

MLA_DEVICE float InverseOf(float total) { return total == 0.0f ? 0.0f : 1.0f / total; }

MLA_DEVICE void StoreMergedLse(const MlaAttentionArgs& args, int64_t row, float peak, float total) {
  args.lse[row] = total == 0.0f ? -__builtin_inff() : (peak + Log2(total)) * kLn2;
}

MLA_DEVICE void StoreMerged(const MlaAttentionArgs& args, int64_t row, int64_t column,
                            const MergedRun& merged) {
  const float inverse = InverseOf(merged.total);
  if (column == 0) StoreMergedLse(args, row, merged.peak, merged.total);
  if (args.io_type == DType::kBF16 && args.rank % kMergeRun == 0) {
    Pack<bf16, kMergeRun> run;
#pragma unroll
    for (int i = 0; i < kMergeRun; ++i) run.at[i] = FromFloat<bf16>(merged.sum[i] * inverse);
    StorePack(static_cast<bf16*>(args.out) + row * args.rank + column, run);
    return;
  }
#pragma unroll
  for (int i = 0; i < kMergeRun; ++i) {
    if (column + i < args.rank) {
      WriteOne(args.out, args.io_type, row * args.rank + column + i, merged.sum[i] * inverse);
    }
  }
}

// run / row_runs; a 64-bit division takes longer than the rest of the merge.
MLA_DEVICE int64_t RowOfRun(int64_t run, int64_t row_runs) {
  if ((run | row_runs) >> 32 != 0) return run / row_runs;
  return static_cast<uint32_t>(run) / static_cast<uint32_t>(row_runs);
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
  int64_t row = RowOfRun(first + mine, row_runs);
  int64_t column = (first + mine - row * row_runs) * kMergeRun;
  if (row < rows) merged = MergeEvery<groups == 1 ? 8 : 4>(args, group, groups, row, column);
  if constexpr (groups == 1) {
    if (row < rows) StoreMerged(args, row, column, merged);
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
    row = RowOfRun(first + run, row_runs);
    column = (first + run - row * row_runs) * kMergeRun + i;
    if (row >= rows || column >= args.rank) return;
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
    if (column == 0) StoreMergedLse(args, row, peak, total);
    WriteOne(args.out, args.io_type, row * args.rank + column, sum * InverseOf(total));
  }
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_MERGE_H_
