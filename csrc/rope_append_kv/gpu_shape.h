// What the host and the device agree on: how a token's items are spread over blocks.
#ifndef MLA_ROPE_APPEND_KV_GPU_SHAPE_H_
#define MLA_ROPE_APPEND_KV_GPU_SHAPE_H_

#include "rope_append_kv/kernel.h"

namespace mla {
namespace gpu {

constexpr int kThreads = 256;
// What a wide kernel moves at once: 4 pairs or 8 columns.
constexpr int kWideColumns = 8;

// A thread's items: those of a query or key head, the pairs that are rotated and then the columns
// that are not, and those of a value head.
struct RopeAppendKvGpuArgs {
  RopeAppendKvArgs args;
  int32_t rotated, key_items, value_items;  // Of one head.
  int32_t parts;                            // Blocks a token.
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_ROPE_APPEND_KV_GPU_SHAPE_H_
