// Per-head products with the two halves of a quantised key/value up-projection.
#ifndef MLA_ABSORB_QUANTIZED_KERNEL_H_
#define MLA_ABSORB_QUANTIZED_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/quantized_matrix.h"

namespace mla {

struct AbsorbQuantizedArgs {
  const void* x;      // (tokens, heads, x_width)
  QuantizedMatrix w;  // (heads * w_rows, rank): blocks may span heads
  void* y;            // (tokens, heads, contract_columns ? rows_used : rank)
  DType io_type;
  int64_t tokens, heads, x_width, w_rows;
  int64_t x_offset, row_offset, rows_used;
  // As AbsorbArgs.
  bool contract_columns;
};

MLA_DECLARE_KERNEL(AbsorbQuantized, AbsorbQuantizedArgs)

}  // namespace mla

#endif  // MLA_ABSORB_QUANTIZED_KERNEL_H_
