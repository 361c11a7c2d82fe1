// MXFP4 to bf16, which holds every value exactly: for products that XLA's own GEMM does best.
#ifndef MLA_MXFP4_DEQUANTIZE_KERNEL_H_
#define MLA_MXFP4_DEQUANTIZE_KERNEL_H_

#include "common/dtype.h"
#include "common/isa.h"

namespace mla {

struct Mxfp4DequantizeArgs {
  const uint8_t* data;   // (groups, 16)
  const uint8_t* scale;  // (groups)
  bf16* values;          // (groups, 32)
  int64_t groups;
};

MLA_DECLARE_KERNEL(Mxfp4Dequantize, Mxfp4DequantizeArgs)

}  // namespace mla

#endif  // MLA_MXFP4_DEQUANTIZE_KERNEL_H_
