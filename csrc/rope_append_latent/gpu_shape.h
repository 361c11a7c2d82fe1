// What the host and the device agree on: the arguments and how a grid covers them.
#ifndef MLA_ROPE_APPEND_LATENT_GPU_SHAPE_H_
#define MLA_ROPE_APPEND_LATENT_GPU_SHAPE_H_

#include "rope_append_latent/kernel.h"

namespace mla {
namespace gpu {

constexpr int kThreads = 256;
// From here on there is work for every thread that a GPU holds: more of it a thread.
constexpr int kManyTokens = 512, kManyItems = 2;

struct RopeAppendGpuArgs {
  RopeAppendArgs args;
  int32_t parts;  // Blocks a token's query heads take.
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_ROPE_APPEND_LATENT_GPU_SHAPE_H_
