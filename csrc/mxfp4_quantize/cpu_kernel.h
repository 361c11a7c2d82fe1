// Float rows to MXFP4.
#ifndef MLA_MXFP4_QUANTIZE_CPU_KERNEL_H_
#define MLA_MXFP4_QUANTIZE_CPU_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace mla {

struct Mxfp4QuantizeArgs {
  const void* x;   // (rows, k), f32 or bf16; k even
  uint8_t* data;   // (rows, k / 2)
  uint8_t* scale;  // (rows, ceil(k / 32))
  DType x_type;
  int64_t rows, k;
  int64_t rounding;  // of enum Rounding
};

MLA_DECLARE_KERNEL(Mxfp4QuantizeRows, Mxfp4QuantizeArgs)

}  // namespace mla

#endif  // MLA_MXFP4_QUANTIZE_CPU_KERNEL_H_
