// What the host and the device agree on: every row is some whole blocks.
#ifndef MLA_FLATTEN_QUANTIZE_GPU_SHAPE_H_
#define MLA_FLATTEN_QUANTIZE_GPU_SHAPE_H_

#include "flatten_quantize/kernel.h"
#include "gpu/group_shape.h"

namespace mla {
namespace gpu {

struct FlattenQuantizeGpuArgs {
  FlattenQuantizeArgs args;
  int32_t shift;  // GroupShift() of the groups.
  int32_t parts;  // Blocks a row.
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_FLATTEN_QUANTIZE_GPU_SHAPE_H_
