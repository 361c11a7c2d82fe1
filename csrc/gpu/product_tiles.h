// Products on matrix cores: bf16 tokens times the codes themselves, decoded in registers.
//
// A wave owns row tiles and, with the other waves of its split, the block's tokens. Weights go from
// memory to the lane that decodes them; no lane needs another one's. Tokens come from the caches
// (few of them) or through shared memory (many). Splits take steps of the contraction in turns, and
// their sums are added in a fixed order.
#ifndef MLA_GPU_PRODUCT_TILES_H_
#define MLA_GPU_PRODUCT_TILES_H_

#include "gpu/product_block.h"
#include "gpu/token_tile.h"

namespace mla {
namespace gpu {

template <typename Format, typename Shape>
struct TileProduct {
  static constexpr int kTiles = Shape::kRowTiles;
  static constexpr int kTokenTiles =
      Shape::kTokens > kTileTokens ? Shape::kTokens / kTileTokens : 1;
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kLaneTiles = kTiles * kLaneRows;  // (tile, row) pairs of a lane.
  static constexpr int kBlockTiles = kTiles * Shape::kRowWaves;
  static constexpr bool kFolds = Format::kFoldOctets > 0;
  static constexpr int kRing = Shape::kRing;
  using Ring = LaneRing<kLaneTiles * Format::kChunks, kThreads, kRing>;
  using Tokens = TokenTile<Format, Shape::kTokens, Shape::kRowWaves * kWave>;

  const ProductArgs& args;
  const ProductBlock block;
  char* shared;
  Ring ring;
  int k;                       // The host has made sure that a matrix's offsets fit into 32 bits.
  const uint8_t* data;         // Of the block's weight rows.
  const uint8_t* group_scale;  // The same; for MXFP4.
  uint32_t rows[kLaneTiles];
  uint32_t group_rows[kLaneTiles];
  int32_t fold_rows[kFolds ? kTiles : 1][4];  // Where the scales of the sums' rows begin.
  TileSums sums[kTiles][kTokenTiles];

  MLA_DEVICE TileProduct(const ProductArgs& product, char* shared_memory)
      : args(product),
        block(product, Shape::kTokens),
        shared(shared_memory),
        ring(reinterpret_cast<Chunk*>(shared_memory + Shape::kSplits * Shape::kSplitTokenBytes)) {}

  MLA_DEVICE static int Wave() { return ThreadX() / kWave; }
  MLA_DEVICE static int Split() { return Wave() / Shape::kRowWaves; }
  MLA_DEVICE static int Tile(int i) { return Wave() % Shape::kRowWaves * kTiles + i; }

  MLA_DEVICE void FindRows() {
    k = static_cast<int>(args.k);
    const int64_t base = args.first_row + block.batch * args.batch_rows;
    data = block.data + base * (args.k * Format::kStepBytes / Format::kStep);
    group_scale = block.scale + base * args.scale_columns + Quarter();
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int64_t output = block.TileOutput<kBlockTiles>(Tile(i));
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        const auto row =
            static_cast<uint32_t>(block.WeightRow(output + LaneRow(j), Tile(i)) - base);
        rows[i * kLaneRows + j] =
            row * (static_cast<uint32_t>(k) / 8u) * (8u * Format::kStepBytes / Format::kStep);
        group_rows[i * kLaneRows + j] = row * static_cast<uint32_t>(args.scale_columns);
      }
      if constexpr (kFolds) {
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const int64_t row = block.WeightRow(output + TileSums::Row(v), Tile(i));
          fold_rows[i][v] = static_cast<int32_t>(row / args.block_n * args.scale_columns);
        }
      }
    }
  }

  MLA_DEVICE void StartStep(int step, int steps, int slot) {
    if (step < steps) {
#pragma unroll
      for (int i = 0; i < kLaneTiles; ++i) {
        const uint8_t* from = data + (rows[i] + static_cast<uint32_t>(step) * Format::kStepBytes);
#pragma unroll
        for (int c = 0; c < Format::kChunks; ++c) {
#pragma unroll
          for (int p = 0; p < Format::kPieces; ++p) {
            const bool valid = step * Format::kStep + Format::PieceK(c, p, Quarter()) < k;
            const uint8_t* piece = from + Format::PieceByte(c, p, Quarter());
            if constexpr (Format::kPieces == 1) {
              ring.Start(slot, i * Format::kChunks + c, piece, valid);
            } else {
              ring.StartWord(slot, i * Format::kChunks + c, p, piece, valid);
            }
          }
        }
      }
    }
  }

  // The e8m0 bytes of a step, read one step ahead. Where there are no values there is scale 1.
  MLA_DEVICE void ReadGroupScales(int step, uint32_t (&bytes)[kLaneTiles]) const {
    if constexpr (Format::kGroupScales) {
      const bool valid = step * Format::kStep + Format::PieceK(0, 0, Quarter()) < k;
#pragma unroll
      for (int i = 0; i < kLaneTiles; ++i)
        bytes[i] = valid ? group_scale[group_rows[i] + 4 * step] : 127u;
    }
  }

  MLA_DEVICE void Fold(TileSums (&part)[kTiles][kTokenTiles], int at) {
    const int column = at / static_cast<int>(args.block_k);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const float scale = ReadOne(block.scale, args.scale_type, fold_rows[i][v] + column);
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
          sums[i][t].at[v] += part[i][t].at[v] * scale;
          part[i][t].at[v] = 0;
        }
      }
    }
  }

  // `token(t, o)` gives octet o of the lane's token of tile t.
  template <typename Fn>
  MLA_DEVICE void Step(int step, const uint32_t (&bytes)[kLaneTiles], const Fn& token) {
#if !defined(__HIP__)
    if constexpr (Format::kGroupScales) {
      // Scales beyond 2 are rare.
      bool large = false;
#pragma unroll
      for (int i = 0; i < kLaneTiles; ++i) large |= bytes[i] >= GroupScale::kTwoSteps;
      if (__any_sync(~0u, large)) {
        StepOf<true>(step, bytes, token);
        return;
      }
    }
#endif
    StepOf<false>(step, bytes, token);
  }

  template <bool two_steps, typename Fn>
  MLA_DEVICE void StepOf(int step, const uint32_t (&bytes)[kLaneTiles], const Fn& token) {
    TileSums part[kTiles][kTokenTiles];
#pragma unroll
    for (int o = 0; o < Format::kOctets; ++o) {
      Octet weights[kTiles][kLaneRows];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kLaneRows; ++j) {
          const int at = i * kLaneRows + j;
          Chunk chunks[Format::kChunks];
#pragma unroll
          for (int c = 0; c < Format::kChunks; ++c) chunks[c] = ring.At(at * Format::kChunks + c);
          weights[i][j] = Format::template Decode<two_steps>(chunks, o, GroupScale{bytes[at]});
        }
      }
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        const Octet x = token(t, o);
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          if constexpr (kFolds) {
            MmaOctet(part[i][t], weights[i], x);
          } else {
            MmaOctet(sums[i][t], weights[i], x);
          }
        }
      }
      if constexpr (kFolds) {
        if ((o + 1) % Format::kFoldOctets == 0) {
          // Where octets of all quarters fold together, their values have one scale; a tail's
          // missing values are zeros, of the last block.
          const int at = step * Format::kStep + (Format::kFoldOctets == 1 ? 32 * o : 0);
          Fold(part, at < k ? at : k - 1);
        }
      }
    }
  }

  MLA_DEVICE void LoopFromCaches(int steps) {
    const bf16* tokens[kTokenTiles];
    bool present[kTokenTiles];
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      const int token = t * kTileTokens + LaneToken();
      present[t] = token < block.count;
      tokens[t] = static_cast<const bf16*>(args.x) + block.batch * args.x_batch +
                  block.TokenOffset(present[t] ? token : 0);
    }
    uint32_t bytes[kLaneTiles], next[kLaneTiles] = {};
    const int first = Split();
#pragma unroll
    for (int i = 0; i < Ring::kAhead; ++i) {
      StartStep(first + i * Shape::kSplits, steps, i);
      ring.Commit();
    }
    ReadGroupScales(first, next);
    int slot = 0;
    for (int step = first; step < steps; step += Shape::kSplits) {
      Octet x[kTokenTiles][Format::kOctets];
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
        for (int o = 0; o < Format::kOctets; ++o) {
          const int at = step * Format::kStep + Format::KOf(o, Quarter());
          x[t][o] = Octet{};
          if (present[t] && at < k)
            x[t][o] = ToOrder<Format>(BitCast<Octet>(LoadPack<8>(tokens[t] + at)));
        }
      }
#pragma unroll
      for (int i = 0; i < kLaneTiles; ++i) bytes[i] = next[i];
      ring.Take(slot);
      StartStep(step + Ring::kAhead * Shape::kSplits, steps, (slot + kRing - 1) % kRing);
      ring.Commit();
      ReadGroupScales(step + Shape::kSplits, next);
      Step(step, bytes, [&](int t, int o) { return x[t][o]; });
      slot = (slot + 1) % kRing;
    }
  }

  // Every split does the same number of turns, for the barriers' sake.
  MLA_DEVICE void LoopThroughShared(int steps) {
    Tokens tokens(block, shared + Split() * Shape::kSplitTokenBytes,
                  ThreadX() - Split() * Shape::kRowWaves * kWave);
    uint32_t bytes[kLaneTiles], next[kLaneTiles] = {};
    const int turns = (steps + Shape::kSplits - 1) / Shape::kSplits;
    const int first = Split();
#pragma unroll
    for (int i = 0; i < Ring::kAhead; ++i) {
      StartStep(first + i * Shape::kSplits, steps, i);
      ring.Commit();
    }
    tokens.Start(first);
    ReadGroupScales(first, next);
    int slot = 0;
    for (int turn = 0; turn < turns; ++turn) {
      const int step = first + turn * Shape::kSplits;
#pragma unroll
      for (int i = 0; i < kLaneTiles; ++i) bytes[i] = next[i];
      tokens.Finish(turn % 2);
      tokens.Start(step + Shape::kSplits);
      ring.Take(slot);
      Barrier();
      StartStep(step + Ring::kAhead * Shape::kSplits, steps, (slot + kRing - 1) % kRing);
      ring.Commit();
      ReadGroupScales(step + Shape::kSplits, next);
      if (step < steps) {
        Step(step, bytes, [&](int t, int o) { return tokens.Read(turn % 2, t, o); });
      }
      slot = (slot + 1) % kRing;
    }
  }

  // The splits' sums in order, each lane's values where they were.
  MLA_DEVICE void AddSplits() {
    auto* all = reinterpret_cast<float*>(shared);
    constexpr int kValues = kTiles * kTokenTiles * 4;
    Barrier();
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      all[(Wave() * kValues + v) * kWave + Lane()] =
          sums[v / (4 * kTokenTiles)][v / 4 % kTokenTiles].at[v % 4];
    }
    Barrier();
    if (Split() != 0) return;
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      float total = all[(Wave() * kValues + v) * kWave + Lane()];
#pragma unroll
      for (int s = 1; s < Shape::kSplits; ++s) {
        total += all[((Wave() + s * Shape::kRowWaves) * kValues + v) * kWave + Lane()];
      }
      sums[v / (4 * kTokenTiles)][v / 4 % kTokenTiles].at[v % 4] = total;
    }
  }

  MLA_DEVICE void Emit() const {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      if (args.gated && i % 2 != 0) continue;
      const int64_t first = block.TileOutput<kBlockTiles>(Tile(i));
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const int64_t output = first + TileSums::Row(v);
          const int token = t * kTileTokens + TileSums::Token(v);
          if (output >= block.Outputs() || token >= block.count) continue;
          const float sum = sums[i][t].at[v];
          block.Emit(output, token,
                     args.gated ? Gated(sum, sums[kTiles > 1 ? i + 1 - i % 2 : 0][t].at[v]) : sum);
        }
      }
    }
  }

  MLA_DEVICE void Run() {
    if (block.count <= 0) return;
    FindRows();
    const int steps = (k + Format::kStep - 1) / Format::kStep;
    if constexpr (Shape::kSharedTokens) {
      LoopThroughShared(steps);
    } else {
      LoopFromCaches(steps);
    }
    if constexpr (Shape::kSplits > 1) {
      AddSplits();
      if (Split() != 0) return;
    }
    Emit();
  }
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_PRODUCT_TILES_H_
