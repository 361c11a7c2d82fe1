// Tiles of dot products between rows that are contiguous along the summed axis: their sizes, and
// the steps that the products of matrices and the attention scores share.
//
// Every output owns one vector accumulator that walks the axis in order and is then summed by a
// fixed tree, whatever the tile: a row's result does not depend on how many rows came with it.
#ifndef MLA_COMMON_DOT_TILE_H_
#define MLA_COMMON_DOT_TILE_H_

#include <type_traits>
#include <utility>

#include "common/simd.h"

namespace mla {
namespace MLA_ISA {

// Width of a tile. With 16 vector registers only 4x2 accumulators fit.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileN = 4;
#else
constexpr int kTileN = 2;
#endif

// Rows of a tile among many, and the most that one tile alone may have.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kManyRows = 6;
constexpr int kFewRows = 8;
#else
constexpr int kManyRows = 4;
constexpr int kFewRows = 4;
#endif

// The height of a tile for n <= kFewRows rows: one of those that kernels exist for.
constexpr int TileHeight(int64_t n) {
  return n <= 2 ? static_cast<int>(n) : (n <= 4 ? 4 : (n <= 6 ? 6 : 8));
}

// A number that a template may use, as an argument.
template <int n>
struct Constant {
  static constexpr int value = n;
};

// Calls f(Constant<0>()) to f(Constant<n - 1>()).
template <typename F, int... i>
MLA_INLINE void ForIndices(const F& f, std::integer_sequence<int, i...>) {
  (f(Constant<i>()), ...);
}
template <int n, typename F>
MLA_INLINE void ForEachOf(const F& f) {
  ForIndices(f, std::make_integer_sequence<int, n>());
}

// The height of a tile that takes some of n rows and none besides.
constexpr int HeightWithin(int64_t n) {
  return n >= kManyRows ? kManyRows : (n >= 4 ? 4 : (n >= 2 ? 2 : 1));
}

// Calls f(Constant<height>()) for a height of at most `most`.
template <int most = kFewRows, typename F>
MLA_INLINE void WithHeight(int height, const F& f) {
  if constexpr (most >= 8) {
    if (height == 8) return f(Constant<8>());
  }
  if constexpr (most >= 6) {
    if (height == 6) return f(Constant<6>());
  }
  if (height == 4) return f(Constant<4>());
  if (height == 2) return f(Constant<2>());
  f(Constant<1>());
}

// Accumulators of n products, filled up to as many as LaneSums takes.
template <int n>
constexpr int kWholeSums = (n + 3) / 4 * 4;

// What products of X with W multiply: f32, unless pairs of bf16 are multiplied directly.
template <typename X, typename W>
struct ProductType {
  using T = float;
};
#if defined(__AVX512BF16__)
template <>
struct ProductType<bf16, bf16> {
  using T = bf16;
};
#endif

constexpr bool kPairProducts = std::is_same_v<ProductType<bf16, bf16>::T, bf16>;

// How one step of the axis multiplies: f32 lanes in general ...
template <typename X, typename W>
struct DotStep {
  static constexpr int kStep = kLanes;
  template <typename T>
  static MLA_INLINE vf Get(const T* p) {
    return Load(p);
  }
  template <typename T>
  static MLA_INLINE vf GetPart(const T* p, int64_t n) {
    return LoadPart(p, n);
  }
  static MLA_INLINE vf Add(vf acc, vf a, vf b) { return MulAdd(a, b, acc); }
};

// ... and pairs of bf16 where the processor multiplies them directly.
#if defined(__AVX512BF16__)
template <>
struct DotStep<bf16, bf16> {
  static constexpr int kStep = 2 * kLanes;
  static MLA_INLINE __m512i Get(const bf16* p) { return _mm512_loadu_si512(p); }
  static MLA_INLINE __m512i GetPart(const bf16* p, int64_t n) {
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p);
  }
  static MLA_INLINE vf Add(vf acc, __m512i a, __m512i b) {
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
  }
};
#endif

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_DOT_TILE_H_
