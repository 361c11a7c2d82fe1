// What the host and the device agree on: products with a head's weight rows summed over the rows.
#ifndef MLA_ABSORB_QUANTIZED_GPU_SHAPE_H_
#define MLA_ABSORB_QUANTIZED_GPU_SHAPE_H_

#include "gpu/product.h"

namespace mla {
namespace gpu {

// y[token, batch, c] = sum over n of x[token, batch, n] * weight[first_row + batch * batch_rows +
// n, c], for c < k and n < rows. `row_blocks` counts blocks of columns here.
constexpr int kAcrossThreads = 256;
constexpr int kAcrossColumns = 64;  // Of a block.
constexpr int kAcrossRows = 128;    // Decoded at a time.
constexpr int kAcrossStride = kAcrossColumns + 8;
constexpr int kAcrossPlainThreads = 128;

}  // namespace gpu
}  // namespace mla

#endif  // MLA_ABSORB_QUANTIZED_GPU_SHAPE_H_
