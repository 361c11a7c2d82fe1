// y = x . w^T (+ bias) with shuffled MXFP4 weights: rows in tiles of 16, of which 16 bytes after 16
// bytes lie together.
#ifndef MLA_LINEAR_SHUFFLED_KERNEL_H_
#define MLA_LINEAR_SHUFFLED_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace mla {

struct LinearShuffledArgs {
  const bf16* x;         // (tokens, 32 * chunks)
  const uint8_t* data;   // (tiles, chunks, 16, 16): a chunk is one group of 32 codes
  const uint8_t* scale;  // (tiles, scale_chunks, 16, 16): a chunk is the scales of 16 groups
  const void* bias;      // (rows) or null
  void* y;               // (tokens, rows)
  DType y_type, bias_type;
  int64_t tokens, rows, tiles, chunks, scale_chunks;
  uint8_t* arranged;   // Scratch of ArrangedBytes: x in the order in which matrix cores read it.
  int32_t row_blocks;  // How the grid covers the tiles.
};

// The most tokens of a call, and those that need no scratch.
constexpr int64_t kShuffledTokens = 128, kFewTokens = 8;

// Tokens of the kernel for many that takes `tokens`.
constexpr int64_t ManyTokens(int64_t tokens) {
  return tokens <= 32 ? 32 : (tokens <= 64 ? 64 : 128);
}
// Pairs of steps of 128 values, two bytes each. custom_calls/linear_shuffled.py allocates as much.
constexpr int64_t ArrangedBytes(int64_t tokens, int64_t chunks) {
  return tokens <= kFewTokens ? 0 : (chunks + 7) / 8 * 512 * ManyTokens(tokens);
}

MLA_DECLARE_KERNEL(LinearShuffled, LinearShuffledArgs)
// y = w in bf16, (rows, 32 * chunks); x, bias and tokens are not looked at.
MLA_DECLARE_KERNEL(ShuffledDequantize, LinearShuffledArgs)

}  // namespace mla

#endif  // MLA_LINEAR_SHUFFLED_KERNEL_H_
