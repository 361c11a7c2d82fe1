// Gated MLP of the experts that a router chose.
#ifndef MLA_EXPERT_MLP_KERNEL_H_
#define MLA_EXPERT_MLP_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace mla {

// y[t] = sum over slots s, in order, of weights[t, s] * down_e(silu(gate_e x[t]) * (up_e x[t])) for
// e = ids[t, s]. The product in the brackets is rounded to the io type; the sum is f32 and rounded
// once. An id outside [0, experts) adds nothing.
struct ExpertMlpArgs {
  const void* x;         // (tokens, hidden)
  const void* gate_up;   // (experts, 2 * inner, hidden), gate rows first
  const void* down;      // (experts, hidden, inner)
  const int32_t* ids;    // (tokens, slots)
  const float* weights;  // (tokens, slots)
  void* y;               // (tokens, hidden)
  DType io_type;
  int64_t tokens, slots, experts, hidden, inner;
  // Scratch of a GPU.
  int32_t* plan;  // Of PlanSize.
  void* gated;    // (tokens * slots, inner), in order of the experts
  float* sums;    // (tokens * slots, hidden), likewise
};

// Tiles of tokens that a GPU plans for at most: they have at least 8, but for the last of an
// expert.
inline int64_t ExpertTiles(const ExpertMlpArgs& args) {
  const int64_t pairs = args.tokens * args.slots;
  return pairs / 8 + (args.experts < pairs ? args.experts : pairs);
}
// Where experts start, both products' tiles, the order of the pairs and its inverse.
inline int64_t PlanSize(const ExpertMlpArgs& args) {
  return args.experts + 1 + 4 * ExpertTiles(args) + 2 * args.tokens * args.slots;
}

MLA_DECLARE_KERNEL(ExpertMlp, ExpertMlpArgs)

}  // namespace mla

#endif  // MLA_EXPERT_MLP_KERNEL_H_
