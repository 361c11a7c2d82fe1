// Whole rows between a storage type and f32. bf16 rounds to nearest even and keeps NaN.
#ifndef MLA_COMMON_BFLOAT16_H_
#define MLA_COMMON_BFLOAT16_H_

#include "common/simd.h"

namespace mla {
namespace MLA_ISA {

template <typename T>
inline void RowToFloat(const T* src, int64_t n, float* dst) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(dst + i, Load(src + i));
  for (; i < n; ++i) dst[i] = ToFloat(src[i]);
}

// To what products multiply.
template <typename T>
inline void ConvertRow(const T* src, int64_t n, T* dst) {
  __builtin_memcpy(dst, src, static_cast<size_t>(n) * sizeof(T));
}
inline void ConvertRow(const bf16* src, int64_t n, float* dst) { RowToFloat(src, n, dst); }

template <typename T>
inline void RowFromFloat(const float* src, int64_t n, T* dst) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(dst + i, Load(src + i));
  for (; i < n; ++i) StoreOne(dst + i, src[i]);
}

// n elements from element `offset` of a buffer of type f32 or bf16.
inline void ReadRow(const void* base, DType type, int64_t offset, int64_t n, float* dst) {
  if (type == DType::kF32) {
    RowToFloat(static_cast<const float*>(base) + offset, n, dst);
  } else {
    RowToFloat(static_cast<const bf16*>(base) + offset, n, dst);
  }
}

inline void WriteRow(void* base, DType type, int64_t offset, int64_t n, const float* src) {
  if (type == DType::kF32) {
    RowFromFloat(src, n, static_cast<float*>(base) + offset);
  } else {
    RowFromFloat(src, n, static_cast<bf16*>(base) + offset);
  }
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_BFLOAT16_H_
