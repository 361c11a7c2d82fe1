// The parts of a mixture of experts on a GPU that are no products: who goes where, and the weighted
// sum.
#include "expert_mlp/gpu_shape.h"
#include "gpu/convert.h"

namespace mla {
namespace gpu {
namespace {

MLA_DEVICE int AddShared(int* shared, int value) {
#if defined(__HIP__)
  return __hip_atomic_fetch_add(shared, value, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP);
#else
  return atomicAdd(shared, value);
#endif
}

MLA_DEVICE bool Exists(const ExpertMlpArgs& args, int32_t expert) {
  return expert >= 0 && expert < args.experts;
}

// One block counts the pairs of each expert, lays out positions and tiles, and places the pairs.
// The order inside an expert is whatever it comes to: no result depends on it.
MLA_DEVICE void Plan(const ExpertGpuArgs& all, int* count) {
  const ExpertMlpArgs& args = all.args;
  const ExpertPlan& plan = all.plan;
  const int64_t pairs = args.tokens * args.slots;
  const int experts = static_cast<int>(args.experts);
  for (int e = ThreadX(); e < experts; e += kPlanThreads) count[e] = 0;
  Barrier();
  for (int64_t p = ThreadX(); p < pairs; p += kPlanThreads) {
    if (Exists(args, args.ids[p])) AddShared(count + args.ids[p], 1);
  }
  Barrier();
  // Each expert's thread adds up what lies before; expert number `experts` is the end.
  for (int e = ThreadX(); e <= experts; e += kPlanThreads) {
    int start = 0, tiles[2] = {0, 0};
    for (int i = 0; i < e; ++i) {
      start += count[i];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        tiles[j] += (count[i] + plan.tile_tokens[j] - 1) / plan.tile_tokens[j];
      }
    }
    plan.start[e] = start;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int end = e == experts
                          ? plan.tiles[j]
                          : tiles[j] + (count[e] + plan.tile_tokens[j] - 1) / plan.tile_tokens[j];
      for (int tile = tiles[j]; tile < end; ++tile) {
        plan.tile_expert[j][tile] = e == experts ? -1 : e;
        plan.tile_first[j][tile] = start + (tile - tiles[j]) * plan.tile_tokens[j];
      }
    }
    if (e < experts) count[experts + e] = start;
  }
  Barrier();
  for (int64_t p = ThreadX(); p < pairs; p += kPlanThreads) {
    const bool exists = Exists(args, args.ids[p]);
    const int position = exists ? AddShared(count + experts + args.ids[p], 1) : -1;
    plan.position[p] = position;
    if (exists) plan.token[position] = static_cast<int32_t>(p / args.slots);
  }
}

// y[token] = sum over slots, in order, of weight * what the expert gave.
MLA_DEVICE void Combine(const ExpertGpuArgs& all) {
  const ExpertMlpArgs& args = all.args;
  const int parts = static_cast<int>((args.hidden + kCombineColumns - 1) / kCombineColumns);
  const int64_t token = BlockX() / parts;
  const int64_t first = static_cast<int64_t>(BlockX() % parts) * kCombineColumns;
  for (int64_t c = first + ThreadX(); c < first + kCombineColumns && c < args.hidden;
       c += kCombineThreads) {
    float total = 0;
    for (int64_t s = 0; s < args.slots; ++s) {
      const int64_t pair = token * args.slots + s, position = all.plan.position[pair];
      if (position >= 0) total += args.weights[pair] * args.sums[position * args.hidden + c];
    }
    WriteOne(args.y, args.io_type, token * args.hidden + c, total);
  }
}

}  // namespace
}  // namespace gpu
}  // namespace mla

using mla::gpu::ExpertGpuArgs;

#if defined(__HIP__)
extern "C" __shared__ int mla_expert_counts[];
#else
extern __shared__ int mla_expert_counts[];
#endif

MLA_GPU_KERNEL(mla_expert_plan, mla::gpu::kPlanThreads, ExpertGpuArgs) {
  mla::gpu::Plan(args, mla_expert_counts);
}
MLA_GPU_KERNEL(mla_expert_combine, mla::gpu::kCombineThreads, ExpertGpuArgs) {
  mla::gpu::Combine(args);
}
