// All dot products between two sets of rows, by tiles: straight from memory for few rows, from
// packed copies for many. Both ways add the same terms in the same order, so the result of a row
// does not depend on how many rows came with it.
#ifndef MLA_COMMON_DOT_BLOCK_H_
#define MLA_COMMON_DOT_BLOCK_H_

#include "common/dot_tile.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {

// What the packed copies hold: f32, unless pairs of bf16 are multiplied directly.
template <typename X, typename W>
struct PackedType {
  using T = float;
};
#if defined(__AVX512BF16__)
template <>
struct PackedType<bf16, bf16> {
  using T = bf16;
};
#endif

// From this many rows of x on, copies of the weights pay for themselves; sooner where the copy also
// saves a conversion to f32 in every tile.
template <typename X, typename W>
constexpr int64_t PackFrom() {
  return sizeof(typename PackedType<X, W>::T) == sizeof(W) ? 48 : 16;
}

// Copies columns [begin, begin + width) of the rows to rows `pitch` apart; zeros from column
// `limit` on. width is a multiple of the vector length, begin + width may lie past the limit.
MLA_INLINE void CopyVector(const bf16* src, bf16* dst) {
  __builtin_memcpy(dst, src, kLanes * sizeof(bf16));
}
template <typename T>
MLA_INLINE void CopyVector(const T* src, float* dst) {
  Store(dst, Load(src));
}
template <typename T, typename C>
inline void PackRows(const T* const* rows, int64_t count, int64_t begin, int64_t width,
                     int64_t limit, int64_t pitch, C* dst) {
  const int64_t full = Min(width, limit - begin) / kLanes * kLanes;
  for (int64_t r = 0; r < count; ++r) {
    const T* src = rows[r] + begin;
    C* to = dst + r * pitch;
    for (int64_t i = 0; i < full; i += kLanes) CopyVector(src + i, to + i);
    for (int64_t i = full; i < width; i += kLanes) {
      StorePart(to + i, i < limit - begin ? LoadPart(src + i, limit - begin - i) : vf{}, kLanes);
    }
  }
}

// Asks for a row that will be copied next.
template <typename T>
inline void PrefetchRow(const T* row, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(row + i, 0, 2);
}

// Few rows: w tiles outside, each read from far once and then kept close.
template <typename X, typename W, typename Sink>
inline void DotBlockDirect(const X* const* x, int64_t rows, const W* const* w, int64_t cols,
                           int64_t k, const Sink& sink) {
  alignas(64) float tile[kTileM * 4];
  if (rows == 1) {
    for (int64_t n = 0; n < cols; n += 4) {
      const W* ws[4];
      for (int j = 0; j < 4; ++j) ws[j] = w[Min(n + j, cols - 1)];
      DotTile<1, 4>(x, ws, k, tile);
      sink(int64_t{0}, 1, n, static_cast<int>(Min(cols - n, 4)), tile, 4);
    }
    return;
  }
  for (int64_t n = 0; n < cols; n += kTileN) {
    const W* ws[kTileN];
    for (int j = 0; j < kTileN; ++j) ws[j] = w[Min(n + j, cols - 1)];
    const int nv = static_cast<int>(Min(cols - n, kTileN));
    for (int64_t m = 0; m < rows; m += kTileM) {
      const X* xs[kTileM];
      for (int i = 0; i < kTileM; ++i) xs[i] = x[Min(m + i, rows - 1)];
      DotTile<kTileM, kTileN>(xs, ws, k, tile);
      sink(m, static_cast<int>(Min(rows - m, kTileM)), n, nv, tile, kTileN);
    }
  }
}

// One packed tile over `width` columns: goes on from saved accumulators and saves them again, or
// finishes into `out` when that is given.
template <typename C>
inline __attribute__((noinline)) void PackedTile(const C* const* x, const C* w, int64_t pitch,
                                                 int64_t width, bool first, float* saved,
                                                 float* out) {
  constexpr int kAcc = kTileM * kTileN;
  vf acc[kAcc] = {};
  if (!first) {
    MLA_UNROLL
    for (int i = 0; i < kAcc; ++i) acc[i] = Load(saved + i * kLanes);
  }
  const C* xs[kTileM];
  const C* ws[kTileN];
  MLA_UNROLL
  for (int i = 0; i < kTileM; ++i) xs[i] = x[i];
  MLA_UNROLL
  for (int i = 0; i < kTileN; ++i) ws[i] = w + i * pitch;
  DotAccumulate<kTileM, kTileN>(xs, ws, width, acc);
  if (out != nullptr) {
    LaneSums<kAcc>(acc, out);
  } else {
    MLA_UNROLL
    for (int i = 0; i < kAcc; ++i) Store(saved + i * kLanes, acc[i]);
  }
}

// Rows of x that can be read where they are, as what the packed copies hold, or null.
template <typename X, typename C>
MLA_INLINE const C* InPlace(const X*) {
  return nullptr;
}
template <>
MLA_INLINE const float* InPlace<float, float>(const float* row) {
  return row;
}
#if defined(__AVX512BF16__)
template <>
MLA_INLINE const bf16* InPlace<bf16, bf16>(const bf16* row) {
  return row;
}
#endif

// Many rows. A block of w rows is copied next to the core (second-level cache) and used for all x
// tiles; of those, one at a time is copied closer still where it has to be converted or filled up.
// The summed axis is cut into chunks that fit; the vector accumulators are saved from chunk to
// chunk, which changes no bit. Copies are compact: rows a power of two apart would evict each
// other.
template <typename X, typename W, typename Sink>
inline void DotBlockPacked(const X* const* x, int64_t rows, const W* const* w, int64_t cols,
                           int64_t k, const Sink& sink) {
  using C = typename PackedType<X, W>::T;
  constexpr int64_t kChunk = sizeof(C) == 2 ? 2048 : 512;
  constexpr int64_t kStep = DotStep<C, C>::kStep;
  constexpr int64_t kCols = 128;
  constexpr int64_t kTile = kTileM * kTileN;
  const int64_t pitch = Min(kChunk, CeilDiv(Max64(k, 1), kStep) * kStep);
  const int64_t m_tiles = CeilDiv(rows, kTileM);
  const int64_t saved_floats = k > kChunk ? m_tiles * (kCols / kTileN) * kTile * kLanes : 0;
  const auto carve = [&](void* base, C** px, C** pw, float** saved) {
    Carver carver(base);
    *px = carver.Take<C>(kTileM * pitch);
    *pw = carver.Take<C>(kCols * pitch);
    *saved = carver.Take<float>(saved_floats);
    return carver.used();
  };
  C *px, *pw;
  float* saved;
  const int64_t bytes = carve(nullptr, &px, &pw, &saved);
  carve(Scratch(kPackScratch, bytes), &px, &pw, &saved);
  alignas(64) float out[kTile];
  for (int64_t n0 = 0; n0 < cols; n0 += kCols) {
    const int64_t nc = Min(kCols, cols - n0);
    for (int64_t k0 = 0; k0 == 0 || k0 < k; k0 += kChunk) {
      const int64_t width = Min(kChunk, CeilDiv(k - k0, kStep) * kStep);
      const bool last = k0 + kChunk >= k;
      PackRows(w + n0, nc, k0, width, k, pitch, pw);
      for (int64_t m = 0; m < rows; m += kTileM) {
        const C* xs[kTileM];
        for (int64_t i = 0; i < kTileM; ++i) {
          const X* row = x[Min(m + i, rows - 1)];
          const C* there = k0 + width <= k ? InPlace<X, C>(row) : nullptr;
          xs[i] = there != nullptr ? there + k0 : px + i * pitch;
        }
        if (xs[0] == px) PackRows(x + m, Min(kTileM, rows - m), k0, width, k, pitch, px);
        for (int64_t next = m + kTileM; next < Min(rows, m + 2 * kTileM); ++next) {
          PrefetchRow(x[next] + k0, Min(width, k - k0));
        }
        for (int64_t n = 0; n < nc; n += kTileN) {
          PackedTile(xs, pw + n * pitch, pitch, width, k0 == 0,
                     saved + (m / kTileM * (kCols / kTileN) + n / kTileN) * kTile * kLanes,
                     last ? out : nullptr);
          if (last) {
            sink(m, static_cast<int>(Min(rows - m, kTileM)), n0 + n,
                 static_cast<int>(Min(nc - n, kTileN)), out, kTileN);
          }
        }
      }
    }
  }
}

// All dot products of `rows` x rows with `cols` w rows, given by pointers. Calls
// sink(m0, mv, n0, nv, tile, ld): tile[i * ld + j] is the product of x row m0 + i and w row n0 + j
// for i < mv, j < nv.
template <typename X, typename W, typename Sink>
inline void DotBlock(const X* const* x, int64_t rows, const W* const* w, int64_t cols, int64_t k,
                     const Sink& sink) {
  if (rows >= PackFrom<X, W>()) {
    DotBlockPacked(x, rows, w, cols, k, sink);
  } else {
    DotBlockDirect(x, rows, w, cols, k, sink);
  }
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_DOT_BLOCK_H_
