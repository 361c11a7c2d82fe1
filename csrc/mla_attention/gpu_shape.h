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
// the scores and, afterwards, a share of the output's columns. Of the scores they share the keys
// among key_waves and the contraction among the others.
template <int row_waves, int column_waves, int key_waves>
struct AttentionShape {
  static constexpr int kRowWaves = row_waves, kColumnWaves = column_waves;
  static constexpr int kKeyWaves = key_waves, kParts = column_waves / key_waves;
  static constexpr int kThreads = row_waves * column_waves * kPlatformWave;
  static constexpr int kRows = 16 * row_waves;
  static constexpr int kKeys = 32;  // That a step takes.
  static constexpr bool kMemoryBound = false;

  // Rows in shared memory are padded, so that 16 of them lie in different banks.
  static constexpr int kStride = kWidth + 8;
  static constexpr int kScoreStride = kKeys + 4;
  static constexpr int kWeightStride = kKeys + 8;

  // Parts of shared memory, in bytes from its beginning.
  static constexpr int kCache = 0;
  static constexpr int kScores = kCache + kRoomForTiles * kKeys * kStride * 2;
  static constexpr int kWeights = kScores + kParts * kRows * kScoreStride * 4;
  static constexpr int kFactors = kWeights + kRows * kWeightStride * 2;
  static constexpr int kOffsets = kFactors + kRows * 4;
  // Of PlanKeys, and whether a page is missing.
  static constexpr int kPlan = kOffsets + 2 * kKeys * 8;
  static constexpr int kBroken = kPlan + 16;
  static constexpr int kSharedBytes = kBroken + 16;
  static constexpr int kLaunchBytes = LaunchBytes(kSharedBytes);
};

constexpr int64_t kFewKeys = 0;  // Never fewer heads than there could be.
// Sharing the keys keeps gfx950's two blocks of 16 heads within 160 KiB of shared memory.
using Heads16 = AttentionShape<1, 4, kRoomForTiles>;
using Heads32 = AttentionShape<2, 4, 1>;
using Heads64 = AttentionShape<4, 2, 1>;
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
  static constexpr int kLaunchBytes = LaunchBytes(kSharedBytes);
};

// Where blocks of 32 heads with no more keys than this fit the machine, larger ones would only make
// more partial results.
constexpr int64_t kFewKeys = 128;
using Heads16 = WarpgroupShape<16, 2>;
using Heads32 = WarpgroupShape<32, 2>;
using Heads64 = WarpgroupShape<64, 2>;
#endif

// Heads of a block, 16, 32 or 64, and splits of the keys.
struct TilePlan {
  int rows;
  int64_t splits;
};

// From shapes alone. Of at most `most` splits, no more than give every processor a block, which on
// most machines is all that its shared memory holds: each makes a partial result of every row.
inline TilePlan PlanTiles(const MlaAttentionArgs& args, int64_t most) {
  const auto blocks = [&](int rows) { return args.tokens * ((args.heads + rows - 1) / rows); };
  int rows = args.heads <= 16 ? 16 : (args.heads <= 32 ? 32 : 64);
  const int64_t keys = args.max_pages * args.page_size;
  if (rows == 64 && blocks(32) * keys <= kProcessors * kFewKeys) rows = 32;
  const int64_t filling = blocks(rows) < 1 ? 1 : kProcessors / blocks(rows);
  return {rows, filling < 1 ? 1 : (filling < most ? filling : most)};
}

// Kernels for any width and type, one head a block.
constexpr int kPlainThreads = 128;
constexpr int kPlainKeys = 64;
// The merge of splits. From kManySplits on, kMergeGroups threads share them.
constexpr int kMergeThreads = 256, kMergeRun = 4;
constexpr int kManySplits = 9, kMergeGroups = 16;
// On an H200, of more partial rows than kWaitingRows, fewer threads: reading them takes longer than
// waiting for them, and every thread has sums of its own to hand over.
constexpr int kFewerGroups = 8;
constexpr int64_t kWaitingRows = 2048;

// Threads that share the splits.
inline int MergeGroupsOf(const MlaAttentionArgs& args) {
  if (args.splits < kManySplits) return 1;
#if !defined(MLA_ON_ROCM)
  if (args.splits * args.tokens * args.heads > kWaitingRows) return kFewerGroups;
#endif
  return kMergeGroups;
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_SHAPE_H_
