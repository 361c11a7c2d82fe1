// Attention of a tile of queries of one head on matrix cores, for bf16 of MLA's own widths. Keys
// and values come through shared memory, once for all waves; each wave has rows of its own.
#ifndef MLA_MLA_ATTENTION_EXPANDED_GPU_TILES_H_
#define MLA_MLA_ATTENTION_EXPANDED_GPU_TILES_H_

#include "gpu/copy.h"
#include "mla_attention_expanded/gpu_plan.h"
#include "mla_attention_expanded/gpu_rows.h"

namespace mla {
namespace gpu {

template <typename Shape>
struct TileExpanded {
  static constexpr int kThreads = Shape::kThreads, kKeys = Shape::kKeys, kStride = Shape::kStride;
  using Rows = WaveRows<Shape>;
  template <int width, int rows = kKeys, int stride = kStride>
  using Copy = TileCopy<bf16, width, rows, kThreads, PaddedRows<stride>>;

  const ExpandedAttentionArgs& args;
  const float& scale;  // Of scores, to base-2 logarithms.
  char* shared;
  QueryTile tile;

  template <typename T>
  MLA_DEVICE T* Part(int offset) const {
    return reinterpret_cast<T*>(shared + offset);
  }
  // From shared memory: it would occupy a register all the time, and the loop has none left.
  MLA_DEVICE int64_t Head() const { return *Part<int32_t>(Shape::kHead); }

  // Queries into registers or, of a shape that needs these for its sums, into shared memory, where
  // they arrive with the first keys.
  MLA_DEVICE void ReadQuery(Rows& rows) const {
    const auto* nope = static_cast<const bf16*>(args.q);
    const auto* rope = static_cast<const bf16*>(args.q_rope);
    const int64_t first = tile.begin * args.heads + Head();
    const EvenRows nope_rows = {first * args.q_width, args.heads * args.q_width,
                                tile.end - tile.begin};
    const EvenRows rope_rows = {first * kRope, args.heads * kRope, tile.end - tile.begin};
    if constexpr (Shape::kShared) {
      bf16* query = Part<bf16>(Shape::kQuery);
      Copy<kNope, Shape::kRows, Shape::kQueryStride>().Start(nope, nope_rows, query, 0);
      Copy<kRope, Shape::kRows, Shape::kQueryStride>().Start(rope, rope_rows, query + kNope, 0);
    } else {
      rows.ReadQuery([&](int row, int column) {
        const bool rotated = column >= kNope;
        const int64_t offset = rotated ? rope_rows[row] : nope_rows[row];
        Pack<bf16, kFragmentRun> run = {};
        if (offset >= 0) {
          run = LoadPack<kFragmentRun>((rotated ? rope - kNope : nope) + offset + column);
        }
        return run;
      });
    }
  }

  // Keys from key0 on towards shared memory; zeros behind the last one that the block sees.
  MLA_DEVICE void StartKeys(Copy<kNope + kValue>& kv, Copy<kRope>& rope, int key0, int turn) const {
    bf16* tiles = Part<bf16>(Shape::kTile);
    const int64_t width = args.heads * (kNope + kValue);
    const int count = tile.end - key0;
    kv.Start(static_cast<const bf16*>(args.kv),
             EvenRows{key0 * width + Head() * (kNope + kValue), width, count}, tiles, turn);
    rope.Start(static_cast<const bf16*>(args.rows),
               EvenRows{(key0 + 1) * args.row_width - kRope, args.row_width, count},
               tiles + Shape::kKeyRope, turn);
    rope.Commit();
  }

  // Weight 0 times a value that is not finite would be NaN, in rows that do not see it. Such values
  // become 0 here, and their column becomes NaN in the rows from theirs on, in the end.
  MLA_DEVICE void RemoveBroken(bf16* keys, int key0) const {
    constexpr int kRowRuns = kValue / 8;
    int32_t* broken = Part<int32_t>(Shape::kBroken);
    const int thread = ThreadXAnew();
    for (int i = thread; i < kKeys * kRowRuns; i += kThreads) {
      const auto words = BitCast<Pack<uint32_t, 4>>(
          LoadPack<8>(keys + i / kRowRuns * kStride + Shape::kValues + i % kRowRuns * 8));
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const uint32_t low = words.at[w] & 0x7f80u, high = words.at[w] & 0x7f800000u;
        if (low == 0x7f80u || high == 0x7f800000u) *broken = 1;
      }
    }
    Barrier();
    if (*broken == 0) return;
    for (int c = thread; c < kValue; c += kThreads) {
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

    const int wave_begin = tile.begin + Rows::First();
    bf16* tiles = Part<bf16>(Shape::kTile);
    ReadQuery(rows);
    StartKeys(kv, rope, tile.token0, 0);
    int turn = 0;
    for (int key0 = tile.token0; key0 < tile.end; key0 += kKeys) {
      if (!kv.kTakesTurns) Barrier();  // Until everybody is done with the tile before.
      kv.template Finish<0>(tiles);
      rope.template Finish<0>(tiles + Shape::kKeyRope);
      bf16* keys = kv.Tile(tiles, turn);
      Barrier();
      turn ^= 1;
      if (key0 + kKeys < tile.end) StartKeys(kv, rope, key0 + kKeys, turn);
      if (key0 + kKeys > tile.begin) RemoveBroken(keys, key0);
      if (wave_begin >= tile.end || key0 >= wave_begin + Shape::kWaveRows) continue;
      typename Rows::Scores scores;
      rows.Score(keys, scores);
      if (key0 + kKeys - 1 > wave_begin) Rows::Mask(key0 - tile.begin, scores);
      rows.Relate(scale, scores);
      rows.Add(keys, scores);
    }
  }

  // NaN where a row sees a value that is not finite.
  MLA_DEVICE void Break(int r, Rows& rows) const {
#pragma unroll
    for (int g = 0; g < Rows::kGroups; ++g) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int i = 0; i < Accumulator::kValues; ++i) {
          const int column = 64 * g + ColumnOf(j, ColumnInTile(i));
          const int token = tile.begin + Rows::Row(r, SlotOf(i));
          if (token >= Part<int32_t>(Shape::kFirstBroken)[column])
            rows.out[r][g][j].set(i, __builtin_nanf(""));
        }
      }
    }
  }

  template <int n>
  MLA_DEVICE void StoreRun(int row, int column, const float (&run)[n]) const {
    const int64_t token = tile.begin + row;
    if (token >= tile.end) return;
    Pack<bf16, n> pack;
#pragma unroll
    for (int i = 0; i < n; ++i) pack.at[i] = FromFloat<bf16>(run[i]);
    StorePack(static_cast<bf16*>(args.out) + (token * args.heads + Head()) * kValue + column, pack);
  }

  MLA_DEVICE void Store(int r, const Rows& rows) const {
#pragma unroll
    for (int g = 0; g < Rows::kGroups; ++g) {
      const Accumulator(&columns)[4] = rows.out[r][g];
#if defined(__HIP__)
#pragma unroll
      for (int i = 0; i < Accumulator::kValues; ++i) {
        const float run[4] = {columns[0].at(i), columns[1].at(i), columns[2].at(i),
                              columns[3].at(i)};
        StoreRun(Rows::Row(r, 0), 64 * g + ColumnOf(0, ColumnInTile(i)), run);
      }
#else
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int i = 0; i < Accumulator::kValues; i += 2) {
          const float run[2] = {columns[j].at(i), columns[j].at(i + 1)};
          StoreRun(Rows::Row(r, SlotOf(i)), 64 * g + ColumnOf(j, ColumnInTile(i)), run);
        }
      }
#endif
    }
  }

  MLA_DEVICE void Run(int head) const {
    if (tile.begin >= tile.end) return;
    for (int c = ThreadX(); c < kValue; c += kThreads)
      Part<int32_t>(Shape::kFirstBroken)[c] = INT32_MAX;
    if (ThreadX() == 0) {
      *Part<int32_t>(Shape::kBroken) = 0;
      *Part<int32_t>(Shape::kHead) = head;
    }
    Barrier();
    Rows rows(shared);
    if (tile.owned) Loop(rows);
    Barrier();
#pragma unroll
    for (int r = 0; r < Rows::kRowTiles; ++r) {
      rows.Finish(r, scale, [&](int slot, float lse) {
        const int64_t token = tile.begin + Rows::Row(r, slot);
        if (token < tile.end && ColumnInTile(0) == 0) args.lse[token * args.heads + Head()] = lse;
      });
      if (*Part<int32_t>(Shape::kBroken) != 0) Break(r, rows);
      Store(r, rows);
    }
  }
};

// Block x: heads in groups; of a group the longest tiles first. Blocks of one head run at the same
// time and share its keys in the caches, and the last ones to start are short.
template <typename Shape>
MLA_DEVICE void RunTileExpanded(const ExpandedGpuArgs& all, char* shared) {
  const int heads = static_cast<int>(all.args.heads), group_blocks = kHeadGroup * all.slots;
  const int group = BlockX() / group_blocks, at = BlockX() - group * group_blocks;
  const int left = heads - group * kHeadGroup, size = left < kHeadGroup ? left : kHeadGroup;
  const int slot = at / size;
  const QueryTile tile = FindTile<Shape::kRows>(all.args, all.slots - 1 - slot);
  TileExpanded<Shape>{all.args, all.scale, shared, tile}.Run(group * kHeadGroup + at - slot * size);
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_EXPANDED_GPU_TILES_H_
