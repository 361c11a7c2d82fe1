// Which groups the lanes of a wave share as they hold them, as the host and the device agree on it.
#ifndef MLA_GPU_GROUP_SHAPE_H_
#define MLA_GPU_GROUP_SHAPE_H_

#include "common/group_format.h"
#include "gpu/row_shape.h"

namespace mla {
namespace gpu {

// The smallest wave's values, a run a lane.
constexpr int64_t kLargestLaneGroup = 32 * kRunValues;

// log2 of a group's size where it is a power of two from a run to a wave; otherwise -1.
constexpr int GroupShift(int64_t group) {
  for (int shift = 3; (int64_t{1} << shift) <= kLargestLaneGroup; ++shift) {
    if (group == int64_t{1} << shift) return shift;
  }
  return -1;
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_GROUP_SHAPE_H_
