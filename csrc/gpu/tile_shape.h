// The blocks of products whose waves hold all sums of a block: what the host and the device agree
// on.
#ifndef MLA_GPU_TILE_SHAPE_H_
#define MLA_GPU_TILE_SHAPE_H_

#include "gpu/platform.h"

namespace mla {
namespace gpu {

// A block: `splits` waves that share the contraction, each with all of the block's tiles of 16
// weight rows and of 16 tokens.
template <int row_tiles, int token_tiles, int splits>
struct TileShape {
  static constexpr int kRowTiles = row_tiles, kTokenTiles = token_tiles, kSplits = splits;
  static constexpr int kRows = 16 * row_tiles, kTokens = 16 * token_tiles;
  static constexpr int kThreads = splits * kPlatformWave;
  static constexpr int kSharedBytes = splits * kRows * kTokens * 4;
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_TILE_SHAPE_H_
