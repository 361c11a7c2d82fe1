// What the host and the device agree on.
#ifndef MLA_RMSNORM_QUANTIZE_GPU_SHAPE_H_
#define MLA_RMSNORM_QUANTIZE_GPU_SHAPE_H_

#include "gpu/group_shape.h"
#include "rmsnorm_quantize/kernel.h"

namespace mla {
namespace gpu {

struct RmsNormQuantizeGpuArgs {
  RmsNormQuantizeArgs args;
  int32_t shift;  // GroupShift() of the groups, read where rows are held.
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_RMSNORM_QUANTIZE_GPU_SHAPE_H_
