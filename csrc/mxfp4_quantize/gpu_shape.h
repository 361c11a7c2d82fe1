// What the host and the device agree on: 16 lanes a group, two values a lane.
#ifndef MLA_MXFP4_QUANTIZE_GPU_SHAPE_H_
#define MLA_MXFP4_QUANTIZE_GPU_SHAPE_H_

#include "mxfp4_quantize/kernel.h"

namespace mla {
namespace gpu {

constexpr int kQuantizeThreads = 256;
constexpr int kLanesOfGroup = static_cast<int>(kMxfp4Group / 2);

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MXFP4_QUANTIZE_GPU_SHAPE_H_
