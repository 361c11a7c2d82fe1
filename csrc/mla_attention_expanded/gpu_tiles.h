// Attention of a tile of queries of one head on matrix cores, for bf16 of MLA's own widths.
//
// Every wave has rows of its own and keeps queries, scores, weights and sums in registers; keys and
// values come through shared memory, once for all waves.
#ifndef MLA_MLA_ATTENTION_EXPANDED_GPU_TILES_H_
#define MLA_MLA_ATTENTION_EXPANDED_GPU_TILES_H_

#include "gpu/copy.h"
#include "gpu/mma_rows.h"
#include "mla_attention_expanded/gpu_plan.h"

namespace mla {
namespace gpu {

template <typename Shape>
struct TileExpanded {
  static constexpr int kThreads = Shape::kThreads, kRowTiles = Shape::kRowTiles;
  static constexpr int kKeys = Shape::kKeys, kStride = Shape::kStride;
  static constexpr int kKeyTiles = kKeys / 16;
  static constexpr int kSteps = (kNope + kRope) / kMmaK;  // Of the scores' contraction.
  static constexpr int kGroups = kValue / 64;
#if defined(__HIP__)
  template <int width>
  using Copy = RegisterCopy<bf16, width, kKeys, kThreads, kStride>;
#else
  template <int width>
  using Copy = AsyncCopy<bf16, width, kKeys, kThreads, kStride>;
#endif

  struct Rows {
    Fragment query[kRowTiles][kSteps];
    Accumulator out[kRowTiles][kGroups][4];
    // Of each row the highest score so far and this lane's part of the weights' sum.
    float peak[kRowTiles][kHeldRows], total[kRowTiles][kHeldRows];
  };
  using Scores = Accumulator[kRowTiles][kKeyTiles];

  const ExpandedAttentionArgs& args;
  char* shared;
  int64_t head;
  QueryTile tile;

  template <typename T>
  MLA_DEVICE T* Part(int offset) const {
    return reinterpret_cast<T*>(shared + offset);
  }
  MLA_DEVICE int WaveToken() const { return tile.begin + ThreadX() / kWave * Shape::kWaveRows; }
  MLA_DEVICE int Token(int r, int slot) const { return WaveToken() + 16 * r + HeldRow(slot); }

  MLA_DEVICE void ReadQuery(Rows& rows) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        rows.query[r][s] = MakeFragment([&](int vector, int k) {
          Pack<bf16, kFragmentRun> run = {};
          const int64_t token = WaveToken() + 16 * r + vector;
          const int column = s * kMmaK + k;
          if (token < tile.end) {
            const int64_t row = token * args.heads + head;
            run = LoadPack<kFragmentRun>(
                s * kMmaK < kNope
                    ? static_cast<const bf16*>(args.q) + row * args.q_width + column
                    : static_cast<const bf16*>(args.q_rope) + row * kRope + column - kNope);
          }
          return run;
        });
      }
    }
  }

  // Keys from key0 on towards shared memory; zeros behind the last one that the block sees.
  MLA_DEVICE void StartKeys(Copy<kNope + kValue>& kv, Copy<kRope>& rope, int key0, int turn) const {
    bf16* tiles = Part<bf16>(Shape::kTile);
    const int64_t width = args.heads * (kNope + kValue);
    kv.Start(static_cast<const bf16*>(args.kv),
             EvenRows{key0 * width + head * (kNope + kValue), width, tile.end - key0}, tiles, turn);
    rope.Start(static_cast<const bf16*>(args.rows),
               EvenRows{(key0 + 1) * args.row_width - kRope, args.row_width, tile.end - key0},
               tiles + Shape::kKeyRope, turn);
  }

  MLA_DEVICE void Score(const bf16* keys, const Rows& rows, Scores& scores) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int column = s * kMmaK < kNope ? s * kMmaK : s * kMmaK - kNope + Shape::kKeyRope;
#pragma unroll
      for (int t = 0; t < kKeyTiles; ++t) {
        const Fragment key = LoadTileColumns(keys + column, kStride, t);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) MmaRows(scores[r][t], rows.query[r][s], key);
      }
    }
  }

  // Keys from `key0` on that a row does not see.
  MLA_DEVICE void Mask(int key0, Scores& scores) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int t = 0; t < kKeyTiles; ++t) {
#pragma unroll
        for (int i = 0; i < Accumulator::kValues; ++i) {
          const bool seen = key0 + SourceColumn(t, ColumnInTile(i)) <= Token(r, SlotOf(i));
          if (!seen) scores[r][t].set(i, -__builtin_inff());
        }
      }
    }
  }

  // Scores become weights relative to the new peak; what the row had before shrinks.
  MLA_DEVICE void Softmax(float scale, Scores& scores, Rows& rows) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      float highest[kHeldRows], base[kHeldRows], shrink[kHeldRows];
#pragma unroll
      for (int slot = 0; slot < kHeldRows; ++slot) highest[slot] = rows.peak[r][slot];
#pragma unroll
      for (int t = 0; t < kKeyTiles; ++t) {
#pragma unroll
        for (int i = 0; i < Accumulator::kValues; ++i) {
          highest[SlotOf(i)] = __builtin_fmaxf(highest[SlotOf(i)], scores[r][t].at(i));
        }
      }
#pragma unroll
      for (int slot = 0; slot < kHeldRows; ++slot) {
        highest[slot] =
            OverLanesOfRow(highest[slot], [](float a, float b) { return __builtin_fmaxf(a, b); });
        // Where no score is above minus infinity every weight is 0, and not the NaN of inf - inf.
        base[slot] = highest[slot] == -__builtin_inff() ? 0.0f : highest[slot] * scale;
        shrink[slot] = Exp2(rows.peak[r][slot] * scale - base[slot]);
        rows.peak[r][slot] = highest[slot];
        rows.total[r][slot] *= shrink[slot];
      }
#pragma unroll
      for (int t = 0; t < kKeyTiles; ++t) {
#pragma unroll
        for (int i = 0; i < Accumulator::kValues; ++i) {
          const float weight = Exp2(__builtin_fmaf(scores[r][t].at(i), scale, -base[SlotOf(i)]));
          scores[r][t].set(i, weight);
          rows.total[r][SlotOf(i)] += weight;
        }
      }
      ScaleRow(rows.out[r], shrink);
    }
  }

  MLA_DEVICE static void ScaleRow(Accumulator (&out)[kGroups][4],
                                  const float (&factor)[kHeldRows]) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int i = 0; i < Accumulator::kValues; ++i)
          out[g][j].set(i, out[g][j].at(i) * factor[SlotOf(i)]);
      }
    }
  }

  MLA_DEVICE void Values(const bf16* keys, const Scores& weights, Rows& rows) const {
#pragma unroll
    for (int k = 0; k < kKeys; k += kMmaK) {
      Fragment operand[kRowTiles];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        Accumulator tiles[kTilesOfK];
#pragma unroll
        for (int t = 0; t < kTilesOfK; ++t) tiles[t] = weights[r][k / 16 + t];
        operand[r] = RowsOf(tiles);
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        Fragment columns[4];
        LoadColumns(keys + k * kStride + Shape::kValues + 64 * g, kStride, columns);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) MmaRows(rows.out[r][g][j], operand[r], columns[j]);
        }
      }
    }
  }

  // Weight 0 times a value that is not finite would be NaN, in rows that do not see it. Such values
  // become 0 here, and their column becomes NaN in the rows from theirs on, in the end.
  MLA_DEVICE void RemoveBroken(bf16* keys, int key0) const {
    int32_t* broken = Part<int32_t>(Shape::kBroken);
    for (int i = ThreadX(); i < kKeys * (kValue / 8); i += kThreads) {
      const auto words = BitCast<Pack<uint32_t, 4>>(
          LoadPack<8>(keys + i / (kValue / 8) * kStride + Shape::kValues + i % (kValue / 8) * 8));
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const uint32_t low = words.at[w] & 0x7f80u, high = words.at[w] & 0x7f800000u;
        if (low == 0x7f80u || high == 0x7f800000u) *broken = 1;
      }
    }
    Barrier();
    if (*broken == 0) return;
    for (int c = ThreadX(); c < kValue; c += kThreads) {
      for (int k = 0; k < kKeys; ++k) {
        bf16* value = keys + k * kStride + Shape::kValues + c;
        if ((value->bits & 0x7f80u) != 0x7f80u) continue;
        *value = bf16{0};
        int32_t* first = Part<int32_t>(Shape::kFirstBroken) + c;
        if (key0 + k < *first) *first = key0 + k;
      }
    }
    Barrier();
  }

  MLA_DEVICE void Loop(Rows& rows) const {
    Copy<kNope + kValue> kv;
    Copy<kRope> rope;
    const float scale = args.softmax_scale * kLog2E;
    const int wave_begin = WaveToken();
    const int wave_end =
        wave_begin + Shape::kWaveRows < tile.end ? wave_begin + Shape::kWaveRows : tile.end;
    bf16* tiles = Part<bf16>(Shape::kTile);
    StartKeys(kv, rope, tile.token0, 0);
    ReadQuery(rows);
    int turn = 0;
    for (int key0 = tile.token0; key0 < tile.end; key0 += kKeys) {
      if (!kv.kTakesTurns) Barrier();  // Until everybody is done with the tile before.
      kv.Finish(tiles);
      rope.Finish(tiles + Shape::kKeyRope);
      bf16* keys = kv.Tile(tiles, turn);
      Barrier();
      turn ^= 1;
      if (key0 + kKeys < tile.end) StartKeys(kv, rope, key0 + kKeys, turn);
      if (key0 + kKeys > tile.begin) RemoveBroken(keys, key0);
      if (wave_begin >= wave_end || key0 >= wave_end) continue;
      Scores scores;
      Score(keys, rows, scores);
      if (key0 + kKeys - 1 > wave_begin) Mask(key0, scores);
      Softmax(scale, scores, rows);
      Values(keys, scores, rows);
    }
  }

  template <int n>
  MLA_DEVICE void StoreRun(int64_t token, int column, const float (&run)[n]) const {
    const bool broken = *Part<int32_t>(Shape::kBroken) != 0;
    Pack<bf16, n> pack;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const bool nan = broken && token >= Part<int32_t>(Shape::kFirstBroken)[column + i];
      pack.at[i] = FromFloat<bf16>(nan ? __builtin_nanf("") : run[i]);
    }
    StorePack(static_cast<bf16*>(args.out) + (token * args.heads + head) * kValue + column, pack);
  }

  MLA_DEVICE void Store(Rows& rows) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      float inverse[kHeldRows];
#pragma unroll
      for (int slot = 0; slot < kHeldRows; ++slot) {
        const float total =
            OverLanesOfRow(rows.total[r][slot], [](float a, float b) { return a + b; });
        inverse[slot] = total == 0.0f ? 0.0f : 1.0f / total;
        const int64_t token = Token(r, slot);
        if (token < tile.end && ColumnInTile(2 * slot) == 0) {
          args.lse[token * args.heads + head] =
              total == 0.0f
                  ? -__builtin_inff()
                  : (rows.peak[r][slot] * (args.softmax_scale * kLog2E) + Log2(total)) * kLn2;
        }
      }
      ScaleRow(rows.out[r], inverse);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const Accumulator(&columns)[4] = rows.out[r][g];
#if defined(__HIP__)
#pragma unroll
        for (int i = 0; i < Accumulator::kValues; ++i) {
          const float run[4] = {columns[0].at(i), columns[1].at(i), columns[2].at(i),
                                columns[3].at(i)};
          if (Token(r, 0) < tile.end)
            StoreRun(Token(r, 0), 64 * g + ColumnOf(0, ColumnInTile(i)), run);
        }
#else
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int i = 0; i < Accumulator::kValues; i += 2) {
            const float run[2] = {columns[j].at(i), columns[j].at(i + 1)};
            const int token = Token(r, SlotOf(i));
            if (token < tile.end) StoreRun(token, 64 * g + ColumnOf(j, ColumnInTile(i)), run);
          }
        }
#endif
      }
    }
  }

  MLA_DEVICE void Run() const {
    if (tile.begin >= tile.end) return;
    for (int c = ThreadX(); c < kValue; c += kThreads)
      Part<int32_t>(Shape::kFirstBroken)[c] = INT32_MAX;
    if (ThreadX() == 0) *Part<int32_t>(Shape::kBroken) = 0;
    Rows rows;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int slot = 0; slot < kHeldRows; ++slot) {
        rows.peak[r][slot] = -__builtin_inff();
        rows.total[r][slot] = 0;
      }
    }
    if (tile.owned) Loop(rows);
    Barrier();
    Store(rows);
  }
};

// Block x: tiles first, the longest first, then heads; blocks of one head share its keys in the
// caches.
template <typename Shape>
MLA_DEVICE void RunTileExpanded(const ExpandedGpuArgs& all, char* shared) {
  const int head = BlockX() / all.slots;
  const QueryTile tile = FindTile<Shape::kRows>(all.args, (head + 1) * all.slots - 1 - BlockX());
  TileExpanded<Shape>{all.args, shared, head, tile}.Run();
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_EXPANDED_GPU_TILES_H_
