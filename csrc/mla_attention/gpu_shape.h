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

#if defined(MLA_ON_ROCM)
// A tile: heads of one token, 16 to a wave. column_waves waves share them: each takes a share of
// the contraction of the scores and, afterwards, a share of the output's columns.
template <int row_waves, int column_waves>
struct AttentionShape {
  static constexpr int kRowWaves = row_waves, kColumnWaves = column_waves;
  static constexpr int kThreads = row_waves * column_waves * kPlatformWave;
  static constexpr int kRows = 16 * row_waves;
  static constexpr int kKeys = 32;  // That a step takes.
  static constexpr bool kMemoryBound = false;

  // Rows in shared memory are padded, so that 16 of them lie in different banks.
  static constexpr int kStride = kWidth + 8;
  static constexpr int kScoreStride = kKeys + 4;
  static constexpr int kWeightStride = kKeys + 8;

  // Parts of shared memory, in bytes from its beginning. 64 KiB of it have room for one tile.
  static constexpr int kCache = 0;
  static constexpr int kScores = kCache + kKeys * kStride * 2;
  static constexpr int kWeights = kScores + column_waves * kRows * kScoreStride * 4;
  static constexpr int kFactors = kWeights + kRows * kWeightStride * 2;
  static constexpr int kOffsets = kFactors + kRows * 4;
  // Of PlanKeys, and whether a page is missing.
  static constexpr int kPlan = kOffsets + 2 * kKeys * 8;
  static constexpr int kBroken = kPlan + 16;
  static constexpr int kSharedBytes = kBroken + 16;
};

// Blocks of up to 16 heads that a machine takes at once, or larger ones.
constexpr int kBlocksAtOnce = 264;
using Heads16 = AttentionShape<1, 4>;
using Heads32 = AttentionShape<2, 4>;
using Heads64 = AttentionShape<4, 2>;
#else
// Heads of one token to a block, whose warpgroups of four waves share heads and latent columns.
template <int heads, int warpgroups>
struct WarpgroupShape {
  static constexpr int kRows = heads, kWarpgroups = warpgroups;
  static constexpr int kThreads = warpgroups * 4 * kPlatformWave;
  static constexpr int kKeys = 64;  // That a step takes.
  static constexpr bool kMemoryBound = heads < 64;

  // Parts of shared memory, in bytes from its beginning: two tiles of keys in 227 KiB.
  static constexpr int kCache = 0;
  static constexpr int kQuery = kCache + 2 * kKeys * kWidth * 2;
  static constexpr int kWeights = kQuery + heads * kWidth * 2;
  static constexpr int kPeaks = kWeights + heads * kKeys * 2;
  static constexpr int kFactors = kPeaks + 4 * heads * 4;
  static constexpr int kOffsets = kFactors + heads * 4;
  // Of PlanKeys, and whether a page is missing.
  static constexpr int kPlan = kOffsets + 2 * kKeys * 8;
  static constexpr int kBroken = kPlan + 16;
  static constexpr int kSharedBytes = kBroken + 16;
};

// A block has a processor of its own, of which an H200 has 132.
constexpr int kBlocksAtOnce = 132;
using Heads16 = WarpgroupShape<16, 2>;
using Heads32 = WarpgroupShape<32, 2>;
using Heads64 = WarpgroupShape<64, 2>;
#endif

// Kernels for any width and type, one head a block.
constexpr int kPlainThreads = 128;
constexpr int kPlainKeys = 64;
// The merge of splits. From kManySplits on, kMergeGroups threads share them.
constexpr int kMergeThreads = 256, kMergeRun = 4;
constexpr int kManySplits = 9, kMergeGroups = 16;

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_SHAPE_H_
