// What the host and the device agree on: the plan by which (token, slot) pairs reach their experts.
#ifndef MLA_EXPERT_MLP_GPU_SHAPE_H_
#define MLA_EXPERT_MLP_GPU_SHAPE_H_

#include "expert_mlp/kernel.h"
#include "gpu/product.h"

namespace mla {
namespace gpu {

constexpr int kPlanThreads = 512;
constexpr int kCombineThreads = 256;  // A column each.

// Ints of shared memory that the plan of so many experts needs: a counter each, and two buffers of
// three sums.
constexpr int64_t PlanInts(int64_t experts) { return experts + 2 * 3 * (experts + 1); }

struct ExpertPlan {
  int32_t* start;           // (experts + 1) positions
  int32_t* tile_expert[2];  // Of gate_up's and down's tiles; -1: no tile.
  int32_t* tile_first[2];
  int32_t* token;     // Of a position.
  int32_t* position;  // Of a pair; -1: its expert does not exist.
  int32_t tile_tokens[2], tiles[2];
};

struct ExpertGpuArgs {
  ExpertMlpArgs args;
  ExpertPlan plan;
};

#if defined(MLA_GPU)
// `gate_up` and `down` describe the weights; the rest is filled in.
xla::ffi::Error RunExperts(const ExpertMlpArgs& args, ProductArgs gate_up, ProductArgs down,
                           const Stream& stream);
#endif

}  // namespace gpu
}  // namespace mla

#endif  // MLA_EXPERT_MLP_GPU_SHAPE_H_
