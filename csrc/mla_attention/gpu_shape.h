// What the host and the device agree on: arguments, tiles, shared memory, how a grid covers the
// work.
#ifndef MLA_MLA_ATTENTION_GPU_SHAPE_H_
#define MLA_MLA_ATTENTION_GPU_SHAPE_H_

#include "gpu/platform.h"
#include "mla_attention/kernel.h"

namespace mla {
namespace gpu {

// Block x of a grid is split `split` of the heads from `head` on of token `token`; heads come in
// groups.
struct AttentionBlock {
  int64_t token;
  int head, split;
};

#if defined(__HIP__) || defined(__CUDACC__)
inline __device__ AttentionBlock BlockOf(const MlaAttentionArgs& args, int x, int group) {
  const int splits = static_cast<int>(args.splits);
  const int groups = static_cast<int>((args.heads + group - 1) / group);
  const int at = x / splits, token = at / groups;
  return {token, (at - token * groups) * group, x - at * splits};
}
#endif

// The widths of every published MLA model, which the matrix-core kernels are made for.
constexpr int kRank = 512, kRope = 64, kWidth = kRank + kRope;

// A tile: heads of one token, 16 * row_tiles to a wave. column_waves waves share them: each takes a
// share of the contraction of the scores and, afterwards, a share of the output's columns.
template <int row_waves, int row_tiles, int column_waves, int keys, int stages>
struct AttentionShape {
  static constexpr int kRowWaves = row_waves, kRowTiles = row_tiles, kColumnWaves = column_waves;
  static constexpr int kWaveRows = 16 * row_tiles;
  static constexpr int kRows = kWaveRows * row_waves;
  static constexpr int kKeys = keys;  // That a step takes.

  // Rows in shared memory are padded, so that 16 of them lie in different banks.
  static constexpr int kStride = kWidth + 8;
  static constexpr int kScoreStride = keys + 4;
  static constexpr int kWeightStride = keys + 8;

  // Parts of shared memory, in bytes from its beginning.
  static constexpr int kCache = 0;
  static constexpr int kScores = kCache + stages * keys * kStride * 2;
  static constexpr int kWeights = kScores + column_waves * kRows * kScoreStride * 4;
  static constexpr int kRowFactors = kWeights + kRows * kWeightStride * 2;
  static constexpr int kOffsets = kRowFactors + kRows * 4;
  static constexpr int kPlan =
      kOffsets + 2 * keys * 8;  // Of PlanKeys, and whether a page is missing.
  static constexpr int kBroken = kPlan + 16;
  static constexpr int kSharedBytes = kBroken + 16;
};

#if defined(MLA_ON_ROCM)
// 64 KiB of shared memory, room for one tile of keys.
using Heads16 = AttentionShape<1, 1, 4, 32, 1>;
using Heads32 = AttentionShape<2, 1, 4, 32, 1>;
using Heads64 = AttentionShape<4, 1, 2, 32, 1>;
#else
// 227 KiB, room for two.
using Heads16 = AttentionShape<1, 1, 4, 32, 2>;
using Heads32 = AttentionShape<2, 1, 4, 32, 2>;
using Heads64 = AttentionShape<2, 2, 4, 64, 2>;
#endif

template <typename Shape>
constexpr int AttentionThreads() {
  return Shape::kRowWaves * Shape::kColumnWaves * kPlatformWave;
}

// Kernels for any width and type, one head a block.
constexpr int kPlainThreads = 128;
constexpr int kPlainKeys = 64;
// The merge of splits. From kManySplits on, 8 threads share them.
constexpr int kMergeThreads = 256, kMergeRun = 4;
constexpr int kManySplits = 9, kMergeGroups = 8;

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_SHAPE_H_
