// Few tokens: the time is that of reading the weights.
#ifndef MLA_LINEAR_SHUFFLED_GPU_FEW_H_
#define MLA_LINEAR_SHUFFLED_GPU_FEW_H_

#include "gpu/octet.h"
#include "gpu/shuffled_tiles.h"
#include "linear_shuffled/gpu_shape.h"

namespace mla {
namespace gpu {

template <typename Shape>
struct FewProduct {
  static constexpr int kSteps = Shape::kSteps, kStages = Shape::kStages;
  static constexpr int kTokenTiles =
      Shape::kTokens > kTileTokens ? Shape::kTokens / kTileTokens : 1;
  static constexpr int kAhead = kStages - 1;
  using Weights = ShuffledTiles<kSteps, kStages>;
  // A lane's sums of a tile, as they lie in shared memory.
  struct alignas(16) Sums {
    TileSums of[kTokenTiles];
  };

  // A stage of a tile; stages of one place of the contraction follow each other, tile by tile, so
  // that tokens are read once for all of them.
  struct Turn {
    int stage, tile;
    MLA_DEVICE void Next(int tiles) {
      if (++tile == tiles) {
        tile = 0;
        ++stage;
      }
    }
  };

  const LinearShuffledArgs& args;
  Sums* sums;  // Of this wave.
  Weights weights;
  int64_t first_tile, first_token;
  int tiles, tokens;  // Of this block.
  int chunks;

  MLA_DEVICE FewProduct(const LinearShuffledArgs& product, char* shared)
      : args(product),
        sums(reinterpret_cast<Sums*>(shared + Shape::kRingBytes) +
             Wave() * (Shape::kTiles * kWave)),
        weights(shared + Wave() * Weights::kBytes),
        chunks(static_cast<int>(product.chunks)) {
    const int64_t row_block = BlockX() % args.row_blocks;
    first_token = static_cast<int64_t>(BlockX() / args.row_blocks) * Shape::kTokens;
    first_tile = args.tiles * row_block / args.row_blocks;
    tiles = static_cast<int>(args.tiles * (row_block + 1) / args.row_blocks - first_tile);
    const int64_t left = args.tokens - first_token;
    tokens = static_cast<int>(left < Shape::kTokens ? left : Shape::kTokens);
  }

  MLA_DEVICE static int Wave() { return ThreadX() / kWave; }

  MLA_DEVICE void Start(int slot, const Turn& turn) {
    const int64_t tile = first_tile + turn.tile;
    const int at = turn.stage * (kSteps * kStepChunks);
    weights.Start(slot, {args.data + (tile * args.chunks + at) * kTileChunk,
                         args.scale + (tile * args.scale_chunks + at / 16) * kTileChunk + at % 16,
                         chunks - at});
  }

  MLA_DEVICE void ReadTokens(int stage, Octet (&x)[kTokenTiles][kSteps][4]) const {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      const int token = t * kTileTokens + LaneToken();
      const bf16* row = args.x + (first_token + (token < tokens ? token : 0)) * args.chunks * 32;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
#pragma unroll
        for (int o = 0; o < 4; ++o) {
          const int k = (stage * kSteps + s) * kShuffledStep + Weights::KOf(o);
          x[t][s][o] = Octet{};
          if (token < tokens && k < 32 * chunks) {
            x[t][s][o] = ToNibbleOrder(BitCast<Octet>(LoadPack<8>(row + k)));
          }
        }
      }
    }
  }

  template <bool two_steps>
  MLA_DEVICE void Multiply(const Octet (&x)[kTokenTiles][kSteps][4], Sums& sum) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const auto words = weights.Read(s);
#pragma unroll
      for (int o = 0; o < 4; ++o) {
        Octet rows[kLaneRows];
#pragma unroll
        for (int j = 0; j < kLaneRows; ++j) {
          rows[j] = Weights::template Decode<two_steps>(words, j, o);
        }
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) MmaOctet(sum.of[t], rows, x[t][s][o]);
      }
    }
  }

  MLA_DEVICE void MultiplyAll() {
    const int stages = (chunks + kSteps * kStepChunks - 1) / (kSteps * kStepChunks);
    const int all = stages * tiles;
    const int begin = all * Wave() / Shape::kWaves;
    int left = all * (Wave() + 1) / Shape::kWaves - begin;
    Turn next = {begin / tiles, begin % tiles}, turn = next;
    int unstarted = left;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (unstarted > 0) Start(i, next);
      weights.Commit();
      next.Next(tiles);
      --unstarted;
    }
    int slot = 0;
    while (left > 0) {
      Octet x[kTokenTiles][kSteps][4];
      ReadTokens(turn.stage, x);
      const int stage = turn.stage;
      do {
        weights.Take(slot);
        if (unstarted > 0) Start(slot == 0 ? kStages - 1 : slot - 1, next);
        weights.Commit();
        next.Next(tiles);
        --unstarted;
        Sums* at = sums + turn.tile * kWave + Lane();
        Sums sum = *at;
        if (weights.Large()) {
          Multiply<true>(x, sum);
        } else {
          Multiply<false>(x, sum);
        }
        *at = sum;
        slot = slot == kStages - 1 ? 0 : slot + 1;
        turn.Next(tiles);
        --left;
      } while (left > 0 && turn.stage == stage);
    }
  }

  // The waves' sums in order, a tile a wave.
  MLA_DEVICE void Emit() const {
    const Sums* first = sums - Wave() * (Shape::kTiles * kWave);
    for (int tile = Wave(); tile < tiles; tile += Shape::kWaves) {
      Sums total = {};
      for (int w = 0; w < Shape::kWaves; ++w) {
        const Sums part = first[(w * Shape::kTiles + tile) * kWave + Lane()];
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
          for (int v = 0; v < 4; ++v) total.of[t].at[v] += part.of[t].at[v];
        }
      }
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const int64_t row = (first_tile + tile) * 16 + TileSums::Row(v);
          const int token = t * kTileTokens + TileSums::Token(v);
          if (row >= args.rows || token >= tokens) continue;
          float sum = total.of[t].at[v];
          if (args.bias != nullptr) sum += ReadOne(args.bias, args.bias_type, row);
          WriteOne(args.y, args.y_type, (first_token + token) * args.rows + row, sum);
        }
      }
    }
  }

  MLA_DEVICE void Run() {
    for (int tile = 0; tile < tiles; ++tile) sums[tile * kWave + Lane()] = {};
    MultiplyAll();
    Barrier();
    Emit();
  }
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_LINEAR_SHUFFLED_GPU_FEW_H_
