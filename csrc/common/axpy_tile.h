// Tiles of weighted sums of rows: acc[m][c] = sum over d of x[m][d] * w[d][c]. The inner kernel of
// absorb (rows) and of the attention's weights times values.
//
// Each output adds its terms in the order of d (bf16 pairs: d and d + 1 for even d), whatever the
// tile, so a row's result does not depend on how many rows came with it.
#ifndef MLA_COMMON_AXPY_TILE_H_
#define MLA_COMMON_AXPY_TILE_H_

#include "common/dot_tile.h"
#include "common/lane_tile.h"
#include "common/simd.h"

namespace mla {
namespace MLA_ISA {

// One step of d for a strip of 2 * kLanes columns held in two accumulators. In general one d a
// step.
template <typename X, typename W>
struct AxpyStep {
  static constexpr int kStep = 1;
  struct Pair {
    vf a, b;
  };
  static MLA_INLINE Pair GetW(const W* const* w, int64_t col) {
    return {Load(w[0] + col), Load(w[0] + col + kLanes)};
  }
  static MLA_INLINE Pair GetLastW(const W* const* w, int64_t col) { return GetW(w, col); }
  static MLA_INLINE void FromMemory(const float* p, vf* acc) {
    acc[0] = Load(p);
    acc[1] = Load(p + kLanes);
  }
  static MLA_INLINE void ToMemory(const vf* acc, float* p) {
    Store(p, acc[0]);
    Store(p + kLanes, acc[1]);
  }
};

// bf16 columns become f32 by the fewest operations as even and odd ones, which the accumulators
// hold apart.
template <>
struct AxpyStep<float, bf16> {
  static constexpr int kStep = 1;
  struct Pair {
    vf a, b;
  };
  static MLA_INLINE Pair GetW(const bf16* const* w, int64_t col) {
    const vu pairs = LoadPairs(w[0] + col);
    return {EvenOf(pairs), OddOf(pairs)};
  }
  static MLA_INLINE Pair GetLastW(const bf16* const* w, int64_t col) { return GetW(w, col); }
  static MLA_INLINE void FromMemory(const float* p, vf* acc) {
    const vf a = Load(p), b = Load(p + kLanes);
    acc[0] = Evens(a, b);
    acc[1] = Odds(a, b);
  }
  static MLA_INLINE void ToMemory(const vf* acc, float* p) {
    Store(p, ZipFirst(acc[0], acc[1]));
    Store(p + kLanes, ZipSecond(acc[0], acc[1]));
  }
};

#if defined(__AVX512BF16__)
// Two d a step: the rows d and d + 1 are interleaved in registers. The interleaving works inside
// 128-bit lanes, so the two accumulators hold the columns in a permuted order that only the way to
// and from memory undoes.
template <>
struct AxpyStep<bf16, bf16> {
  static constexpr int kStep = 2;
  struct Pair {
    __m512i a, b;
  };
  static MLA_INLINE Pair GetW(const bf16* const* w, int64_t col) {
    const __m512i even = _mm512_loadu_si512(w[0] + col);
    const __m512i odd = _mm512_loadu_si512(w[1] + col);
    return {_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd)};
  }
  static MLA_INLINE Pair GetLastW(const bf16* const* w, int64_t col) {
    const __m512i even = _mm512_loadu_si512(w[0] + col);
    const __m512i zero = _mm512_setzero_si512();
    return {_mm512_unpacklo_epi16(even, zero), _mm512_unpackhi_epi16(even, zero)};
  }
  static MLA_INLINE void FromMemory(const float* p, vf* acc) {
    const vf a = Load(p), b = Load(p + kLanes);
    acc[0] =
        __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    acc[1] =
        __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  static MLA_INLINE void ToMemory(const vf* acc, float* p) {
    Store(p, __builtin_shufflevector(acc[0], acc[1], 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21,
                                     22, 23));
    Store(p + kLanes, __builtin_shufflevector(acc[0], acc[1], 8, 9, 10, 11, 24, 25, 26, 27, 12, 13,
                                              14, 15, 28, 29, 30, 31));
  }
};
#endif

// Columns of one strip.
constexpr int kStrip = 2 * kLanes;

// Rows whose elements of one step lie `stride` elements behind those of the step before.
template <typename X>
struct SteppedRows {
  const X* const* rows;
  int64_t stride;
};

// acc[m * ld + 0..S strips) (+)= sum of x[m][d] * w[d][col ..) for d in [begin, end); begin is
// even.
template <int M, int S, typename X, typename W>
inline __attribute__((noinline)) void AxpyTile(const SteppedRows<X>& x, const W* const* w,
                                               int64_t begin, int64_t end, int64_t col, bool add,
                                               float* acc, int64_t ld) {
  using Step = AxpyStep<X, W>;
  using Spread = LaneStep<W, X>;
  vf sum[M * S * 2] = {};
  if (add) {
    MLA_UNROLL
    for (int i = 0; i < M * S; ++i) {
      Step::FromMemory(acc + (i / S) * ld + (i % S) * kStrip, sum + 2 * i);
    }
  }
  const X* xs[M];
  MLA_UNROLL
  for (int m = 0; m < M; ++m) xs[m] = x.rows[m];
  int64_t d = begin, at = begin / Step::kStep * x.stride;
  for (; d + Step::kStep <= end; d += Step::kStep, at += x.stride) {
    typename Step::Pair b[S];
    MLA_UNROLL
    for (int s = 0; s < S; ++s) b[s] = Step::GetW(w + d, col + s * kStrip);
    MLA_UNROLL
    for (int m = 0; m < M; ++m) {
      const auto a = Spread::Broadcast(xs[m] + at);
      MLA_UNROLL
      for (int s = 0; s < S; ++s) {
        sum[(m * S + s) * 2] = Spread::Add(sum[(m * S + s) * 2], a, b[s].a);
        sum[(m * S + s) * 2 + 1] = Spread::Add(sum[(m * S + s) * 2 + 1], a, b[s].b);
      }
    }
  }
  if (d < end) {
    typename Step::Pair b[S];
    MLA_UNROLL
    for (int s = 0; s < S; ++s) b[s] = Step::GetLastW(w + d, col + s * kStrip);
    MLA_UNROLL
    for (int m = 0; m < M; ++m) {
      const auto a = Spread::BroadcastLast(xs[m] + at);
      MLA_UNROLL
      for (int s = 0; s < S; ++s) {
        sum[(m * S + s) * 2] = Spread::Add(sum[(m * S + s) * 2], a, b[s].a);
        sum[(m * S + s) * 2 + 1] = Spread::Add(sum[(m * S + s) * 2 + 1], a, b[s].b);
      }
    }
  }
  MLA_UNROLL
  for (int i = 0; i < M * S; ++i) {
    Step::ToMemory(sum + 2 * i, acc + (i / S) * ld + (i % S) * kStrip);
  }
}

// The columns that do not fill a strip, one row of x.
template <typename X, typename W>
inline __attribute__((noinline)) void AxpyTail(const X* x, int64_t stride, const W* const* w,
                                               int64_t begin, int64_t end, int64_t col,
                                               int64_t cols, bool add, float* acc) {
  constexpr int64_t kStep = AxpyStep<X, W>::kStep;
  for (int64_t c = col; c < cols; ++c) {
    float sum = add ? acc[c - col] : 0.0f;
    for (int64_t d = begin; d < end; ++d) {
      sum += ToFloat(x[d / kStep * stride + d % kStep]) * ToFloat(w[d][c]);
    }
    acc[c - col] = sum;
  }
}

// Strips a tile for several rows and for one.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kStripsM = 2;
#else
constexpr int kStripsM = 1;
#endif
constexpr int kStrips1 = 4;

// acc[m * ld + c] (+)= sum of x[m][d] * w[d][c] for c in [col, cols), d in [begin, end), for M
// rows. begin is even; col is a multiple of kStrip.
template <int M, typename X, typename W>
inline void AxpyRows(const SteppedRows<X>& x, const W* const* w, int64_t begin, int64_t end,
                     int64_t col, int64_t cols, bool add, float* acc, int64_t ld) {
  constexpr int kS = M == 1 ? kStrips1 : kStripsM;
  int64_t c = col;
  for (; c + kS * kStrip <= cols; c += kS * kStrip) {
    AxpyTile<M, kS>(x, w, begin, end, c, add, acc + c, ld);
  }
  for (; c + kStrip <= cols; c += kStrip) AxpyTile<M, 1>(x, w, begin, end, c, add, acc + c, ld);
  if (c < cols) {
    for (int m = 0; m < M; ++m)
      AxpyTail(x.rows[m], x.stride, w, begin, end, c, cols, add, acc + m * ld + c);
  }
}

// The sums of all `depth` rows of w for `count` whole rows of x, some rows at a time: take(i, rows)
// finds those of rows [i, i + rows) in acc, kManyRows rows of `width`.
template <typename X, typename W, typename Take>
inline void SumRows(const X* const* x, int64_t count, const W* const* w, int64_t depth,
                    int64_t width, float* acc, const Take& take) {
  for (int64_t i = 0; i < count; i += HeightWithin(count - i)) {
    const int rows = HeightWithin(count - i);
    WithHeight<kManyRows>(rows, [&](auto height) {
      AxpyRows<decltype(height)::value>(SteppedRows<X>{x + i, AxpyStep<X, W>::kStep}, w, 0, depth,
                                        0, width, false, acc, width);
    });
    take(i, rows);
  }
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_AXPY_TILE_H_
