// What the host and the device agree on.
#ifndef MLA_LINEAR_SHUFFLED_GPU_SHAPE_H_
#define MLA_LINEAR_SHUFFLED_GPU_SHAPE_H_

#include "gpu/platform.h"
#include "linear_shuffled/kernel.h"

namespace mla {
namespace gpu {

// A block of `waves` waves has up to `tiles` tiles of 16 rows and all of the contraction, of which
// the waves take equal shares: a stage of `steps` steps of one tile after the other. Every wave
// sums up all of the block's tiles for itself, in shared memory.
template <int tiles, int tokens, int waves, int steps, int stages>
struct FewShape {
  static constexpr int kTiles = tiles, kTokens = tokens, kWaves = waves;
  static constexpr int kSteps = steps, kStages = stages;
  static constexpr int kThreads = waves * kPlatformWave;
#if defined(MLA_ON_ROCM)
  static constexpr int kRingBytes = 0, kSumTokens = tokens < 16 ? 16 : tokens;
#else
  static constexpr int kRingBytes = waves * stages * (steps * 1024 + steps * 64);
  static constexpr int kSumTokens = tokens;
#endif
  static constexpr int kWaveSums = tiles * 16 * kSumTokens;  // Floats.
  static constexpr int kSharedBytes = kRingBytes + waves * kWaveSums * 4;
};

#if defined(MLA_ON_ROCM)
using Few16 = FewShape<4, 16, 8, 4, 2>;
using Few32 = FewShape<4, 32, 4, 2, 2>;
#else
using Few8 = FewShape<9, 8, 16, 4, 2>;
using Few16 = FewShape<9, 16, 12, 2, 4>;
#endif

#if !defined(MLA_ON_ROCM)
// A block has warpgroups of 64 rows, whose waves have a ring of `stages` stages of weights each,
// and a wave that copies tokens for them, `token_stages` steps of 128 values. `splits` blocks are a
// cluster: `own` groups of a block have all of the contraction for themselves, `shared` ones a
// share of it that the cluster adds up. So work spreads evenly over processors though rows come
// by 64.
template <int tokens, int own, int shared, int splits, int token_stages, int stages>
struct ManyShape {
  static constexpr int kTokens = tokens, kOwn = own, kShared = shared, kSplits = splits;
  static constexpr int kTokenStages = token_stages, kStages = stages;
  static constexpr int kGroups = own + shared, kThreads = kGroups * 128 + 32;
  static constexpr int kRows = 64 * kGroups;                    // Of a block's sums.
  static constexpr int kClusterGroups = splits * own + shared;  // 64 rows each.
  static constexpr int kPanelBytes = tokens * 128;              // 64 values of the tokens.
  static constexpr int kBarrierBytes = 1024;                    // Panels begin at multiples of it.
  static constexpr int kRingBytes =
      token_stages * 2 * kPanelBytes + 4 * kGroups * stages * 2 * (1024 + 64);
  static constexpr int kSumBytes = tokens * (kRows + 4) * 4;
  static constexpr int kSharedBytes =
      kBarrierBytes + (kRingBytes > kSumBytes ? kRingBytes : kSumBytes);
};
// Clusters of four would spread rows better still, and an H200 has room for 30 of them, not 33.
using Many32 = ManyShape<32, 2, 1, 2, 4, 6>;
using Many32Split = ManyShape<32, 0, 3, 3, 4, 6>;
using Many64 = ManyShape<64, 2, 1, 2, 4, 5>;
using Many64Split = ManyShape<64, 0, 3, 3, 4, 5>;
using Many128 = ManyShape<128, 2, 1, 2, 3, 4>;
using Many128Split = ManyShape<128, 0, 3, 3, 3, 4>;
constexpr int kArrangeThreads = 256;
#endif
constexpr int kDecodeThreads = 256;  // For 16 chunks of a tile.

}  // namespace gpu
}  // namespace mla

#endif  // MLA_LINEAR_SHUFFLED_GPU_SHAPE_H_
