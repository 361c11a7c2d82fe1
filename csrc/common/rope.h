// RoPE of one row of f32.
#ifndef MLA_COMMON_ROPE_H_
#define MLA_COMMON_ROPE_H_

#include "common/simd.h"

namespace mla {
namespace MLA_ISA {

// Rotates `rope` values in place; the order of elements stays.
inline void Rotate(float* v, const float* cos, const float* sin, int64_t rope, bool half_layout) {
  const int64_t pairs = rope / 2;
  if (half_layout) {
    float* low = v;
    float* high = v + pairs;
    for (int64_t i = 0; i < pairs; ++i) {
      const float a = low[i], b = high[i];
      low[i] = a * cos[i] - b * sin[i];
      high[i] = b * cos[i] + a * sin[i];
    }
  } else {
    for (int64_t i = 0; i < pairs; ++i) {
      const float a = v[2 * i], b = v[2 * i + 1];
      v[2 * i] = a * cos[i] - b * sin[i];
      v[2 * i + 1] = b * cos[i] + a * sin[i];
    }
  }
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_ROPE_H_
