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

}  // namespace gpu
}  // namespace mla

#endif  // MLA_ABSORB_QUANTIZED_GPU_SHAPE_H_
