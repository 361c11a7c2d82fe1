// Products on the tiles of AMX: 16 rows of 32 bf16 weights times 16 columns of as many pairs of
// activations, added to 16 x 16 sums in f32. Activations lie as those of lane_tile.h do, so a tile
// of them is 16 units of 32 bits of up to 16 rows; weights are rows as they are.
//
// A sum is one chain over the columns in steps of 32, whatever the tile, and a step rounds in an
// order of its own (Intel's manual, TDPBF16PS: even and odd columns apart, then their sum, without
// denormal numbers). So a row's result does not depend on how many rows came with it.
#ifndef MLA_COMMON_MATRIX_TILE_H_
#define MLA_COMMON_MATRIX_TILE_H_

#include "common/lane_tile.h"

namespace mla {
namespace MLA_ISA {

// Whether products of C go through such tiles.
#if defined(__AMX_BF16__)
template <typename C>
constexpr bool kMatrixTiles = sizeof(C) == 2;
#else
template <typename C>
constexpr bool kMatrixTiles = false;
#endif

#if defined(__AMX_BF16__)

constexpr int64_t kTileSide = 16;     // Rows of a tile, and 32-bit columns.
constexpr int64_t kTileColumns = 32;  // bf16 columns.

// The tiles of this thread while it lives.
class TileScope {
 public:
  // All are whole but for those with `lanes` activations or their sums, which are not 4 to 6.
  explicit TileScope(int64_t lanes)
      : TileScope([lanes](int i) { return i >= 4 && i < 7 ? kTileSide : lanes; },
                  [](int) { return kTileSide; }) {}
  // All are whole but for those with `rows` rows of activations or their sums, which are not 6.
  static TileScope OfRows(int64_t rows) {
    return TileScope([](int) { return kTileSide; },
                     [rows](int i) { return i == 6 ? kTileSide : rows; });
  }
  ~TileScope() { __asm__ volatile("tilerelease" ::); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  // columns(i) and rows(i) of tile i.
  template <typename Columns, typename Rows>
  TileScope(const Columns& columns, const Rows& rows) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, zero[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = static_cast<uint16_t>(4 * columns(i));
      config.rows[i] = static_cast<uint8_t>(rows(i));
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
  }
};

// The compiler's own intrinsics do not tell it that memory is read.
template <int tile>
MLA_INLINE void TileLoad(const void* p, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
MLA_INLINE void TileStore(void* p, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
MLA_INLINE void TileZero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(tile));
}
// sums += rows . pairs
template <int sums, int rows, int pairs>
MLA_INLINE void TileProduct() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(rows), "i"(pairs));
}

// Sums of kGroups groups of 16 weight rows with V vectors of activations are the first 2 V tiles;
// of one vector there are two sets, so that one can be stored while the other grows. The weights
// take one or two of the tiles from 4 on, the activations the last ones; three vectors leave one
// tile for each.
constexpr int kGroups = 2;
constexpr int64_t kGroupRows = kGroups * kTileSide;

template <int n, int first = 0>
MLA_INLINE void ZeroTiles() {
  ForEachOf<n>([](auto i) { TileZero<first + decltype(i)::value>(); });
}
template <int V, int set = 0>
MLA_INLINE void ZeroSums() {
  ZeroTiles<kGroups * V, set * kGroups>();
}
// (weight rows, lanes), `ld` floats apart.
template <int V>
MLA_INLINE void LoadSums(const float* from, int64_t ld) {
  ForEachOf<kGroups * V>([=](auto index) {
    constexpr int i = decltype(index)::value;
    TileLoad<i>(from + i / V * kTileSide * ld + i % V * kTileSide, ld * 4);
  });
}
template <int V, int set = 0>
MLA_INLINE void StoreSums(float* to, int64_t ld) {
  ForEachOf<kGroups * V>([=](auto index) {
    constexpr int i = decltype(index)::value;
    TileStore<set * kGroups + i>(to + i / V * kTileSide * ld + i % V * kTileSide, ld * 4);
  });
}

// Adds `steps` steps of columns to the sums. x: (units, `height` lanes); the weight rows of the
// groups start at w[0] and w[1], `pitch` elements apart. between() runs once a step, beside the
// tiles' arithmetic.
template <int V, int set = 0, typename Between>
MLA_INLINE void MatrixSteps(const bf16* x, int64_t height, const bf16* const* w, int64_t pitch,
                            int64_t steps, const Between& between) {
  static_assert(set == 0 || V == 1, "two sets of sums of one vector only");
  for (int64_t s = 0; s < steps; ++s) {
    const bf16* xs = x + s * kTileColumns * height;
    const bf16* ws[kGroups] = {w[0] + s * kTileColumns, w[1] + s * kTileColumns};
    if constexpr (V < 3) {
      ForEachOf<kGroups>(
          [&](auto n) { TileLoad<4 + decltype(n)::value>(ws[decltype(n)::value], pitch * 2); });
      ForEachOf<V>([&](auto v) {
        constexpr int kV = decltype(v)::value;
        TileLoad<7 - kV>(xs + kV * 2 * kTileSide, height * 4);
        ForEachOf<kGroups>([&](auto n) {
          constexpr int kN = decltype(n)::value;
          TileProduct<set * kGroups + kN * V + kV, 4 + kN, 7 - kV>();
        });
      });
    } else {
      ForEachOf<kGroups>([&](auto n) {
        constexpr int kN = decltype(n)::value;
        TileLoad<6>(ws[kN], pitch * 2);
        ForEachOf<V>([&](auto v) {
          constexpr int kV = decltype(v)::value;
          TileLoad<7>(xs + kV * 2 * kTileSide, height * 4);
          TileProduct<kN * V + kV, 6, 7>();
        });
      });
    }
    between();
  }
}

#endif  // __AMX_BF16__

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_MATRIX_TILE_H_
