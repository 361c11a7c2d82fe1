// What the host and the device agree on.
#ifndef MLA_LINEAR_MXFP4_GPU_SHAPE_H_
#define MLA_LINEAR_MXFP4_GPU_SHAPE_H_

#include "gpu/platform.h"
#include "linear_mxfp4/kernel.h"

namespace mla {
namespace gpu {

// A block: `splits` waves that share the contraction, each with all of the block's tiles of 16
// weight rows and of 16 tokens.
template <int row_tiles, int token_tiles, int splits>
struct Mxfp4Shape {
  static constexpr int kRowTiles = row_tiles, kTokenTiles = token_tiles, kSplits = splits;
  static constexpr int kRows = 16 * row_tiles, kTokens = 16 * token_tiles;
  static constexpr int kThreads = splits * kPlatformWave;
  static constexpr int kSharedBytes = splits * kRows * kTokens * 4;
};

// Few tokens: many waves read the weight. Many: a weight that was read meets more of them.
using Mxfp4Few = Mxfp4Shape<1, 1, 8>;
#if defined(MLA_ON_ROCM)
using Mxfp4Many = Mxfp4Shape<2, 4, 4>;
#else
using Mxfp4Many = Mxfp4Shape<2, 2, 4>;  // More do not fit into registers once they are decoded.
#endif

}  // namespace gpu
}  // namespace mla

#endif  // MLA_LINEAR_MXFP4_GPU_SHAPE_H_
