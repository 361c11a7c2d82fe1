// Rows of f32 on their way into a cache: f32 and bf16 as they are, float8 divided by its scale.
#ifndef MLA_COMMON_CACHE_ROW_H_
#define MLA_COMMON_CACHE_ROW_H_

#include "common/bfloat16.h"
#include "common/float8.h"

namespace mla {
namespace MLA_ISA {

inline void EncodeF8Row(const float* v, int64_t n, float inverse_scale, uint8_t* dst) {
  for (int64_t i = 0; i < n; ++i) dst[i] = EncodeF8(v[i] * inverse_scale);
}

// Writes n values from element `offset` of a buffer of `type`; only float8 is scaled.
inline void WriteCacheRow(void* base, DType type, int64_t offset, int64_t n, const float* v,
                          float inverse_scale) {
  if (type == DType::kF8E4M3FN) {
    EncodeF8Row(v, n, inverse_scale, static_cast<uint8_t*>(base) + offset);
  } else {
    WriteRow(base, type, offset, n, v);
  }
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_CACHE_ROW_H_
