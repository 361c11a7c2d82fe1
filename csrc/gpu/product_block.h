// Which rows and tokens a block of a product has, and what becomes of its sums.
#ifndef MLA_GPU_PRODUCT_BLOCK_H_
#define MLA_GPU_PRODUCT_BLOCK_H_

#include "gpu/weight_format.h"

namespace mla {
namespace gpu {

struct ProductBlock {
  const ProductArgs& args;
  int64_t batch, row_block;
  int64_t first, count;  // Tokens, or positions of routed ones.
  const uint8_t* data;
  const uint8_t* scale;

  // Blocks that share weight rows are neighbours.
  MLA_DEVICE ProductBlock(const ProductArgs& product, int tokens)
      : ProductBlock(product, tokens, BlockX()) {}
  // The x-th of the grid; for kernels of which several blocks share one's work.
  MLA_DEVICE ProductBlock(const ProductArgs& product, int tokens, int x) : args(product) {
    const int token_block = x % args.token_blocks, rest = x / args.token_blocks;
    row_block = rest % args.row_blocks;
    batch = rest / args.row_blocks;
    data = static_cast<const uint8_t*>(args.data);
    scale = static_cast<const uint8_t*>(args.scale);
    if (args.tile_expert == nullptr) {
      first = static_cast<int64_t>(token_block) * tokens;
      count = args.tokens - first;
    } else {
      const int64_t expert = args.tile_expert[token_block];
      if (expert < 0) {
        first = count = 0;
        return;
      }
      first = args.tile_first[token_block];
      count = args.expert_start[expert + 1] - first;
      data += expert * args.expert_bytes;
      scale += expert * args.expert_scales;
    }
    if (count > tokens) count = tokens;
  }

  MLA_DEVICE int64_t Outputs() const { return args.gated ? args.rows / 2 : args.rows; }

  // The first of the 16 outputs that tile `tile` of the block contributes to.
  template <int block_tiles>
  MLA_DEVICE int64_t TileOutput(int tile) const {
    const int at =
        args.gated ? row_block * (block_tiles / 2) + tile / 2 : row_block * block_tiles + tile;
    return 16 * static_cast<int64_t>(at);
  }
  // The weight row for an output; one beyond the last takes the last row, and nobody asks for its
  // sum. Odd tiles of a gated product are up rows.
  MLA_DEVICE int64_t WeightRow(int64_t output, int tile) const {
    const int64_t outputs = Outputs();
    const int64_t row = output < outputs ? output : outputs - 1;
    return args.first_row + batch * args.batch_rows + row +
           (args.gated && tile % 2 != 0 ? outputs : 0);
  }

  // Where row `token` of this block's tokens begins in its batch.
  MLA_DEVICE int64_t TokenOffset(int64_t token) const {
    const int64_t position = first + token;
    const int64_t row = args.row_of != nullptr ? args.row_of[position] : position;
    return row * args.x_stride;
  }

  MLA_DEVICE void Emit(int64_t output, int64_t token, float sum) const {
    if (args.bias != nullptr) sum += ReadOne(args.bias, args.bias_type, output);
    WriteOne(args.y, args.y_type, (first + token) * args.y_stride + batch * args.y_batch + output,
             sum);
  }
};

MLA_DEVICE float Gated(float gate, float up) { return gate / (1.0f + Exp2(-gate * kLog2E)) * up; }

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_PRODUCT_BLOCK_H_
