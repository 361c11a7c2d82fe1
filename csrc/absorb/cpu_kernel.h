// Per-head products with the two halves of the key/value up-projection.
#ifndef MLA_ABSORB_CPU_KERNEL_H_
#define MLA_ABSORB_CPU_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace mla {

struct AbsorbArgs {
  const void* x;  // (tokens, heads, x_width)
  const void* w;  // (heads, w_rows, rank)
  void* y;        // (tokens, heads, contract_columns ? rows_used : rank)
  DType io_type;
  int64_t tokens, heads, x_width, w_rows, rank;
  int64_t x_offset, row_offset, rows_used;
  // false: y[t, h, :] = sum over d of x[t, h, x_offset + d] * w[h, row_offset + d, :]
  // true:  y[t, h, d] = sum over r of x[t, h, x_offset + r] * w[h, row_offset + d, r]
  bool contract_columns;
};

MLA_DECLARE_KERNEL(Absorb, AbsorbArgs)

}  // namespace mla

#endif  // MLA_ABSORB_CPU_KERNEL_H_
