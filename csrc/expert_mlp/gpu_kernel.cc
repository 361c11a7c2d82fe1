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

// What lies before an expert, counted in the order of experts.
struct Before {
  int pairs, tiles[2];
};

MLA_DEVICE int Tiles(const ExpertPlan& plan, int j, int pairs) {
  return (pairs + plan.tile_tokens[j] - 1) / plan.tile_tokens[j];
}

// Sums of what lies before each expert, over `experts` + 1 entries; `entry(e)` is expert e's own.
// Rounds of doubling reach, between two buffers: everybody reads one and writes the other.
template <typename Fn>
MLA_DEVICE const Before* SumsBefore(Before* buffers, int experts, const Fn& entry) {
  const int entries = experts + 1;
  Before* from = buffers;
  Before* to = buffers + entries;
  for (int e = ThreadX(); e < entries; e += kPlanThreads) {
    from[e] = e == 0 ? Before{} : entry(e - 1);
  }
  Barrier();
  for (int reach = 1; reach < entries; reach *= 2) {
    for (int e = ThreadX(); e < entries; e += kPlanThreads) {
      Before sum = from[e];
      if (e >= reach) {
        const Before& other = from[e - reach];
        sum.pairs += other.pairs;
        sum.tiles[0] += other.tiles[0];
        sum.tiles[1] += other.tiles[1];
      }
      to[e] = sum;
    }
    Barrier();
    Before* const written = to;
    to = from;
    from = written;
  }
  return from;
}

// One block counts the pairs of each expert, lays out positions and tiles, and places the pairs.
// The order inside an expert is whatever it comes to: no result depends on it.
MLA_DEVICE void Plan(const ExpertGpuArgs& all, int* shared) {
  const ExpertMlpArgs& args = all.args;
  const ExpertPlan& plan = all.plan;
  const int64_t pairs = args.tokens * args.slots;
  const int experts = static_cast<int>(args.experts);
  int* const count = shared;
  auto* const buffers = reinterpret_cast<Before*>(shared + experts);
  for (int e = ThreadX(); e < experts; e += kPlanThreads) count[e] = 0;
  Barrier();
  for (int64_t p = ThreadX(); p < pairs; p += kPlanThreads) {
    if (Exists(args, args.ids[p])) AddShared(count + args.ids[p], 1);
  }
  Barrier();
  const Before* before = SumsBefore(buffers, experts, [&](int e) {
    return Before{count[e], {Tiles(plan, 0, count[e]), Tiles(plan, 1, count[e])}};
  });
  for (int e = ThreadX(); e < experts; e += kPlanThreads) {
    const int start = before[e].pairs;
    plan.start[e] = count[e] = start;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int first = before[e].tiles[j], end = before[e + 1].tiles[j];
      for (int tile = first; tile < end; ++tile) {
        plan.tile_expert[j][tile] = e;
        plan.tile_first[j][tile] = start + (tile - first) * plan.tile_tokens[j];
      }
    }
  }
  if (ThreadX() == 0) plan.start[experts] = before[experts].pairs;
  // Behind the last expert's tiles there are none.
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    for (int tile = before[experts].tiles[j] + ThreadX(); tile < plan.tiles[j];
         tile += kPlanThreads) {
      plan.tile_expert[j][tile] = -1;
    }
  }
  Barrier();
  for (int64_t p = ThreadX(); p < pairs; p += kPlanThreads) {
    const bool exists = Exists(args, args.ids[p]);
    const int position = exists ? AddShared(count + args.ids[p], 1) : -1;
    plan.position[p] = position;
    if (exists) plan.token[position] = static_cast<int32_t>(p / args.slots);
  }
}

// y[token] = sum over slots, in order, of weight * what the expert gave. A thread has one column,
// and reads some slots' places, weights and values before it adds them.
MLA_DEVICE void Combine(const ExpertGpuArgs& all) {
  constexpr int kTogether = 8;
  const ExpertMlpArgs& args = all.args;
  const int parts = static_cast<int>((args.hidden + kCombineThreads - 1) / kCombineThreads);
  const int64_t token = BlockX() / parts;
  const int64_t column = static_cast<int64_t>(BlockX() % parts) * kCombineThreads + ThreadX();
  if (column >= args.hidden) return;
  const int32_t* positions = all.plan.position + token * args.slots;
  const float* weights = args.weights + token * args.slots;
  float total = 0;
  for (int64_t first = 0; first < args.slots; first += kTogether) {
    int32_t position[kTogether];
    float weight[kTogether], value[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const bool inside = first + i < args.slots;
      position[i] = inside ? positions[first + i] : -1;
      weight[i] = inside ? weights[first + i] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      value[i] = position[i] < 0 ? 0.0f : args.sums[position[i] * args.hidden + column];
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (position[i] >= 0) total += weight[i] * value[i];
    }
  }
  WriteOne(args.y, args.io_type, token * args.hidden + column, total);
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
