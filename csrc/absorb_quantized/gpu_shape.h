// What the host and the device agree on: how blocks cover the products of all heads.
#ifndef MLA_ABSORB_QUANTIZED_GPU_SHAPE_H_
#define MLA_ABSORB_QUANTIZED_GPU_SHAPE_H_

#include "gpu/product.h"

namespace mla {
namespace gpu {

// Across the weight rows: y[token, batch, c] = sum over n of x[token, batch, n] * weight[first_row
// + batch * batch_rows + n, c], for c < k and n < rows; `row_blocks` counts blocks of columns then.
constexpr int kAcrossThreads = 256;
constexpr int kAcrossOutputs = 128;  // Of a block.
constexpr int kAcrossPlainThreads = 128;

// Values of the contraction that are decoded at a time: no more than kAcrossMost. gfx942's 64 KiB
// of shared memory hold two blocks then.
constexpr int kAcrossMost = 128;
#if defined(MLA_ON_ROCM) && !defined(__gfx950__)
constexpr int kAcrossDepth = 64;
#else
constexpr int kAcrossDepth = kAcrossMost;
#endif

// A block's weights, of some rows and columns, and its tokens; afterwards, in the same place, sums.
template <int tokens, bool along>
struct AcrossShape {
  static constexpr int kRows = along ? kAcrossOutputs : kAcrossDepth;
  static constexpr int kColumns = along ? kAcrossDepth : kAcrossOutputs;
  // Padded, so that 16 rows lie in different banks.
  static constexpr int kStride = kColumns + 8, kTokenStride = kAcrossDepth + 8;

  static constexpr int kTokens = kRows * kStride;  // Where they begin, in elements.
  static constexpr int kSharedBytes = (kTokens + tokens * kTokenStride) * 2;
  static constexpr int kLaunchBytes = LaunchBytes(kSharedBytes);
};

#if !defined(MLA_ON_ROCM)
// MXFP4 on Hopper: a block takes up to kTile rows of a head, of the latent columns of every
// published model, in tiles of kTile columns: with few tokens all at once, else one after the
// other.
constexpr int kHeadColumns = 512;
template <int tokens, bool along>
struct HeadShape {
  static constexpr int kThreads = 512, kTile = 128, kTiles = kHeadColumns / kTile;
  static constexpr int kTokens = tokens;
  static constexpr bool kTilesInTurn = along && tokens > 64;
  static constexpr int kDepthTiles = along ? kTiles : 1;      // Of the contraction.
  static constexpr int kDecoded = kTilesInTurn ? 2 : kTiles;  // Tiles that there is room for.

  // Parts of shared memory, in bytes from its beginning. Results take the place of weights.
  static constexpr int kTokenBytes = tokens * kTile * 2, kTileBytes = kTile * kTile * 2;
  static constexpr int kWeights = kDepthTiles * kTokenBytes;
  static constexpr int kCodes = kWeights + kDecoded * kTileBytes;
  static constexpr int kScales = kCodes + kTile * kHeadColumns / 2;
  static constexpr int kArrivals = kScales + kTile * kHeadColumns / 32;
  static constexpr int kSharedBytes = kArrivals + 64;
};

// Tokens of the kernels, and which of them to take.
constexpr int kHeadKernels = 5, kHeadTokens[kHeadKernels] = {8, 16, 32, 64, 128};
inline int HeadKernelOf(int64_t tokens) {
  int which = 0;
  while (which + 1 < kHeadKernels && kHeadTokens[which] < tokens) ++which;
  return which;
}

// How a grid covers the work.
inline void PlanHeads(ProductArgs* args, bool along) {
  const auto blocks = [](int64_t count, int size) {
    return static_cast<int32_t>((count + size - 1) / size);
  };
  args->row_blocks = along ? blocks(args->rows, HeadShape<8, true>::kTile) : 1;
  args->token_blocks = blocks(args->tokens, kHeadTokens[HeadKernelOf(args->tokens)]);
}
#endif

}  // namespace gpu
}  // namespace mla

#endif  // MLA_ABSORB_QUANTIZED_GPU_SHAPE_H_
