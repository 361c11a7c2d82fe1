// The sums of a block of gpu/tile_shape.h: every wave has its part of the contraction's, one adds
// them up and writes them.
#ifndef MLA_GPU_TILE_SUMS_H_
#define MLA_GPU_TILE_SUMS_H_

#include "gpu/octet.h"
#include "gpu/tile_shape.h"

namespace mla {
namespace gpu {

template <typename Shape>
struct BlockSums {
  // A tile of tokens is 16 on AMD's matrix cores and 8 on NVIDIA's.
  static constexpr int kTokenTiles = Shape::kTokens / kTileTokens;
  static constexpr int kRowTiles = Shape::kRowTiles;

  int64_t rows, tokens;  // Of the whole product.
  int64_t first_row, first_token;
  TileSums at[kRowTiles][kTokenTiles];

  // The grid is blocks of rows, for each block of tokens.
  MLA_DEVICE BlockSums(int64_t rows, int64_t tokens, int32_t row_blocks)
      : rows(rows), tokens(tokens) {
    first_row = static_cast<int64_t>(BlockX() % row_blocks) * Shape::kRows;
    first_token = static_cast<int64_t>(BlockX() / row_blocks) * Shape::kTokens;
  }

  MLA_DEVICE static int Split() { return ThreadX() / kWave; }

  // Rows and tokens beyond the last are the last ones again, whose sums nobody asks for.
  MLA_DEVICE int64_t Row(int tile, int row) const {
    return Inside(first_row + 16 * tile + row, rows);
  }
  MLA_DEVICE int64_t Token(int tile, int token) const {
    return Inside(first_token + kTileTokens * tile + token, tokens);
  }

  // The waves' sums in their order, each lane's values where they were; true for the wave that has
  // them.
  MLA_DEVICE bool AddSplits(float* shared) {
    constexpr int kValues = kRowTiles * kTokenTiles * 4;
    const int split = Split();
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      shared[(split * kValues + v) * kWave + Lane()] =
          at[v / (4 * kTokenTiles)][v / 4 % kTokenTiles].at[v % 4];
    }
    Barrier();
    if (split != 0) return false;
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      float total = 0;
#pragma unroll
      for (int s = 0; s < Shape::kSplits; ++s) total += shared[(s * kValues + v) * kWave + Lane()];
      at[v / (4 * kTokenTiles)][v / 4 % kTokenTiles].at[v % 4] = total;
    }
    return true;
  }

  // y (tokens, rows), each value times `factor`.
  MLA_DEVICE void Write(void* y, DType y_type, float factor = 1) const {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const int64_t row = first_row + 16 * i + TileSums::Row(v);
          const int64_t token = first_token + kTileTokens * t + TileSums::Token(v);
          if (row < rows && token < tokens) {
            WriteOne(y, y_type, token * rows + row, at[i][t].at[v] * factor);
          }
        }
      }
    }
  }

 private:
  MLA_DEVICE static int64_t Inside(int64_t index, int64_t count) {
    return index < count ? index : count - 1;
  }
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_TILE_SUMS_H_
