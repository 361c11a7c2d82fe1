// RoPE of the heads of one token.
#ifndef MLA_COMMON_ROPE_H_
#define MLA_COMMON_ROPE_H_

#include "common/simd.h"

namespace mla {
namespace MLA_ISA {

// The neighbour of every lane in its pair (2i, 2i + 1).
MLA_INLINE vf SwapPairs(vf v) {
#if MLA_VECTOR_BYTES == 64
  return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif MLA_VECTOR_BYTES == 32
  return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
#else
  return __builtin_shufflevector(v, v, 1, 0, 3, 2);
#endif
}

// One row for every head, `stride` elements apart; dst may be src.
template <typename T>
struct Heads {
  const T* src;
  T* dst;
  int64_t count, src_stride, dst_stride;
};

// The first n <= kLanes lanes.
template <typename T>
MLA_INLINE vf LoadLanes(const T* p, int64_t n) {
  return n == kLanes ? Load(p) : LoadPart(p, n);
}
template <typename T>
MLA_INLINE void StoreLanes(T* p, vf v, int64_t n) {
  if (n == kLanes) {
    Store(p, v);
  } else {
    StorePart(p, v, n);
  }
}

// Rotates the first `rope` elements of every head; the order of elements stays. Heads are the inner
// loop, so that cos and sin stay in registers.
template <typename T>
inline void Rotate(const Heads<T>& heads, const float* cos, const float* sin, int64_t rope,
                   bool half_layout) {
  const int64_t pairs = rope / 2;
  if (half_layout) {
    for (int64_t i = 0; i < pairs; i += kLanes) {
      const int64_t n = pairs - i < kLanes ? pairs - i : kLanes;
      const vf c = LoadLanes(cos + i, n), s = LoadLanes(sin + i, n);
      for (int64_t h = 0; h < heads.count; ++h) {
        const T* src = heads.src + h * heads.src_stride + i;
        T* dst = heads.dst + h * heads.dst_stride + i;
        const vf a = LoadLanes(src, n), b = LoadLanes(src + pairs, n);
        StoreLanes(dst, a * c - b * s, n);
        StoreLanes(dst + pairs, b * c + a * s, n);
      }
    }
    return;
  }
  for (int64_t i = 0; i < rope; i += kLanes) {
    const int64_t n = rope - i < kLanes ? rope - i : kLanes;
    float both_cos[kLanes] = {}, signed_sin[kLanes] = {};
    for (int64_t j = 0; j < n; j += 2) {
      both_cos[j] = both_cos[j + 1] = cos[(i + j) / 2];
      signed_sin[j] = -sin[(i + j) / 2];
      signed_sin[j + 1] = sin[(i + j) / 2];
    }
    const vf c = Load(both_cos), s = Load(signed_sin);
    for (int64_t h = 0; h < heads.count; ++h) {
      const vf a = LoadLanes(heads.src + h * heads.src_stride + i, n);
      StoreLanes(heads.dst + h * heads.dst_stride + i, a * c + SwapPairs(a) * s, n);
    }
  }
}

// The same from element `src_at` of one buffer of f32 or bf16 to element `dst_at` of another.
inline void RotateRows(DType type, const void* src, int64_t src_at, int64_t src_stride, void* dst,
                       int64_t dst_at, int64_t dst_stride, int64_t count, const float* cos,
                       const float* sin, int64_t rope, bool half_layout) {
  if (type == DType::kF32) {
    Rotate(Heads<float>{static_cast<const float*>(src) + src_at, static_cast<float*>(dst) + dst_at,
                        count, src_stride, dst_stride},
           cos, sin, rope, half_layout);
  } else {
    Rotate(Heads<bf16>{static_cast<const bf16*>(src) + src_at, static_cast<bf16*>(dst) + dst_at,
                       count, src_stride, dst_stride},
           cos, sin, rope, half_layout);
  }
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_ROPE_H_
