// y = x . w^T (+ bias) with a quantised w, one rounding from f32.
#ifndef MLA_LINEAR_QUANTIZED_KERNEL_H_
#define MLA_LINEAR_QUANTIZED_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/quantized_matrix.h"

namespace mla {

struct LinearQuantizedArgs {
  const void* x;  // (m, w.k)
  QuantizedMatrix w;
  const void* bias;  // (w.n) or null
  void* y;           // (m, w.n)
  DType x_type, bias_type, y_type;
  int64_t m;
};

MLA_DECLARE_KERNEL(LinearQuantized, LinearQuantizedArgs)

}  // namespace mla

#endif  // MLA_LINEAR_QUANTIZED_KERNEL_H_
