// Root-mean-square norms of the query latent and of the latent part of kv_a, in place, in one call.
#ifndef MLA_FUSED_QK_RMSNORM_KERNEL_H_
#define MLA_FUSED_QK_RMSNORM_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace mla {

// Rows of `width` columns, of which the first n are normed and the rest are left as they are.
struct NormedRows {
  void* values;        // (rows, width), in and out
  const void* weight;  // (n)
  DType weight_type;
  int64_t width, n;
  float eps;
};

struct FusedQkRmsNormArgs {
  NormedRows q, kv;
  DType io_type;
  int64_t rows;
};

MLA_DECLARE_KERNEL(FusedQkRmsNorm, FusedQkRmsNormArgs)

}  // namespace mla

#endif  // MLA_FUSED_QK_RMSNORM_KERNEL_H_
