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

// A tile of queries, 16 * row_tiles to a wave, and the keys that a step takes.
template <int waves, int row_tiles, int keys, int stages>
struct ExpandedShape {
  static constexpr int kRowTiles = row_tiles;
  static constexpr int kWaveRows = 16 * row_tiles;
  static constexpr int kRows = waves * kWaveRows;
  static constexpr int kThreads = waves * kPlatformWave;
  static constexpr int kKeys = keys;

  // A key's row in shared memory: its own columns, its values, its rope columns; padded, so that 16
  // rows lie in different banks.
  static constexpr int kValues = kNope, kKeyRope = kNope + kValue;
  static constexpr int kStride = kKeyRope + kRope + 8;

  // Parts of shared memory, in bytes from its beginning.
  static constexpr int kTile = 0;
  static constexpr int kFirstBroken = kTile + stages * keys * kStride * 2;
  static constexpr int kBroken = kFirstBroken + kValue * 4;
  static constexpr int kSharedBytes = kBroken + 16;
};

#if defined(MLA_ON_ROCM)
// 64 KiB of shared memory hold three tiles of keys: three blocks with one each.
using ExpandedTile = ExpandedShape<4, 2, 32, 1>;
#else
using ExpandedTile = ExpandedShape<8, 1, 64, 2>;
#endif

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_EXPANDED_GPU_SHAPE_H_
