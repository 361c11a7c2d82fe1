// Products of token rows with rows of a weight, quantised or bf16: what the host and the device
// agree on, for every op that is made of them.
#ifndef MLA_GPU_PRODUCT_H_
#define MLA_GPU_PRODUCT_H_

#include "common/quantized_matrix.h"
#include "gpu/platform.h"
#if defined(MLA_GPU)
#include "gpu/runtime.h"
#endif

namespace mla {
namespace gpu {

// Element format of a weight; the first four are those of Code.
enum class WeightFormat : int32_t {
  kE2M1 = 0,
  kE4M3 = 1,
  kInt4 = 2,
  kE4M3Fnuz = 3,
  kBF16 = 4,
  kF32 = 5
};

// y[token, n] = sum_k x[token, k] * weight[n, k] (+ bias[n]), in f32 and rounded once; for each of
// `batches` pairs of token and weight rows. Strides are in elements.
struct ProductArgs {
  const void* x;
  void* y;
  const void* bias;  // (rows) or null
  const void* data;
  const void* scale;  // (weight rows / block_n, scale_columns)
  DType x_type, y_type, bias_type, scale_type;
  WeightFormat format;
  int64_t tokens, rows, k, batches;
  int64_t x_stride, x_batch, y_stride, y_batch;
  int64_t first_row, batch_rows;  // Row n of batch b is row first_row + b * batch_rows + n.
  int64_t block_n, block_k, scale_columns;
  // Gated: `rows` gate rows and as many up rows behind them give y = silu(gate) * up.
  bool gated;

  // Routed tokens: each tile of them belongs to an expert, whose weight it takes. Null: not routed.
  const int32_t* tile_expert;           // Of a tile; negative: no tile.
  const int32_t* tile_first;            // A tile's first position in the order by expert.
  const int32_t* expert_start;          // (experts + 1) positions
  const int32_t* row_of;                // The row of x at a position; null: its own.
  int64_t expert_bytes, expert_scales;  // From one expert to the next, in data and in scales.

  int32_t row_blocks, token_blocks;  // How the grid covers rows and tokens.
};

// Tokens a block takes, by kernel.
constexpr int kPlainTokens = 8;
constexpr int kPlainThreads = 256;

#if defined(MLA_ON_ROCM)
constexpr int kLaneChunkRows = 1;    // Rows of a tile that a lane loads, into registers.
constexpr int kSmallestTokens = 16;  // Tokens of a tile.
constexpr int kRingSteps = 2, kTokenPad = 16;
#else
constexpr int kLaneChunkRows = 2;  // Through shared memory.
constexpr int kSmallestTokens = 8;
constexpr int kRingSteps = 4, kTokenPad = 64;
#endif

// Bytes of a token's row in shared memory, a step's values and a pad against bank conflicts.
constexpr int kTokenBytes = 256 + kTokenPad;

// A block of `row_waves` times `splits` waves, each with row_tiles tiles of 16 rows. Waves of a
// split share the tokens; splits share the contraction.
template <int row_tiles, int tokens, int row_waves, int splits, bool shared_tokens, int blocks>
struct ProductShape {
  static constexpr int kRowTiles = row_tiles;
  static constexpr int kBlocks = blocks;  // That should fit on a processor together.
  static constexpr int kTokens = tokens;
  static constexpr int kRowWaves = row_waves, kSplits = splits;
  static constexpr int kWaves = row_waves * splits;
  static constexpr int kThreads = kWaves * kPlatformWave;
  static constexpr int kRows = 16 * row_tiles * row_waves;
  static constexpr bool kSharedTokens = shared_tokens;
  static constexpr int kRing = kRingSteps;

  // Parts of dynamic shared memory: tokens, the lanes' weights and, in the same place afterwards,
  // the splits' sums.
  static constexpr int kSplitTokenBytes = shared_tokens ? 2 * tokens * kTokenBytes : 0;
  static constexpr int kRingBytes =
      kLaneChunkRows == 1 ? 0 : kRing * kThreads * row_tiles * kLaneChunkRows * 16;
  static constexpr int kSumTokens = tokens < kSmallestTokens ? kSmallestTokens : tokens;
  static constexpr int kSumBytes = splits == 1 ? 0 : splits * kRows * kSumTokens * 4;

  static constexpr int SharedBytes(int chunks) {
    return splits * kSplitTokenBytes + kRingBytes * chunks > kSumBytes
               ? splits * kSplitTokenBytes + kRingBytes * chunks
               : kSumBytes;
  }
};

// Few tokens: the weight streams through, and tokens come from the first-level cache. An even
// number of row tiles also does gated products.
using StreamShape8 = ProductShape<2, 8, 1, 4, false, 5>;
using StreamShape16 = ProductShape<2, 16, 1, 4, false, 4>;
using WideShape8 = ProductShape<3, 8, 1, 4, false, 4>;
// The same for weights of few rows.
using NarrowShape8 = ProductShape<1, 8, 1, 8, false, 4>;
using NarrowShape16 = ProductShape<1, 16, 1, 8, false, 2>;
// More tokens, which take the way through shared memory.
using TileShape32 = ProductShape<2, 32, 4, 2, true, 2>;
using TileShape64 = ProductShape<2, 64, 8, 1, true, 1>;
#if defined(MLA_ON_ROCM)
using LowShape16 = ProductShape<1, 16, 4, 2, true, 2>;
using LowShape32 = ProductShape<1, 32, 4, 2, true, 2>;
using HighShape16 = ProductShape<1, 16, 8, 1, true, 2>;
using HighShape32 = ProductShape<1, 32, 8, 1, true, 2>;
#else
using LowShape16 = ProductShape<1, 16, 4, 4, true, 1>;
using LowShape32 = ProductShape<1, 32, 4, 4, true, 1>;
using HighShape16 = ProductShape<1, 16, 9, 2, true, 1>;
using HighShape32 = ProductShape<1, 32, 9, 2, true, 1>;
#endif

#if !defined(MLA_ON_ROCM)
// MXFP4 on Hopper: warpgroups of 64 rows each, and clusters of `splits` blocks that share the
// contraction.
template <int groups, int tokens, int splits, int blocks>
struct WarpgroupShape {
  static constexpr int kTokens = tokens, kSplits = splits;
  static constexpr int kBlocks = blocks;  // That should fit on a processor together.
  static constexpr int kThreads = groups * 128, kRows = groups * 64;
  static constexpr int kRing = 4, kStep = 128;

  // Parts of dynamic shared memory: three steps' tokens, and four's scales and weights; in the same
  // place afterwards, sums.
  static constexpr int kStepBytes =
      3 * tokens * kStep * 2 + kRing * kRows * (kStep / 32 + kStep / 2);
  static constexpr int kSumBytes = tokens * (kRows + 4) * 4;
  static constexpr int kSharedBytes = kStepBytes > kSumBytes ? kStepBytes : kSumBytes;
};
using Warpgroups16Split4 = WarpgroupShape<1, 16, 4, 4>;
using Warpgroups16 = WarpgroupShape<2, 16, 1, 2>;
using Warpgroups32Split4 = WarpgroupShape<2, 32, 4, 2>;
using Warpgroups32 = WarpgroupShape<2, 32, 1, 2>;
using Warpgroups64Split4 = WarpgroupShape<2, 64, 4, 2>;
using Warpgroups64 = WarpgroupShape<2, 64, 1, 2>;
using Warpgroups128Split4 = WarpgroupShape<2, 128, 4, 1>;
using Warpgroups128Split2 = WarpgroupShape<3, 128, 2, 1>;
using Warpgroups128 = WarpgroupShape<3, 128, 1, 1>;
#endif

#if defined(MLA_GPU)
// A kernel for a product and how it covers it; from shapes alone.
struct ProductKernel {
  const char* name;
  int tokens, rows, threads, shared_bytes;  // Tokens and weight rows of a block.
  int splits = 1;                           // Blocks that share them.
};
// `tokens` is how many a batch, or an expert on average, has.
ProductKernel ChooseProduct(const ProductArgs& args, int64_t tokens);

// The weight's part of the arguments; sets data, scales, format, rows and k.
ProductArgs ProductOf(const QuantizedMatrix& weight);

// Fills in how the grid covers the work. Routed products say themselves how many tiles they have.
xla::ffi::Error LaunchProduct(const ProductKernel& kernel, ProductArgs args, const Stream& stream);
#endif

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_PRODUCT_H_
