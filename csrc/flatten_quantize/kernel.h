// Rows, such as tokens whose heads lie side by side, quantised in groups.
#ifndef MLA_FLATTEN_QUANTIZE_KERNEL_H_
#define MLA_FLATTEN_QUANTIZE_KERNEL_H_

#include "common/dtype.h"
#include "common/group_format.h"
#include "common/isa.h"

namespace mla {

struct FlattenQuantizeArgs {
  const void* x;  // (out.rows, out.k), f32 or bf16; out.k is heads * head width
  DType x_type;
  QuantizedRows out;
};

MLA_DECLARE_KERNEL(FlattenQuantize, FlattenQuantizeArgs)

}  // namespace mla

#endif  // MLA_FLATTEN_QUANTIZE_KERNEL_H_
