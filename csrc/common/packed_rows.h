// Rows of activations as a call's products read them: copied once into tiles of a few rows whose
// steps lie side by side, so that a tile is one stream of memory and no two rows evict each other.
#ifndef MLA_COMMON_PACKED_ROWS_H_
#define MLA_COMMON_PACKED_ROWS_H_

#include "common/dot_tile.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {

// The order of the columns inside 128 of them. By nibble: 32-bit lane i of vector j holds columns
// 8 i + j and 8 i + 4 + j, as shifts take them out of a lane of eight 4-bit codes.
enum class Order { kPlain, kByNibble };

// Columns of one group in the order by nibble.
constexpr int64_t kNibbleColumns = 128;

template <typename C>
struct PackedRows {
  static constexpr int64_t kStep = DotStep<C, C>::kStep;

  struct Tile {
    int64_t row0;
    int rows;    // Rows of the call.
    int height;  // Rows of the tile: those behind `rows` are zero.
    const C* data;
  };

  C* data;  // (tiles, width / kStep, height, kStep)
  int64_t rows;
  int64_t width;  // Columns, filled up with zeros to whole steps or groups.

  static int64_t Width(int64_t k, Order order) {
    const int64_t unit = order == Order::kByNibble ? kNibbleColumns : kStep;
    return CeilDiv(Max64(k, 1), unit) * unit;
  }
  static int64_t Count(int64_t rows, int64_t width) { return (rows + 1) / 2 * 2 * width; }
  int64_t Tiles() const { return rows <= kFewRows ? 1 : CeilDiv(rows, kManyRows); }
  Tile At(int64_t tile) const {
    const int64_t row0 = tile * kManyRows;
    const int64_t left = rows <= kFewRows ? rows : Min(kManyRows, rows - row0);
    return {row0, static_cast<int>(left), TileHeight(left), data + row0 * width};
  }
};

// --- Packing ---

MLA_INLINE void CopyStep(const float* src, float* dst) { Store(dst, Load(src)); }
MLA_INLINE void CopyStep(const bf16* src, float* dst) { Store(dst, Load(src)); }
MLA_INLINE void CopyStep(const bf16* src, bf16* dst) {
  __builtin_memcpy(dst, src, 2 * kLanes * sizeof(bf16));
}

// Writes n > 0 columns of a row and zeros up to one step.
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
  (void)order;
  for (; i + kStep <= k; i += kStep) CopyStep(src + i, dst + i * height);
  if (i < width) CopyLastStep(src + i, k - i, dst + i * height);
}

template <typename C>
inline void ZeroRow(int64_t width, int height, C* dst) {
  constexpr int64_t kStep = PackedRows<C>::kStep;
  for (int64_t i = 0; i < width; i += kStep) {
    __builtin_memset(static_cast<void*>(dst + i * height), 0, kStep * sizeof(C));
  }
}

// Packs tile `tile` of rows that `row(i)` points to.
template <typename C, typename Row>
inline void PackTile(const PackedRows<C>& to, int64_t tile, int64_t k, Order order,
                     const Row& row) {
  const auto t = to.At(tile);
  C* dst = to.data + t.row0 * to.width;
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
inline PackedRows<C> PackHere(const X* const* rows, int64_t count, int64_t k, Order order) {
  const int64_t width = PackedRows<C>::Width(k, order);
  const int64_t bytes = PackedRows<C>::Count(count, width) * static_cast<int64_t>(sizeof(C));
  const PackedRows<C> to = {static_cast<C*>(Scratch(kPackScratch, bytes)), count, width};
  for (int64_t tile = 0; tile < to.Tiles(); ++tile) {
    PackTile(to, tile, k, order, [&](int64_t i) { return rows[i]; });
  }
  return to;
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_PACKED_ROWS_H_
