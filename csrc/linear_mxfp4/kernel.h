// y = x . w^T with both in MXFP4: what a GPU's matrix cores multiply as it is.
#ifndef MLA_LINEAR_MXFP4_KERNEL_H_
#define MLA_LINEAR_MXFP4_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace mla {

// A row of either is `groups` groups of 32 codes, 16 bytes, with a scale byte each.
struct LinearMxfp4Args {
  const uint8_t* x;        // (m, groups, 16)
  const uint8_t* x_scale;  // (m, groups)
  const uint8_t* w;        // (n, groups, 16)
  const uint8_t* w_scale;  // (n, groups)
  void* y;                 // (m, n)
  DType y_type;
  int64_t m, n, groups;
  int32_t row_blocks;  // Of weight rows, by which the grid is divided.
};

MLA_DECLARE_KERNEL(LinearMxfp4, LinearMxfp4Args)

}  // namespace mla

#endif  // MLA_LINEAR_MXFP4_KERNEL_H_
