// What the host and the device agree on.
#ifndef MLA_LINEAR_MXFP4_GPU_SHAPE_H_
#define MLA_LINEAR_MXFP4_GPU_SHAPE_H_

#include "gpu/tile_shape.h"
#include "linear_mxfp4/kernel.h"

namespace mla {
namespace gpu {

// Few tokens: many waves read the weight. Many: a weight that was read meets more of them.
using Mxfp4Few = TileShape<1, 1, 8>;
#if defined(MLA_ON_ROCM)
using Mxfp4Many = TileShape<2, 4, 4>;
#else
using Mxfp4Many = TileShape<2, 2, 4>;  // More do not fit into registers once they are decoded.
#endif

}  // namespace gpu
}  // namespace mla

#endif  // MLA_LINEAR_MXFP4_GPU_SHAPE_H_
