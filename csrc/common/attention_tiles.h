// The two products of attention on the tiles of matrix_tile.h: scores, whose weight rows are the
// keys where they lie, and weighted sums of values, whose rows are interleaved in pairs on the way.
#ifndef MLA_COMMON_ATTENTION_TILES_H_
#define MLA_COMMON_ATTENTION_TILES_H_

#include "common/matrix_tile.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {

// The keys of one split: a_width columns a, then b_width columns b. A score is
// scale_a * (qa . a) + scale_b * (qb . b).
template <typename W>
struct Keys {
  const W* const* k;
  const W* const* v;
  int64_t a_width, b_width, v_width;
  float scale_a, scale_b;
};

// Work memory of these products; none where there are no such tiles.
template <typename P>
struct AttendTiles {
  static AttendTiles Carve(Carver*, int64_t, int64_t, int64_t) { return {}; }
};

#if defined(__AMX_BF16__)

template <>
struct AttendTiles<bf16> {
  static constexpr int64_t kValueLanes = 64;  // Columns of values at a time, at most.

  bf16* keys;     // (kGroupRows, columns): keys that lie apart.
  float* second;  // (kGroupRows, rows): scores of the second part.
  bf16* weights;  // (rows, keys)
  bf16* pairs;    // Twice (units of kTileColumns keys, kValueLanes).
  int64_t keys_pitch, weights_pitch;

  // Rows a multiple of 4096 bytes apart would evict each other.
  static AttendTiles Carve(Carver* carver, int64_t rows, int64_t split, int64_t columns) {
    AttendTiles s;
    s.keys_pitch = CeilDiv(columns, kTileColumns) * kTileColumns + kTileColumns;
    s.weights_pitch = split + kTileColumns;
    s.keys = carver->Take<bf16>(kGroupRows * s.keys_pitch);
    s.second = carver->Take<float>(kGroupRows * rows);
    s.weights = carver->Take<bf16>(rows * s.weights_pitch);
    s.pairs = carver->Take<bf16>(2 * kTileColumns * kValueLanes);
    return s;
  }
};

// Whether both parts of a key are whole steps of columns.
inline bool TakesTiles(const Keys<bf16>& keys) {
  return keys.a_width % kTileColumns == 0 && keys.b_width % kTileColumns == 0;
}

// Keys between those that are multiplied and those that are asked for.
constexpr int64_t kKeysAhead = 64;

// Scores of V vectors of rows with keys [0, limit), (keys, V * kLanes). q: (units, V * kLanes).
template <int V>
inline void ScoreTiles(const bf16* q, const Keys<bf16>& keys, int64_t limit,
                       const AttendTiles<bf16>& memory, float* scores) {
  constexpr int64_t kRows = V * kLanes;
  const int64_t width = keys.a_width + keys.b_width;
  const bool whole = keys.scale_a == keys.scale_b;
  const int64_t a_steps = (whole ? width : keys.a_width) / kTileColumns;
  const TileScope scope(kTileSide);
  for (int64_t n = 0; n < limit; n += kGroupRows) {
    // In place where the keys of a group are as far apart as the first two.
    const bf16* const* key = keys.k + n;
    int64_t pitch = n + kGroupRows <= limit ? key[1] - key[0] : 0;
    for (int64_t j = 0; j < kGroupRows && pitch > 0; ++j) {
      if (key[j] != key[j / kTileSide * kTileSide] + j % kTileSide * pitch) pitch = 0;
    }
    const bf16* group[kGroups] = {key[0], pitch > 0 ? key[kTileSide] : nullptr};
    if (pitch <= 0) {
      for (int64_t j = 0; j < kGroupRows; ++j) {
        __builtin_memcpy(static_cast<void*>(memory.keys + j * memory.keys_pitch),
                         keys.k[Min(n + j, limit - 1)], static_cast<size_t>(width) * sizeof(bf16));
      }
      pitch = memory.keys_pitch;
      group[0] = memory.keys;
      group[1] = memory.keys + kTileSide * pitch;
    }
    int64_t asked = 0;
    const auto ask = [&]() {
      for (int64_t j = n + kKeysAhead; j < Min(n + kKeysAhead + kGroupRows, limit); ++j) {
        __builtin_prefetch(keys.k[j] + asked, 0, 2);
      }
      asked += kTileColumns;
    };
    float* to = scores + n * kRows;
    ZeroSums<V>();
    MatrixSteps<V>(q, kRows, group, pitch, a_steps, ask);
    StoreSums<V>(to, kRows);
    if (!whole) {
      const bf16* b_group[kGroups] = {group[0] + keys.a_width, group[1] + keys.a_width};
      ZeroSums<V>();
      MatrixSteps<V>(q + keys.a_width * kRows, kRows, b_group, pitch, keys.b_width / kTileColumns,
                     ask);
      StoreSums<V>(memory.second, kRows);
    }
    for (int64_t i = 0; i < kGroupRows * kRows; i += kLanes) {
      const vf a = Load(to + i) * keys.scale_a;
      Store(to + i, whole ? a : MulAdd(Load(memory.second + i), Splat(keys.scale_b), a));
    }
  }
}

// Rows of weights from (units of keys, V * kLanes): keys [0, limit), limit even, and zeros up to a
// whole step.
template <int V>
inline void WeightRows(const bf16* lanes, int64_t limit, const AttendTiles<bf16>& memory) {
  constexpr int64_t kUnits = kTileColumns / 2;
  static_assert(kUnits == kLanes, "one transposition a step");
  for (int64_t n = 0; n < limit; n += kTileColumns) {
    for (int v = 0; v < V; ++v) {
      vf block[kLanes] = {};
      for (int64_t i = 0; i < Min(kUnits, (limit - n) / 2); ++i) {
        __builtin_memcpy(block + i, lanes + ((n / 2 + i) * V + v) * 2 * kLanes, sizeof(vf));
      }
      Transpose(block);
      bf16* to = memory.weights + v * kLanes * memory.weights_pitch + n;
      for (int i = 0; i < kLanes; ++i) {
        __builtin_memcpy(static_cast<void*>(to + i * memory.weights_pitch), block + i, sizeof(vf));
      }
    }
  }
}

// Columns [col, col + lanes) of keys [n, n + kTileColumns) as (units of keys, lanes); zeros from
// key `limit`, even, on.
inline void InterleaveValues(const bf16* const* v, int64_t n, int64_t limit, int64_t col,
                             int64_t lanes, bf16* dst) {
  alignas(64) static constexpr uint16_t kFirst[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                      37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                      11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  alignas(64) static constexpr uint16_t kSecond[32] = {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21,
                                                       53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58,
                                                       27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  const __m512i first = _mm512_load_si512(kFirst), second = _mm512_load_si512(kSecond);
  for (int64_t i = 0; i < kTileColumns; i += 2, dst += 2 * lanes) {
    if (n + i >= limit) {
      __builtin_memset(static_cast<void*>(dst), 0, static_cast<size_t>(2 * lanes) * sizeof(bf16));
      continue;
    }
    for (int64_t c = 0; c < lanes; c += 32) {
      const __m512i even = _mm512_loadu_si512(v[n + i] + col + c);
      const __m512i odd = _mm512_loadu_si512(v[n + i + 1] + col + c);
      _mm512_storeu_si512(dst + 2 * c, _mm512_permutex2var_epi16(even, first, odd));
      _mm512_storeu_si512(dst + 2 * c + 32, _mm512_permutex2var_epi16(even, second, odd));
    }
  }
}

// acc (V * kLanes rows, v_width) = weights times the values of keys [0, limit), limit even, for as
// many columns as come in whole tiles; returns how many. lanes: (units of keys, V * kLanes)
// weights.
template <int V>
inline int64_t ValueTiles(const bf16* lanes, const Keys<bf16>& keys, int64_t limit,
                          const AttendTiles<bf16>& memory, float* acc) {
  constexpr int kWide = 4 / V;  // Tiles side by side.
  constexpr int64_t kLanesHere = kWide * kTileSide;
  constexpr int64_t kPiece = kTileColumns * kLanesHere;
  const int64_t width = keys.v_width;
  const int64_t tiled = width / kLanesHere * kLanesHere;
  WeightRows<V>(lanes, limit, memory);
  const TileScope scope(kTileSide);
  for (int64_t col = 0; col < tiled; col += kLanesHere) {
    ZeroTiles<4>();
    if (limit > 0) InterleaveValues(keys.v, 0, limit, col, kLanesHere, memory.pairs);
    for (int64_t n = 0; n < limit; n += kTileColumns) {
      const int64_t next = n + kTileColumns;
      const bf16* pairs = memory.pairs + n / kTileColumns % 2 * kPiece;
      if (next < limit) {
        InterleaveValues(keys.v, next, limit, col, kLanesHere,
                         memory.pairs + next / kTileColumns % 2 * kPiece);
      }
      ForEachOf<V>([&](auto v) {
        constexpr int kV = decltype(v)::value;
        TileLoad<4 + kV>(memory.weights + kV * kTileSide * memory.weights_pitch + n,
                         memory.weights_pitch * 2);
      });
      ForEachOf<kWide>([&](auto c) {
        constexpr int kC = decltype(c)::value;
        constexpr int kTile = 6 + kC % 2;
        TileLoad<kTile>(pairs + kC * 2 * kTileSide, kLanesHere * 4);
        ForEachOf<V>([&](auto v) {
          constexpr int kV = decltype(v)::value;
          TileProduct<kV * kWide + kC, 4 + kV, kTile>();
        });
      });
    }
    ForEachOf<4>([&](auto index) {
      constexpr int i = decltype(index)::value;
      TileStore<i>(acc + i / kWide * kTileSide * width + col + i % kWide * kTileSide, width * 4);
    });
  }
  return tiled;
}

#endif  // __AMX_BF16__

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_ATTENTION_TILES_H_
