// What the host and the device agree on: every row is some whole blocks.
#ifndef MLA_FLATTEN_QUANTIZE_GPU_SHAPE_H_
#define MLA_FLATTEN_QUANTIZE_GPU_SHAPE_H_

#include "flatten_quantize/kernel.h"
#include "gpu/group_shape.h"

namespace mla {
namespace gpu {

// What a run's position in its row may reach, a 32-bit number.
constexpr int64_t kLongestRow = int64_t{1} << 30;

struct FlattenQuantizeGpuArgs {
  FlattenQuantizeArgs args;
  int32_t parts;  // Blocks a row.
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_FLATTEN_QUANTIZE_GPU_SHAPE_H_
