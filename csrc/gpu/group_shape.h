// The groups that have kernels of their own, as the host and the device agree on it: those that
// models use. All others are quantised by a wave that reads them.
#ifndef MLA_GPU_GROUP_SHAPE_H_
#define MLA_GPU_GROUP_SHAPE_H_

#include "common/group_format.h"
#include "gpu/row_shape.h"

namespace mla {
namespace gpu {

// log2 of the values of a group, which are some runs of one wave.
constexpr int kMxfp4Shift = 5, kF8Shift = 7;

constexpr bool IsLaneGroup(const QuantizedRows& rows) {
  return rows.group == int64_t{1} << (rows.format == GroupFormat::kFp8 ? kF8Shift : kMxfp4Shift);
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_GROUP_SHAPE_H_
