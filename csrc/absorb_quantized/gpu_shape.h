// What the host and the device agree on: how blocks cover the products of all heads.
#ifndef MLA_ABSORB_QUANTIZED_GPU_SHAPE_H_
#define MLA_ABSORB_QUANTIZED_GPU_SHAPE_H_

#include "gpu/product.h"

namespace mla {
namespace gpu {

// Across the weight rows: y[token, batch, c] = sum over n of x[token, batch, n] * weight[first_row
// + batch * batch_rows + n, c], for c < k and n < rows; `row_blocks` counts blocks of columns then.
constexpr int kAcrossThreads = 256;
constexpr int kAcrossRows = 128, kAcrossColumns = 128;  // Decoded at a time.
constexpr int kAcrossStride = 128 + 8;
constexpr int kAcrossPlainThreads = 128;

// Weights and tokens; afterwards, in the same place, sums.
constexpr int AcrossSharedBytes(int tokens) { return (kAcrossRows + tokens) * kAcrossStride * 2; }

}  // namespace gpu
}  // namespace mla

#endif  // MLA_ABSORB_QUANTIZED_GPU_SHAPE_H_
