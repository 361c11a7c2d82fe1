// Rows of activations as a call's products read them: copied once into tiles whose steps lie side
// by side, so that a tile is one stream of memory and no two rows evict each other. Tiles of dot
// products have a few rows and steps of one vector a row; beyond kMostDotRows rows, or of any
// number where matrix_tile.h multiplies, tiles are those of lane_tile.h.
#ifndef MLA_COMMON_PACKED_ROWS_H_
#define MLA_COMMON_PACKED_ROWS_H_

#include <type_traits>

#include "common/dot_tile.h"
#include "common/fixed_rows.h"
#include "common/lane_tile.h"
#include "common/matrix_tile.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {

// The order of the columns inside a group of them. In pairs: as they are, filled up to two vectors
// and not one. By nibble: as few instructions take them out of 4-bit codes. 32-bit lane i of vector
// j of bf16 holds columns 8 i + j and 8 i + 4 + j, as shifts find them in a lane of eight codes.
enum class Order { kPlain, kPlainPairs, kByNibble };

// Columns of one group in the order by nibble of bf16, and a multiple of those of f32.
constexpr int64_t kNibbleColumns = 128;

// Of f32 a group is eight vectors, whose codes are one. NibbleColumn(j, i) is the column in lane i
// of vector j: with AVX-512 again a shift away, else as bytes are found where they meet
// the other halves of the values (float_product.h).
constexpr int64_t kNibbleGroup = 8 * kLanes;
constexpr int NibbleColumn(int j, int i) {
#if defined(__AVX512F__)
  return 8 * i + j;
#else
  return i / 4 * 32 + 2 * (j / 2 % 2 * 8 + i % 4 * 2 + j % 2) + j / 4;
#endif
}

// How weights want their activations: the order of the columns, and whether many rows may lie
// across the lanes, or all rows make tiles of up to kRowTile, of AMX or of whole numbers.
struct Packing {
  Order order;
  bool lanes;
  bool row_tiles = false;
};

// The most rows whose products are dot products: those of a row are then the same, whatever comes
// with it.
constexpr int64_t kMostDotRows = 64;
constexpr int64_t kLaneTileRows = kLaneVectors * kLanes;

// Whether tiles of rows are of whole numbers.
template <typename C>
constexpr bool kFixed = kFixedRows && sizeof(C) == 4;

template <typename C>
struct PackedRows {
  static constexpr int64_t kStep = DotStep<C, C>::kStep;

  struct Tile {
    int64_t row0;
    int rows;    // Rows of the call.
    int height;  // Rows of the tile: those behind `rows` are zero.
    const C* data;
  };

  C* data;  // (tiles, width / kStep, height, kStep), or (tiles, units of 32 bits, height).
  int64_t rows;
  int64_t width;  // Columns, filled up with zeros to whole steps, pairs of them or groups.
  bool lanes;
  // Tiles have kRowTile rows, unless all rows are fewer. Of f32 these are (blocks, height)
  // FixedBlock, and the width is in elements of C.
  bool row_tiles;

  static constexpr int64_t kRowTile = 16;

  static PackedRows Of(C* data, int64_t rows, int64_t k, Packing packing) {
    const int64_t unit = packing.order == Order::kByNibble     ? kNibbleColumns
                         : packing.order == Order::kPlainPairs ? 2 * kStep
                                                               : kStep;
    const bool lanes = packing.lanes && (kMatrixTiles<C> || rows > kMostDotRows);
    if (kFixed<C> && packing.row_tiles) {
      const int64_t blocks = CeilDiv(Max64(k, 1), kFixedColumns);
      return {data, rows, blocks * kFixedElements, false, true};
    }
    return {data, rows, CeilDiv(Max64(k, 1), unit) * unit, lanes, packing.row_tiles};
  }
  // Rows of all tiles.
  int64_t Height() const {
    if (row_tiles) return rows < kRowTile ? rows : CeilDiv(rows, kRowTile) * kRowTile;
    return lanes ? LaneHeight(rows) : (rows + 1) / 2 * 2;
  }
  int64_t Bytes() const { return Height() * width * static_cast<int64_t>(sizeof(C)); }
  // Rows of every tile but the last.
  int64_t TileRows() const {
    if (row_tiles) return kRowTile;
    return lanes ? kLaneTileRows : (rows <= kFewRows ? rows : kManyRows);
  }
  int64_t Tiles() const { return CeilDiv(rows, Max64(1, TileRows())); }
  Tile At(int64_t tile) const {
    const int64_t row0 = tile * TileRows();
    const int64_t left = Min(TileRows(), rows - row0);
    const int64_t height = row_tiles ? Min(rows, kRowTile)
                           : lanes   ? LaneHeight(left)
                                     : TileHeight(left);
    return {row0, static_cast<int>(left), static_cast<int>(height), data + row0 * width};
  }

 private:
  // Whole vectors, unless all rows lie in one.
  int64_t LaneHeight(int64_t n) const { return rows < kLanes ? rows : CeilDiv(n, kLanes) * kLanes; }
};

// --- Packing ---

MLA_INLINE void CopyStep(const float* src, float* dst) { Store(dst, Load(src)); }
MLA_INLINE void CopyStep(const bf16* src, float* dst) { Store(dst, Load(src)); }
MLA_INLINE void CopyStep(const bf16* src, bf16* dst) {
  __builtin_memcpy(dst, src, 2 * kLanes * sizeof(bf16));
}

// Writes n columns of a row, or none, and zeros up to one step.
template <typename X, typename C>
inline void CopyLastStep(const X* src, int64_t n, C* dst) {
  X full[PackedRows<C>::kStep] = {};
  for (int64_t i = 0; i < n; ++i) full[i] = src[i];
  CopyStep(full, dst);
}

#if defined(__AVX512BF16__)
// Bytes of a 128-bit lane of eight columns, with its pairs (c, c + 4) side by side.
#define MLA_PAIRS 0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15
alignas(64) constexpr uint8_t kPairsOfLane[64] = {MLA_PAIRS, MLA_PAIRS, MLA_PAIRS, MLA_PAIRS};
#undef MLA_PAIRS

// 128 columns of a row in the order by nibble, as four vectors `stride` elements apart.
inline void CopyNibbleGroup(const bf16* src, int64_t stride, bf16* dst) {
  const __m512i pairs = _mm512_load_si512(kPairsOfLane);
  __m512i v[4];
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_maskz_shuffle_epi8(~uint64_t{0}, _mm512_loadu_si512(src + 32 * i), pairs);
  }
  // Pair j of all lanes becomes vector j: first of two vectors' lanes, then of all.
  for (int j = 0; j < 4; ++j) {
    const __m512i even = _mm512_setr_epi32(j, j + 4, j + 8, j + 12, j + 16, j + 20, j + 24, j + 28,
                                           0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i low = _mm512_permutex2var_epi32(v[0], even, v[1]);
    const __m512i high = _mm512_permutex2var_epi32(v[2], even, v[3]);
    // The lower halves of both.
    _mm512_storeu_si512(dst + j * stride, _mm512_maskz_shuffle_i64x2(0xff, low, high, 0x44));
  }
}
#endif

// One group of a row as eight vectors `stride` elements apart, zeros behind the n-th column.
template <typename X>
inline void CopyNibbleGroup(const X* src, int64_t n, int64_t stride, float* dst) {
  alignas(64) float values[kNibbleGroup] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(values + i, Load(src + i));
  for (; i < n; ++i) values[i] = ToFloat(src[i]);
  for (int j = 0; j < 8; ++j) {
    for (int lane = 0; lane < kLanes; ++lane) {
      dst[j * stride + lane] = values[NibbleColumn(j, lane)];
    }
  }
}

// bf16 columns from the order by nibble to their own; whole groups of kNibbleColumns.
inline void FromNibbleOrder(const float* src, int64_t columns, float* dst) {
  for (int64_t from = 0; from < columns; from += kNibbleColumns) {
    for (int64_t i = 0; i < kNibbleColumns; ++i) {
      dst[from + i] = src[from + i % 4 * (kNibbleColumns / 4) + i / 4];
    }
  }
}

// One row of a tile of `height` rows; `dst` is where the row's first step goes.
template <typename X, typename C>
inline void PackRow(const X* src, int64_t k, int64_t width, Order order, int height, C* dst) {
  constexpr int64_t kStep = PackedRows<C>::kStep;
  int64_t i = 0;
#if defined(__AVX512BF16__)
  if constexpr (sizeof(X) == 2 && sizeof(C) == 2) {
    const int64_t stride = height * kStep;
    if (order == Order::kByNibble) {
      for (; i + kNibbleColumns <= k; i += kNibbleColumns) {
        CopyNibbleGroup(src + i, stride, dst + i * height);
      }
      if (i < k) {
        bf16 full[kNibbleColumns] = {};
        for (int64_t j = i; j < k; ++j) full[j - i] = src[j];
        CopyNibbleGroup(full, stride, dst + i * height);
      }
      return;
    }
  }
#endif
  if constexpr (sizeof(C) == 4) {
    if (order == Order::kByNibble) {
      for (; i < width; i += kNibbleGroup) {
        CopyNibbleGroup(src + i, Clamp(k - i, 0, kNibbleGroup), height * kStep, dst + i * height);
      }
      return;
    }
  }
  for (; i + kStep <= k; i += kStep) CopyStep(src + i, dst + i * height);
  for (; i < width; i += kStep) CopyLastStep(src + i, k - i, dst + i * height);
}

template <typename C>
inline void ZeroRow(int64_t width, int height, C* dst) {
  constexpr int64_t kStep = PackedRows<C>::kStep;
  for (int64_t i = 0; i < width; i += kStep) {
    __builtin_memset(static_cast<void*>(dst + i * height), 0, kStep * sizeof(C));
  }
}

// Packs `count` rows of k columns across `height` lanes, zeros behind the last row and, up to
// `width`, behind the last column.
template <typename C, typename Row>
inline void PackLanes(int64_t count, int64_t height, int64_t k, int64_t width, Order order,
                      const Row& row, C* dst) {
  if (height == 1) return PackRow(row(0), k, width, order, 1, dst);
  constexpr int64_t kBlock = kLanes * 4 / static_cast<int64_t>(sizeof(C));
  alignas(64) C columns[kLanes * kNibbleColumns];
  const C* rows[kLanes];
  for (int64_t i0 = 0; i0 < height; i0 += kLanes) {
    const int64_t here = Clamp(count - i0, 0, kLanes);
    C* to = dst + i0 * (4 / sizeof(C));
    int64_t c = 0;
    if constexpr (std::is_same_v<decltype(row(0)), const C*>) {
      if (order != Order::kByNibble) {
        for (int64_t i = 0; i < here; ++i) rows[i] = row(i0 + i);
        c = k / kBlock * kBlock;
        RowsToLanes(rows, here, c, height, to);
      }
    }
    for (int64_t i = 0; i < kLanes; ++i) rows[i] = columns + i * kNibbleColumns;
    for (; c < width; c += kNibbleColumns) {
      const int64_t n = Min(kNibbleColumns, width - c);
      for (int64_t i = 0; i < here; ++i) {
        PackRow(row(i0 + i) + c, Min(n, k - c), n, order, 1, columns + i * kNibbleColumns);
      }
      RowsToLanes(rows, here, n, height, to + c * height);
    }
  }
}

// Packs tile `tile` of rows that `row(i)` points to.
template <typename C, typename Row>
inline void PackTile(const PackedRows<C>& to, int64_t tile, int64_t k, Order order,
                     const Row& row) {
  const auto t = to.At(tile);
  C* dst = to.data + t.row0 * to.width;
  using X = std::remove_cv_t<std::remove_pointer_t<decltype(row(0))>>;
  if constexpr (kFixed<C> && std::is_same_v<X, bf16>) {
    if (to.row_tiles) {
      auto* blocks = reinterpret_cast<FixedBlock*>(dst);
      for (int i = 0; i < t.rows; ++i) PackFixedRow(row(t.row0 + i), k, t.height, blocks + i);
      return;
    }
  }
  if (to.lanes) {
    return PackLanes<C>(
        t.rows, t.height, k, to.width, order, [&](int64_t i) { return row(t.row0 + i); }, dst);
  }
  for (int i = 0; i < t.height; ++i) {
    C* first = dst + i * PackedRows<C>::kStep;
    if (i < t.rows) {
      PackRow(row(t.row0 + i), k, to.width, order, t.height, first);
    } else {
      ZeroRow(to.width, t.height, first);
    }
  }
}

// Nanoseconds of one core that packing takes, about.
inline double PackCost(int64_t rows, int64_t k) {
  return static_cast<double>(rows) * static_cast<double>(k) / 16.0;
}

// All rows, `row(i)` of which point to k columns each.
template <typename C, typename Row>
inline void Pack(const PackedRows<C>& to, int64_t k, Order order, const Executor& executor,
                 const Row& row) {
  ForEach(executor, to.Tiles(), PackCost(to.rows, k),
          [&](int64_t tile) { PackTile(to, tile, k, order, row); });
}

// Rows that one task alone needs, packed into this thread's scratch.
template <typename C, typename X>
inline PackedRows<C> PackHere(const X* const* rows, int64_t count, int64_t k, Packing packing) {
  PackedRows<C> to = PackedRows<C>::Of(nullptr, count, k, packing);
  to.data = static_cast<C*>(Scratch(kPackScratch, to.Bytes()));
  for (int64_t tile = 0; tile < to.Tiles(); ++tile) {
    PackTile(to, tile, k, packing.order, [&](int64_t i) { return rows[i]; });
  }
  return to;
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_PACKED_ROWS_H_
