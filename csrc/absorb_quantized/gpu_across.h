// Sums across a head's weight rows: the rows are decoded into shared memory, from where matrix
// cores take their columns.
#ifndef MLA_ABSORB_QUANTIZED_GPU_ACROSS_H_
#define MLA_ABSORB_QUANTIZED_GPU_ACROSS_H_

#include "absorb_quantized/gpu_shape.h"
#include "gpu/weight_format.h"

namespace mla {
namespace gpu {

struct AcrossBlock {
  int64_t batch, first_output, first_token;

  MLA_DEVICE AcrossBlock(const ProductArgs& args, int outputs, int tokens) {
    const int x = BlockX();
    const int rest = x / args.row_blocks;
    first_output = static_cast<int64_t>(x % args.row_blocks) * outputs;
    first_token = static_cast<int64_t>(rest % args.token_blocks) * tokens;
    batch = rest / args.token_blocks;
  }
};

// A wave takes 16 tokens and 64 outputs; where there are more waves than that, they share the
// contraction. It runs across the weight rows or, `along`, along them; then outputs are rows.
template <typename Format, int token_tiles, bool along>
struct AcrossProduct {
  using Shape = AcrossShape<16 * token_tiles, along>;
  static constexpr int kWaves = kAcrossThreads / kWave;
  // Values of a chunk of 16 bytes, and chunks of a block's share of a weight row.
  static constexpr int kValues = Format::kStep / 4;
  static constexpr int kRowChunks = Shape::kColumns / kValues;
  static constexpr int kMine = Shape::kRows * kRowChunks / kAcrossThreads;
  static constexpr int kTokenChunks = 16 * token_tiles * kAcrossDepth / 8;
  static constexpr int kMyTokens = (kTokenChunks + kAcrossThreads - 1) / kAcrossThreads;
  static constexpr int kItems = token_tiles * kAcrossOutputs / 64;
  static constexpr int kSplits = kWaves > kItems ? kWaves / kItems : 1;
  static constexpr int kMyItems = kWaves > kItems ? 1 : kItems / kWaves;
  static constexpr bool kFolds = Format::kFoldOctets > 0;
  static constexpr int kSumValues = 4 * Accumulator::kValues;

  const ProductArgs& args;
  const AcrossBlock block;
  bf16* weights;  // (Shape::kRows, Shape::kStride)
  bf16* tokens;   // (16 * token_tiles, Shape::kTokenStride)
  Chunk codes[kMine];
  uint32_t bytes[kMine];
  Chunk held[kMyTokens];

  MLA_DEVICE AcrossProduct(const ProductArgs& product, bf16* shared)
      : args(product),
        block(product, kAcrossOutputs, 16 * token_tiles),
        weights(shared),
        tokens(shared + Shape::kTokens) {}

  MLA_DEVICE int64_t WeightRow(int64_t n) const {
    return args.first_row + block.batch * args.batch_rows + n;
  }

  MLA_DEVICE int64_t Contraction() const { return along ? args.k : args.rows; }
  MLA_DEVICE int64_t Outputs() const { return along ? args.rows : args.k; }
  // The first weight row and column of the part that begins at `first` of the contraction.
  MLA_DEVICE int64_t FirstRow(int64_t first) const { return along ? block.first_output : first; }
  MLA_DEVICE int64_t FirstColumn(int64_t first) const { return along ? first : block.first_output; }

  // Reads codes and tokens from `first` of the contraction on; zeros beyond the last row, column
  // and token.
  MLA_DEVICE void Read(int64_t first) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int at = ThreadX() + i * kAcrossThreads;
      const int64_t n = FirstRow(first) + at / kRowChunks;
      const int64_t column = FirstColumn(first) + at % kRowChunks * kValues;
      codes[i] = Chunk{};
      bytes[i] = 127;
      if (n < args.rows && column < args.k) {
        const int64_t row = WeightRow(n);
        codes[i] = *reinterpret_cast<const Chunk*>(static_cast<const uint8_t*>(args.data) +
                                                   (row * args.k + column) * 16 / kValues);
        if constexpr (Format::kGroupScales) {
          bytes[i] =
              static_cast<const uint8_t*>(args.scale)[row * args.scale_columns + column / kValues];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kMyTokens; ++i) {
      const int at = ThreadX() + i * kAcrossThreads;
      const int64_t token = block.first_token + at / (kAcrossDepth / 8);
      const int64_t n = first + at % (kAcrossDepth / 8) * 8;
      held[i] = Chunk{};
      if (at < kTokenChunks && token < args.tokens && n < Contraction()) {
        held[i] =
            *reinterpret_cast<const Chunk*>(static_cast<const bf16*>(args.x) +
                                            token * args.x_stride + block.batch * args.x_batch + n);
      }
    }
  }

  MLA_DEVICE void Store() const {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int at = ThreadX() + i * kAcrossThreads;
      bf16* to = weights + at / kRowChunks * Shape::kStride + at % kRowChunks * kValues;
      const GroupScale scale{bytes[i]};
#pragma unroll
      for (int o = 0; o < kValues / 8; ++o) {
        *reinterpret_cast<Chunk*>(to + 8 * o) =
            BitCast<Chunk>(FromOrder<Format>(Format::template Decode<true>(&codes[i], o, scale)));
      }
    }
#pragma unroll
    for (int i = 0; i < kMyTokens; ++i) {
      const int at = ThreadX() + i * kAcrossThreads;
      if (kTokenChunks % kAcrossThreads != 0 && at >= kTokenChunks) break;
      *reinterpret_cast<Chunk*>(tokens + at / (kAcrossDepth / 8) * Shape::kTokenStride +
                                at % (kAcrossDepth / 8) * 8) = held[i];
    }
  }

  // The one scale of a part.
  MLA_DEVICE float BlockScale(int64_t first) const {
    return ReadScale(args, WeightRow(FirstRow(first)) / args.block_n * args.scale_columns +
                               FirstColumn(first) / args.block_k);
  }

  MLA_DEVICE static int Item(int i) { return ThreadX() / kWave / kSplits * kMyItems + i; }
  MLA_DEVICE static int Split() { return ThreadX() / kWave % kSplits; }
  MLA_DEVICE static int TokenTile(int item) { return item % token_tiles; }
  MLA_DEVICE static int Output(int item) { return item / token_tiles * 64; }

  MLA_DEVICE void Multiply([[maybe_unused]] float scale, Accumulator (&sums)[kMyItems][4]) const {
#pragma unroll
    for (int i = 0; i < kMyItems; ++i) {
      [[maybe_unused]] Accumulator part[4];
#pragma unroll
      for (int step = 0; step < kAcrossDepth / kMmaK / kSplits; ++step) {
        const int k = (step * kSplits + Split()) * kMmaK;
        Fragment outputs[4];
        if constexpr (along) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            outputs[j] = LoadFragment(weights + (Output(Item(i)) + 16 * j) * Shape::kStride + k,
                                      Shape::kStride);
          }
        } else {
          LoadColumns(weights + k * Shape::kStride + Output(Item(i)), Shape::kStride, outputs);
        }
        const Fragment token = LoadFragment(
            tokens + 16 * TokenTile(Item(i)) * Shape::kTokenStride + k, Shape::kTokenStride);
#pragma unroll
        for (int j = 0; j < 4; ++j) Mma(kFolds ? part[j] : sums[i][j], token, outputs[j]);
      }
      if constexpr (kFolds) {
#pragma unroll
        for (int v = 0; v < kSumValues; ++v) {
          const int j = v / Accumulator::kValues, at = v % Accumulator::kValues;
          sums[i][j].set(at, sums[i][j].at(at) + part[j].at(at) * scale);
        }
      }
    }
  }

  MLA_DEVICE void Run() {
    Accumulator sums[kMyItems][4];
    Read(0);
    for (int64_t first = 0; first < Contraction(); first += kAcrossDepth) {
      if (first != 0) Barrier();
      Store();
      Barrier();
      if (first + kAcrossDepth < Contraction()) Read(first + kAcrossDepth);
      Multiply(kFolds ? BlockScale(first) : 1.0f, sums);
    }
    if constexpr (kSplits > 1) AddSplits(sums[0]);
    if (Split() == 0) Emit(sums);
  }

  // In the order of the splits; each lane's values are where they were.
  MLA_DEVICE void AddSplits(Accumulator (&sums)[4]) const {
    static_assert(kSumValues * kAcrossThreads * 4 <= Shape::kSharedBytes, "sums take its place");
    auto* all = reinterpret_cast<float*>(weights);
    Barrier();
#pragma unroll
    for (int v = 0; v < kSumValues; ++v) {
      all[v * kAcrossThreads + ThreadX()] =
          sums[v / Accumulator::kValues].at(v % Accumulator::kValues);
    }
    Barrier();
    if (Split() != 0) return;
#pragma unroll
    for (int v = 0; v < kSumValues; ++v) {
      float total = all[v * kAcrossThreads + ThreadX()];
#pragma unroll
      for (int s = 1; s < kSplits; ++s) total += all[v * kAcrossThreads + ThreadX() + s * kWave];
      sums[v / Accumulator::kValues].set(v % Accumulator::kValues, total);
    }
  }

  MLA_DEVICE void Emit(const Accumulator (&sums)[kMyItems][4]) const {
#pragma unroll
    for (int i = 0; i < kMyItems; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int v = 0; v < Accumulator::kValues; ++v) {
          const int64_t token = block.first_token + 16 * TokenTile(Item(i)) + Accumulator::Row(v);
          const int n = Accumulator::Column(v);
          const int64_t output =
              block.first_output + Output(Item(i)) + (along ? 16 * j + n : ColumnOf(j, n));
          if (token >= args.tokens || output >= Outputs()) continue;
          WriteOne(args.y, args.y_type, token * args.y_stride + block.batch * args.y_batch + output,
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
    const int64_t column = block.first_output + ThreadX();
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
