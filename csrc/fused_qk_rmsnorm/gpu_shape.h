// What the host and the device agree on: the blocks of the query's rows, then those of the
// latent's.
#ifndef MLA_FUSED_QK_RMSNORM_GPU_SHAPE_H_
#define MLA_FUSED_QK_RMSNORM_GPU_SHAPE_H_

#include "fused_qk_rmsnorm/kernel.h"
#include "gpu/row_shape.h"

namespace mla {
namespace gpu {

struct FusedQkRmsNormGpuArgs {
  FusedQkRmsNormArgs args;
  RowKind q_kind, kv_kind;
  int32_t q_blocks;
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_FUSED_QK_RMSNORM_GPU_SHAPE_H_
