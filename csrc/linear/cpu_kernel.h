// y = x . w^T (+ bias), one rounding from f32.
#ifndef MLA_LINEAR_CPU_KERNEL_H_
#define MLA_LINEAR_CPU_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace mla {

struct LinearArgs {
  const void* x;     // (m, k)
  const void* w;     // (n, k)
  const void* bias;  // (n) or null
  void* y;           // (m, n)
  DType x_type, w_type, bias_type, y_type;
  int64_t m, n, k;
};

MLA_DECLARE_KERNEL(Linear, LinearArgs)

}  // namespace mla

#endif  // MLA_LINEAR_CPU_KERNEL_H_
