// Root-mean-square norm of a column slice, with or without a residual added first.
#ifndef MLA_RMSNORM_KERNEL_H_
#define MLA_RMSNORM_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace mla {

// A row is read whole before anything of it is written, so that y may be the memory of x (if the
// slice is all of it) and sum that of the residual.
struct RmsNormArgs {
  const void* x;         // (rows, width), the slice starts at column `offset`
  const void* residual;  // (rows, n) or null
  const void* weight;    // (n)
  void* y;               // (rows, n)
  void* sum;             // (rows, n); null without residual
  DType io_type, weight_type;
  int64_t rows, width, offset, n;
  float eps;
};

MLA_DECLARE_KERNEL(RmsNorm, RmsNormArgs)

}  // namespace mla

#endif  // MLA_RMSNORM_KERNEL_H_
