// What the host and the device agree on.
#ifndef MLA_LINEAR_FP8_GPU_SHAPE_H_
#define MLA_LINEAR_FP8_GPU_SHAPE_H_

#include "gpu/tile_shape.h"
#include "linear_fp8/kernel.h"

namespace mla {
namespace gpu {

// Few tokens: many waves read the weight. Many: a weight that was read meets more of them.
using Fp8Few = TileShape<1, 1, 8>;
#if defined(MLA_ON_ROCM)
using Fp8Many = TileShape<2, 4, 4>;
#else
using Fp8Many = TileShape<1, 2, 4>;  // More do not fit into registers once they are decoded.
#endif

}  // namespace gpu
}  // namespace mla

#endif  // MLA_LINEAR_FP8_GPU_SHAPE_H_
