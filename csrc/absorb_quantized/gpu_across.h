// Sums across a head's weight rows: the rows are decoded into shared memory, from where matrix
// cores take their columns.
#ifndef MLA_ABSORB_QUANTIZED_GPU_ACROSS_H_
#define MLA_ABSORB_QUANTIZED_GPU_ACROSS_H_

#include "absorb_quantized/gpu_shape.h"
#include "gpu/weight_format.h"

namespace mla {
namespace gpu {

struct AcrossBlock {
  int64_t batch, first_column, first_token;

  MLA_DEVICE AcrossBlock(const ProductArgs& args, int columns, int tokens) {
    const int x = BlockX();
    const int rest = x / args.row_blocks;
    first_column = static_cast<int64_t>(x % args.row_blocks) * columns;
    first_token = static_cast<int64_t>(rest % args.token_blocks) * tokens;
    batch = rest / args.token_blocks;
  }
};

template <typename Format, int token_tiles>
struct AcrossProduct {
  static constexpr int kWaves = kAcrossThreads / kWave;
  // Values of a chunk of 16 bytes, and chunks of a block's share of a weight row.
  static constexpr int kValues = Format::kStep / 4;
  static constexpr int kRowChunks = kAcrossColumns / kValues;
  static constexpr int kMine = kAcrossRows * kRowChunks / kAcrossThreads;
  static constexpr int kWaveTiles = (token_tiles + kWaves - 1) / kWaves;

  const ProductArgs& args;
  const AcrossBlock block;
  bf16* weights;  // (kAcrossRows, kAcrossStride)

  MLA_DEVICE AcrossProduct(const ProductArgs& product, bf16* shared)
      : args(product), block(product, kAcrossColumns, 16 * token_tiles), weights(shared) {}

  MLA_DEVICE int64_t WeightRow(int64_t n) const {
    return args.first_row + block.batch * args.batch_rows + n;
  }

  // Rows from `first` on; zeros beyond the last row and column.
  MLA_DEVICE void Decode(int64_t first) const {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int at = ThreadX() + i * kAcrossThreads;
      const int row = at / kRowChunks, column = at % kRowChunks * kValues;
      const int64_t k = block.first_column + column;
      const bool valid = first + row < args.rows && k < args.k;
      Chunk chunk = {};
      uint32_t byte = 127;
      if (valid) {
        const int64_t weight_row = WeightRow(first + row);
        chunk = *reinterpret_cast<const Chunk*>(static_cast<const uint8_t*>(args.data) +
                                                (weight_row * args.k + k) * 16 / kValues);
        if constexpr (Format::kGroupScales) {
          byte = static_cast<const uint8_t*>(
              args.scale)[weight_row * args.scale_columns + k / kValues];
        }
      }
      const E2M1Scale scale(byte);
      bf16* to = weights + row * kAcrossStride + column;
#pragma unroll
      for (int o = 0; o < kValues / 8; ++o) {
        *reinterpret_cast<Chunk*>(to + 8 * o) = BitCast<Chunk>(Format::Decode(&chunk, o, scale));
      }
    }
  }

  MLA_DEVICE Fragment TokenFragment(int tile, int64_t first) const {
    return MakeFragment([&](int vector, int k) {
      const int64_t token = block.first_token + 16 * tile + vector;
      const int64_t n = first + k;
      const bool valid = token < args.tokens && n < args.rows;
      const bf16* from = static_cast<const bf16*>(args.x) +
                         (valid ? token * args.x_stride + block.batch * args.x_batch + n : 0);
      return valid ? LoadPack<kFragmentRun>(from) : Pack<bf16, kFragmentRun>{};
    });
  }

  // The scale that a block of rows shares with the block's columns.
  MLA_DEVICE float BlockScale(int64_t first) const {
    return ReadScale(args, WeightRow(first) / args.block_n * args.scale_columns +
                               block.first_column / args.block_k);
  }

  MLA_DEVICE void Run() {
    Accumulator sums[kWaveTiles][4];
    const int wave = ThreadX() / kWave;
    for (int64_t first = 0; first < args.rows; first += kAcrossRows) {
      if (first != 0) Barrier();
      Decode(first);
      Barrier();
#pragma unroll
      for (int i = 0; i < kWaveTiles; ++i) {
        const int tile = wave + i * kWaves;
        if (tile >= token_tiles || block.first_token + 16 * tile >= args.tokens) break;
        Accumulator part[4];
#pragma unroll
        for (int k = 0; k < kAcrossRows; k += kMmaK) {
          Fragment columns[4];
          LoadColumns(weights + k * kAcrossStride, kAcrossStride, columns);
          const Fragment tokens = TokenFragment(tile, first + k);
#pragma unroll
          for (int j = 0; j < 4; ++j) Mma(part[j], tokens, columns[j]);
        }
        const float scale = Format::kFoldOctets > 0 ? BlockScale(first) : 1.0f;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int v = 0; v < Accumulator::kValues; ++v) {
            sums[i][j].set(v, sums[i][j].at(v) + part[j].at(v) * scale);
          }
        }
      }
    }
    Emit(sums, wave);
  }

  MLA_DEVICE void Emit(const Accumulator (&sums)[kWaveTiles][4], int wave) const {
#pragma unroll
    for (int i = 0; i < kWaveTiles; ++i) {
      const int tile = wave + i * kWaves;
      if (tile >= token_tiles) break;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int v = 0; v < Accumulator::kValues; ++v) {
          const int64_t token = block.first_token + 16 * tile + Accumulator::Row(v);
          const int64_t column = block.first_column + ColumnOf(j, Accumulator::Column(v));
          if (token >= args.tokens || column >= args.k) continue;
          WriteOne(args.y, args.y_type, token * args.y_stride + block.batch * args.y_batch + column,
                   sums[i][j].at(v));
        }
      }
    }
  }
};

// Any types and sizes: a thread a column.
struct PlainAcross {
  const ProductArgs& args;

  MLA_DEVICE void Run() const {
    const AcrossBlock block(args, kAcrossPlainThreads, kPlainTokens);
    const int64_t column = block.first_column + ThreadX();
    if (column >= args.k) return;
    float sums[kPlainTokens] = {};
    int64_t tokens[kPlainTokens];
#pragma unroll
    for (int t = 0; t < kPlainTokens; ++t) {
      const int64_t token = block.first_token + t;
      tokens[t] = (token < args.tokens ? token : block.first_token) * args.x_stride +
                  block.batch * args.x_batch;
    }
    const auto* data = static_cast<const uint8_t*>(args.data);
    for (int64_t n = 0; n < args.rows; ++n) {
      const int64_t row = args.first_row + block.batch * args.batch_rows + n;
      const float weight = ReadWeight(args, data, args.scale, row, column);
#pragma unroll
      for (int t = 0; t < kPlainTokens; ++t) {
        sums[t] += ReadOne(args.x, args.x_type, tokens[t] + n) * weight;
      }
    }
#pragma unroll
    for (int t = 0; t < kPlainTokens; ++t) {
      const int64_t token = block.first_token + t;
      if (token >= args.tokens) break;
      WriteOne(args.y, args.y_type, token * args.y_stride + block.batch * args.y_batch + column,
               sums[t]);
    }
  }
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_ABSORB_QUANTIZED_GPU_ACROSS_H_
