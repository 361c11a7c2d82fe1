// Root-mean-square norm of a column slice, with or without a residual added first, quantised in
// groups before anything is rounded.
#ifndef MLA_RMSNORM_QUANTIZE_KERNEL_H_
#define MLA_RMSNORM_QUANTIZE_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/group_format.h"
#include "common/isa.h"

namespace mla {

// A row is read whole before anything of it is written.
struct RmsNormQuantizeArgs {
  const void* x;         // (out.rows, width), the slice of out.k starts at column `offset`
  const void* residual;  // (out.rows, out.k) or null
  const void* weight;    // (out.k)
  void* unquantized;     // (out.rows, out.k) or null
  void* sum;             // (out.rows, out.k); null without residual
  DType io_type, weight_type;
  int64_t width, offset;
  float eps, weight_offset;
  QuantizedRows out;
};

MLA_DECLARE_KERNEL(RmsNormQuantize, RmsNormQuantizeArgs)

}  // namespace mla

#endif  // MLA_RMSNORM_QUANTIZE_KERNEL_H_
