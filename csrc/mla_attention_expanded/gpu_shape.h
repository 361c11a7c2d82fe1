// What the host and the device agree on: tiles of queries and how a grid covers them.
#ifndef MLA_MLA_ATTENTION_EXPANDED_GPU_SHAPE_H_
#define MLA_MLA_ATTENTION_EXPANDED_GPU_SHAPE_H_

#include "gpu/platform.h"
#include "mla_attention_expanded/kernel.h"

namespace mla {
namespace gpu {

struct ExpandedGpuArgs {
  ExpandedAttentionArgs args;
  int32_t slots;  // For tiles of queries, of one head.
  float scale;    // softmax_scale times the base-2 logarithm of e.
};

// Where tiles of `rows` queries lie is known on the device only. Tile i of the sequence s that
// begins at token b takes slot b / rows + s + i: the next sequence's first slot is never below the
// one behind it. The tokens before the first sequence and behind the last one count as sequences
// that see no key, so that every token has a tile.
constexpr int64_t TileSlots(const ExpandedAttentionArgs& args, int64_t rows) {
  return args.tokens / rows + args.sequences + 2;
}

// The plain kernel: a tile of queries of one head and some of its output columns a block.
constexpr int kPlainRows = 32, kPlainColumns = 128, kPlainThreads = 256;

// The widths of almost every published MLA model, which the matrix-core kernel is made for.
constexpr int kNope = 128, kRope = 64, kValue = 128;

// Heads whose tiles are in one order, the longest first.
constexpr int kHeadGroup = 16;

// A tile of queries, 16 * row_tiles to a wave, and the keys that a step takes. `shared`: queries
// and what a row remembers are in shared memory, because sums and scores take all registers.
template <int waves, int row_tiles, int keys, int stages, bool shared>
struct ExpandedShape {
  static constexpr int kRowTiles = row_tiles;
  static constexpr int kWaveRows = 16 * row_tiles;
  static constexpr int kRows = waves * kWaveRows;
  static constexpr int kThreads = waves * kPlatformWave;
  static constexpr int kKeys = keys;
  static constexpr bool kShared = shared;

  // A key's row in shared memory: its own columns, its values, its rope columns. Rows are padded,
  // so that 16 of them lie in different banks.
  static constexpr int kValues = kNope, kKeyRope = kNope + kValue;
  static constexpr int kStride = kKeyRope + kRope + 8, kQueryStride = kNope + kRope + 8;

  // Parts of shared memory, in bytes from its beginning.
  static constexpr int kTile = 0;
  static constexpr int kFirstBroken = kTile + stages * keys * kStride * 2;
  static constexpr int kBroken = kFirstBroken + kValue * 4;
  static constexpr int kHead = kBroken + 4;
  static constexpr int kQuery = kBroken + 16;
  static constexpr int kPeaks = kQuery + (shared ? kRows * kQueryStride * 2 : 0);
  static constexpr int kRowBytes = shared ? kThreads * row_tiles * 2 * 4 : 0;
  static constexpr int kTotals = kPeaks + kRowBytes;
  static constexpr int kSharedBytes = kTotals + kRowBytes;
  static constexpr int kLaunchBytes = LaunchBytes(kSharedBytes);
};

#if defined(MLA_ON_ROCM)
// gfx942's 64 KiB of shared memory hold the keys of three blocks; gfx950 has 160 KiB.
using ExpandedLong = ExpandedShape<4, 2, 32, kRoomForTiles, false>;
using ExpandedShort = ExpandedShape<4, 1, 32, kRoomForTiles, false>;
#else
// 227 KiB: of one block of 256 rows, or of two of 128.
using ExpandedLong = ExpandedShape<8, 2, 64, 2, true>;
using ExpandedShort = ExpandedShape<4, 2, 32, 2, true>;
#endif
// Sequences of this many tokens on average are long: they have work for many large tiles.
constexpr int kLongTokens = 1024;

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_EXPANDED_GPU_SHAPE_H_
