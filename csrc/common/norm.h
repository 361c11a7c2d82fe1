// Root-mean-square norm of one row of f32. The sum's order depends on the length only.
#ifndef MLA_COMMON_NORM_H_
#define MLA_COMMON_NORM_H_

#include "common/simd.h"

namespace mla {
namespace MLA_ISA {

// 1 / sqrt(mean(v^2) + eps)
inline float InverseRms(const float* v, int64_t n, float eps) {
  vf sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    MLA_UNROLL
    for (int j = 0; j < 4; ++j) {
      const vf a = Load(v + i + j * kLanes);
      sum[j] = MulAdd(a, a, sum[j]);
    }
  }
  for (; i + kLanes <= n; i += kLanes) {
    const vf a = Load(v + i);
    sum[0] = MulAdd(a, a, sum[0]);
  }
  if (i < n) {
    const vf a = LoadPart(v + i, n - i);
    sum[1] = MulAdd(a, a, sum[1]);
  }
  const float total = LaneSum((sum[0] + sum[1]) + (sum[2] + sum[3]));
  return 1.0f / __builtin_sqrtf(total / static_cast<float>(n) + eps);
}

// v *= scale * weight
inline void ScaleRow(float* v, float scale, const float* weight, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(v + i, Load(v + i) * scale * Load(weight + i));
  for (; i < n; ++i) v[i] = v[i] * scale * weight[i];
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_NORM_H_
