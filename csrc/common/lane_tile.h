// Products of rows that lie across the lanes: lane i of a vector belongs to row i, and the weights
// are broadcast one step of the summed axis after the other. No sum runs over lanes, so this is
// the fastest form for many rows.
#ifndef MLA_COMMON_LANE_TILE_H_
#define MLA_COMMON_LANE_TILE_H_

#include "common/dot_tile.h"
#include "common/simd.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {

// A step of the axis: a unit of 32 bits of every row, in lanes. f32 lanes in general ...
template <typename C, typename W>
struct LaneStep {
  static constexpr int kUnit = 1;
  static MLA_INLINE vf Lanes(const C* p) { return Load(p); }
  static MLA_INLINE vf Broadcast(const W* p) { return Splat(ToFloat(*p)); }
  static MLA_INLINE vf BroadcastLast(const W* p) { return Broadcast(p); }
  static MLA_INLINE vf Add(vf acc, vf a, vf b) { return MulAdd(a, b, acc); }
};

// ... and pairs of bf16 where the processor multiplies them directly. BroadcastLast is for an axis
// that ends inside a pair.
#if defined(__AVX512BF16__)
template <>
struct LaneStep<bf16, bf16> {
  static constexpr int kUnit = 2;
  static MLA_INLINE __m512i Lanes(const bf16* p) { return _mm512_loadu_si512(p); }
  static MLA_INLINE __m512i Broadcast(const bf16* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return _mm512_set1_epi32(pair);
  }
  static MLA_INLINE __m512i BroadcastLast(const bf16* p) { return _mm512_set1_epi32(p->bits); }
  static MLA_INLINE vf Add(vf acc, __m512i a, __m512i b) {
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
  }
};
#endif

// Vectors of rows in a tile of products, at most, and the weight rows that a tile of `vectors`
// takes. Of f32 a core has room for more products than reads beside them, which wide tiles save.
constexpr int kLaneVectors = kLanes == 16 && !kPairProducts ? 4 : 3;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int LaneCols(int vectors) { return vectors <= 2 ? 12 : 24 / vectors; }
#else
constexpr int LaneCols(int vectors) { return 12 / vectors; }
#endif

// Calls f(Constant<vectors>()) for the vectors that hold n <= most * kLanes rows.
template <int most, typename F>
MLA_INLINE void WithVectors(int64_t n, const F& f) {
  if constexpr (most >= 4) {
    if (n > 3 * kLanes) return f(Constant<4>());
  }
  if constexpr (most >= 3) {
    if (n > 2 * kLanes) return f(Constant<3>());
  }
  if constexpr (most >= 2) {
    if (n > kLanes) return f(Constant<2>());
  }
  f(Constant<1>());
}

// Columns of a product beside which memory is asked for at a time.
constexpr int64_t kAskColumns = 32;

// out[n * ld + i] (+)= scale[n] * (row i . w[n]) over k columns, for V vectors of rows and N weight
// rows, among which pointers may be equal. x: (steps, V * kLanes) units. ask(i), always inlined,
// runs beside the columns [i, i + kAskColumns), if there are as many.
template <int V, int N, typename C, typename W, typename Ask>
inline __attribute__((noinline)) void LaneTile(const C* x, const W* const* w, int64_t k,
                                               const float* scale, bool add, const Ask& ask,
                                               float* out, int64_t ld) {
  using Step = LaneStep<C, W>;
  constexpr int64_t kStride = V * kLanes * (4 / static_cast<int64_t>(sizeof(C)));
  vf acc[N * V] = {};
  const W* ws[N];
  MLA_UNROLL
  for (int n = 0; n < N; ++n) ws[n] = w[n];
  const auto step = [&](bool last, int64_t i) __attribute__((always_inline)) {
    decltype(Step::Lanes(x)) a[V];
    MLA_UNROLL
    for (int v = 0; v < V; ++v) a[v] = Step::Lanes(x + v * (kStride / V));
    x += kStride;
    MLA_UNROLL
    for (int n = 0; n < N; ++n) {
      const auto b = last ? Step::BroadcastLast(ws[n] + i) : Step::Broadcast(ws[n] + i);
      MLA_UNROLL
      for (int v = 0; v < V; ++v) acc[n * V + v] = Step::Add(acc[n * V + v], a[v], b);
    }
  };
  int64_t i = 0;
  for (; i + kAskColumns <= k; i += kAskColumns) {
    ask(i);
    for (int64_t j = i; j < i + kAskColumns; j += Step::kUnit) step(false, j);
  }
  for (; i + Step::kUnit <= k; i += Step::kUnit) step(false, i);
  if (i < k) step(true, i);
  MLA_UNROLL
  for (int n = 0; n < N; ++n) {
    MLA_UNROLL
    for (int v = 0; v < V; ++v) {
      float* to = out + n * ld + v * kLanes;
      Store(to, MulAdd(acc[n * V + v], Splat(scale[n]), add ? Load(to) : vf{}));
    }
  }
}

// --- Rows to lanes and back ---

// Numbers of lanes, for patterns of shuffles.
template <int... lane>
struct LaneList {};
#if MLA_VECTOR_BYTES == 64
using AllLanes = LaneList<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
#elif MLA_VECTOR_BYTES == 32
using AllLanes = LaneList<0, 1, 2, 3, 4, 5, 6, 7>;
#else
using AllLanes = LaneList<0, 1, 2, 3>;
#endif

// One stage: of every pair of blocks of `half` lanes, a keeps its first and takes b's, and so on.
template <int half, int... lane>
MLA_INLINE void ExchangeLanes(vf* a, vf* b, LaneList<lane...>) {
  const vf first =
      __builtin_shufflevector(*a, *b, (lane / half % 2 == 0 ? lane : kLanes + lane - half)...);
  *b = __builtin_shufflevector(*a, *b, (lane / half % 2 == 0 ? lane + half : kLanes + lane)...);
  *a = first;
}

template <int half>
MLA_INLINE void TransposeBlocks(vf* v) {
  MLA_UNROLL
  for (int i = 0; i < kLanes; ++i) {
    if (i / half % 2 == 0) ExchangeLanes<half>(v + i, v + i + half, AllLanes());
  }
  if constexpr (half > 1) TransposeBlocks<half / 2>(v);
}

// v[i][j] becomes v[j][i].
MLA_INLINE void Transpose(vf* v) { TransposeBlocks<kLanes / 2>(v); }

// Moves `count` <= kLanes rows of k columns into lanes: row i's step s goes to dst[s * stride + i],
// in units of 32 bits; lanes behind the last row are zeros, as far as `stride` has room for them.
template <typename C>
inline void RowsToLanes(const C* const* rows, int64_t count, int64_t k, int64_t stride, C* dst) {
  constexpr int64_t kUnit = 4 / static_cast<int64_t>(sizeof(C));
  constexpr int64_t kBlock = kLanes * kUnit;
  for (int64_t c = 0; c < k; c += kBlock) {
    const int64_t width = Min(kBlock, k - c);
    C* to = dst + c * stride;
    vf v[kLanes] = {};
    if (width == kBlock) {
      if (count == kLanes) {
        MLA_UNROLL
        for (int i = 0; i < kLanes; ++i) __builtin_memcpy(v + i, rows[i] + c, sizeof(vf));
      } else {
        for (int64_t i = 0; i < count; ++i) __builtin_memcpy(v + i, rows[i] + c, sizeof(vf));
      }
      Transpose(v);
      if (stride >= kLanes) {
        MLA_UNROLL
        for (int s = 0; s < kLanes; ++s) {
          __builtin_memcpy(to + s * stride * kUnit, v + s, sizeof(vf));
        }
      } else {
        for (int s = 0; s < kLanes; ++s) {
          __builtin_memcpy(to + s * stride * kUnit, v + s, static_cast<size_t>(stride) * 4);
        }
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        __builtin_memcpy(v + i, rows[i] + c, static_cast<size_t>(width) * sizeof(C));
      }
      Transpose(v);
      for (int64_t s = 0; s * kUnit < width; ++s) {
        __builtin_memcpy(to + s * stride * kUnit, v + s,
                         static_cast<size_t>(Min(stride, kLanes)) * 4);
      }
    }
  }
}

// rows[i * kLanes + j] = lane i of src[j * stride], for i < kLanes and j < kLanes.
inline void LanesToRows(const float* src, int64_t stride, float* rows) {
  vf v[kLanes];
  MLA_UNROLL
  for (int j = 0; j < kLanes; ++j) v[j] = Load(src + j * stride);
  Transpose(v);
  MLA_UNROLL
  for (int i = 0; i < kLanes; ++i) Store(rows + i * kLanes, v[i]);
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_LANE_TILE_H_
