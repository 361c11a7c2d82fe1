// Float rows to MXFP4.
#ifndef MLA_MXFP4_QUANTIZE_KERNEL_H_
#define MLA_MXFP4_QUANTIZE_KERNEL_H_

#include "common/dtype.h"
#include "common/group_format.h"
#include "common/isa.h"

namespace mla {

struct Mxfp4QuantizeArgs {
  const void* x;  // (out.rows, out.k), f32 or bf16
  DType x_type;
  QuantizedRows out;
};

MLA_DECLARE_KERNEL(Mxfp4QuantizeRows, Mxfp4QuantizeArgs)

}  // namespace mla

#endif  // MLA_MXFP4_QUANTIZE_KERNEL_H_
