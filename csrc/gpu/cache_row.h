// Values on their way into a cache: f32 and bf16 as they are, float8 divided by its scale.
#ifndef MLA_GPU_CACHE_ROW_H_
#define MLA_GPU_CACHE_ROW_H_

#include "gpu/convert.h"

namespace mla {
namespace gpu {

// What part `part` of a row is multiplied by; only float8 has scales.
MLA_DEVICE float CacheInverse(DType type, const float* scales, int part) {
  return type == DType::kF8E4M3FN ? 1.0f / scales[part] : 1.0f;
}

// n values to element `at` on; more than 2 are aligned.
template <int n, typename T>
MLA_DEVICE void StoreAs(void* base, int64_t at, const float (&values)[n]) {
  Pack<T, n> out;
#pragma unroll
  for (int i = 0; i < n; ++i) out.at[i] = FromFloat<T>(values[i]);
  if constexpr (n > 2) {
    StorePack(static_cast<T*>(base) + at, out);
  } else {
    StoreLoose(static_cast<T*>(base) + at, out);
  }
}

template <int n>
MLA_DEVICE void StoreCache(void* base, DType type, int64_t at, float inverse,
                           const float (&values)[n]) {
  if (type == DType::kF32) {
    StoreAs<n, float>(base, at, values);
  } else if (type == DType::kBF16) {
    StoreAs<n, bf16>(base, at, values);
  } else {
    float scaled[n];
#pragma unroll
    for (int i = 0; i < n; ++i) scaled[i] = values[i] * inverse;
    StoreAs<n, f8e4m3fn>(base, at, scaled);
  }
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_CACHE_ROW_H_
