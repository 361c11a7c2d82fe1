// The two products of attention on the tiles of matrix_tile.h: scores, whose weight rows are the
// keys where they lie, and weighted sums of values, whose rows are interleaved in pairs on the way,
// once for all rows of queries.
#ifndef MLA_COMMON_ATTENTION_TILES_H_
#define MLA_COMMON_ATTENTION_TILES_H_

#include "common/axpy_tile.h"
#include "common/matrix_tile.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {

// The keys of one split: a_width columns a, then b_width columns b. A score is
// scale_a * (qa . a) + scale_b * (qb . b), the logarithm of its weight to the base of two.
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
  static AttendTiles Carve(Carver*, int64_t, int64_t, int64_t, int64_t) { return {}; }
};

// Steps of tiles in the scores of keys [0, limit).
template <typename W>
inline int64_t TileSteps(const Keys<W>&, int64_t) {
  return 1;
}

#if defined(__AMX_BF16__)

template <>
struct AttendTiles<bf16> {
  static constexpr int64_t kValueLanes = 64;  // Columns of values at a time.
  static constexpr int64_t kPiece = kTileColumns * kValueLanes;

  bf16* keys;     // (kGroupRows, columns): keys that lie apart.
  float* second;  // (kGroupRows, rows of a pass): scores of the second part.
  bf16* weights;  // (rows, keys)
  bf16* pairs;    // (steps of keys, kPiece): some columns of the values.
  bf16* last;     // (kPiece): the same of a step that is cut.
  int64_t keys_pitch, weights_pitch;

  // Rows a multiple of 4096 bytes apart would evict each other.
  static AttendTiles Carve(Carver* carver, int64_t rows, int64_t pass, int64_t split,
                           int64_t columns) {
    AttendTiles s;
    s.keys_pitch = CeilDiv(columns, kTileColumns) * kTileColumns + kTileColumns;
    s.weights_pitch = split + kTileColumns;
    s.keys = carver->Take<bf16>(kGroupRows * s.keys_pitch);
    s.second = carver->Take<float>(kGroupRows * pass);
    s.weights = carver->Take<bf16>(rows * s.weights_pitch);
    s.pairs = carver->Take<bf16>(split / kTileColumns * kPiece);
    s.last = carver->Take<bf16>(kPiece);
    return s;
  }

  // Rows of weights, from row r0 on, from (units of keys, V * kLanes): keys [0, limit), and zeros
  // up to a whole step.
  template <int V>
  void KeepWeights(const bf16* lanes, int64_t r0, int64_t limit) const {
    constexpr int64_t kUnits = kTileColumns / 2;
    static_assert(kUnits == kLanes, "one transposition a step");
    for (int64_t n = 0; n < limit; n += kTileColumns) {
      for (int v = 0; v < V; ++v) {
        vf block[kLanes] = {};
        for (int64_t i = 0; i < Min(kUnits, CeilDiv(limit - n, 2)); ++i) {
          __builtin_memcpy(block + i, lanes + ((n / 2 + i) * V + v) * 2 * kLanes, sizeof(vf));
        }
        Transpose(block);
        bf16* to = weights + (r0 + v * kLanes) * weights_pitch + n;
        for (int i = 0; i < kLanes; ++i) {
          __builtin_memcpy(static_cast<void*>(to + i * weights_pitch), block + i, sizeof(vf));
        }
      }
    }
  }
};

// Whether both parts of a key are whole steps of columns.
inline bool TakesTiles(const Keys<bf16>& keys) {
  return keys.a_width % kTileColumns == 0 && keys.b_width % kTileColumns == 0;
}

inline int64_t TileSteps(const Keys<bf16>& keys, int64_t limit) {
  const int64_t columns = keys.a_width + keys.b_width;
  return Max64(1, CeilDiv(limit, kGroupRows) * (columns / kTileColumns));
}

// Keys between those that are multiplied and those that are asked for.
constexpr int64_t kKeysAhead = 64;

// Scores of V vectors of rows with keys [0, limit), (keys, V * kLanes), and what is yet to be
// multiplied with them: doing so here would wait for what the tiles have just stored.
// q: (units, V * kLanes). Asks for keys ahead if those are the `first` rows. beside() runs once in
// every step of the tiles.
template <int V, typename Beside>
inline float ScoreTiles(const bf16* q, const Keys<bf16>& keys, int64_t limit, bool first,
                        const AttendTiles<bf16>& memory, float* scores, const Beside& beside) {
  constexpr int64_t kRows = V * kLanes;
  const int64_t width = keys.a_width + keys.b_width;
  const bool whole = keys.scale_a == keys.scale_b;
  const bool later = whole && keys.scale_a > 0;  // What is not seen stays minus infinity.
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
    const int64_t ask_end = first ? Min(n + kKeysAhead + kGroupRows, limit) : 0;
    const auto ask = [&]() {
      for (int64_t j = n + kKeysAhead; j < ask_end; ++j) {
        __builtin_prefetch(keys.k[j] + asked, 0, 2);
      }
      asked += kTileColumns;
      beside();
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
    for (int64_t i = 0; i < kGroupRows * kRows && !later; i += kLanes) {
      const vf a = Load(to + i) * keys.scale_a;
      Store(to + i, whole ? a : MulAdd(Load(memory.second + i), Splat(keys.scale_b), a));
    }
  }
  return later ? keys.scale_a : 1.0f;
}

// kValueLanes columns from col on of keys [n, n + kTileColumns) as (units of keys, kValueLanes);
// zeros from key `limit`, even, on.
inline void InterleaveValues(const bf16* const* v, int64_t n, int64_t limit, int64_t col,
                             bf16* dst) {
  constexpr int64_t lanes = AttendTiles<bf16>::kValueLanes;
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
    MLA_UNROLL
    for (int64_t c = 0; c < lanes; c += 32) {
      const __m512i even = _mm512_loadu_si512(v[n + i] + col + c);
      const __m512i odd = _mm512_loadu_si512(v[n + i + 1] + col + c);
      _mm512_storeu_si512(dst + 2 * c, _mm512_permutex2var_epi16(even, first, odd));
      _mm512_storeu_si512(dst + 2 * c + 32, _mm512_permutex2var_epi16(even, second, odd));
    }
  }
}

// Tiles of values that V vectors of weight rows meet together.
template <int V>
constexpr int kValueTiles = 4 / V;

// Adds a step of V vectors of weight rows with some columns of values to the sums.
template <int V>
MLA_INLINE void ValueStep(const bf16* weights, int64_t pitch, const bf16* pairs) {
  constexpr int kWide = kValueTiles<V>;
  ForEachOf<V>([&](auto v) {
    constexpr int kV = decltype(v)::value;
    TileLoad<4 + kV>(weights + kV * kTileSide * pitch, pitch * 2);
  });
  ForEachOf<kWide>([&](auto c) {
    constexpr int kC = decltype(c)::value;
    TileLoad<6 + kC % 2>(pairs + kC * 2 * kTileSide, AttendTiles<bf16>::kValueLanes * 4);
    ForEachOf<V>([&](auto v) {
      constexpr int kV = decltype(v)::value;
      TileProduct<kV * kWide + kC, 4 + kV, 6 + kC % 2>();
    });
  });
}

// acc (rows, v_width) = the kept weights times values, for rows that see the keys [0, visible[r]),
// `most` vectors of them at a time.
template <int most>
inline void ValueTiles(const AttendTiles<bf16>& memory, int64_t rows, const int32_t* visible,
                       const Keys<bf16>& keys, float* acc) {
  constexpr int64_t kWide = AttendTiles<bf16>::kValueLanes, kPiece = AttendTiles<bf16>::kPiece;
  constexpr int64_t kPass = most * kLanes;
  const int64_t width = keys.v_width, pitch = memory.weights_pitch;
  const int64_t tiled = width / kWide * kWide;
  // Keys that all rows of a pass see, in whole pairs; the few that only some see, row by row.
  const auto shared = [&](int64_t r0) {
    int64_t all = visible[r0];
    for (int64_t r = r0; r < Min(rows, r0 + kPass); ++r) all = Min(all, visible[r]);
    return all & ~int64_t{1};
  };
  // Two pieces in turn, in the first-level cache, where each is used once.
  const bool once = rows <= kLanes;
  const auto piece = [&](int64_t n) {
    const int64_t step = n / kTileColumns;
    return memory.pairs + (once ? step % 2 : step) * kPiece;
  };
  {
    const TileScope scope(kTileSide);
    for (int64_t col = 0; col < tiled; col += kWide) {
      int64_t filled = 0;   // Keys of memory.pairs, whole steps.
      int64_t cut_at = -1;  // Where the step in memory.last is cut.
      for (int64_t r0 = 0; r0 < rows; r0 += kPass) {
        const int64_t all = shared(r0), whole = all / kTileColumns * kTileColumns;
        if (all == 0) continue;
        WithVectors<most>(Min(kPass, rows - r0), [&](auto vectors) {
          constexpr int V = decltype(vectors)::value;
          constexpr int64_t kHere = kValueTiles<V> * kTileSide;
          const bf16* weights = memory.weights + r0 * pitch;
          for (int64_t c = 0; c < kWide; c += kHere) {
            ZeroTiles<4>();
            for (int64_t n = 0; n < whole; n += kTileColumns) {
              // One step ahead of its use.
              for (; filled < Min(whole, n + 2 * kTileColumns); filled += kTileColumns) {
                InterleaveValues(keys.v, filled, whole, col, piece(filled));
              }
              ValueStep<V>(weights + n, pitch, piece(n) + 2 * c);
            }
            if (whole < all) {
              if (cut_at != all) InterleaveValues(keys.v, whole, all, col, memory.last);
              cut_at = all;
              ValueStep<V>(weights + whole, pitch, memory.last + 2 * c);
            }
            ForEachOf<4>([&](auto index) {
              constexpr int i = decltype(index)::value;
              const int64_t row = r0 + i / kValueTiles<V> * kTileSide;
              TileStore<i>(acc + row * width + col + c + i % kValueTiles<V> * kTileSide, width * 4);
            });
          }
        });
      }
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t all = shared(r / kPass * kPass);
    const bf16* first = memory.weights + r * pitch;
    const SteppedRows<bf16> row = {&first, 2};
    float* to = acc + r * width;
    if (visible[r] > all) AxpyRows<1>(row, keys.v, all, visible[r], 0, tiled, all > 0, to, width);
    AxpyRows<1>(row, keys.v, 0, visible[r], tiled, width, false, to, width);
  }
}

#endif  // __AMX_BF16__

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_ATTENTION_TILES_H_
