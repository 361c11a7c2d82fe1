// Tokens and the experts that they were sent to, some of which do not exist.
#ifndef MLA_TESTS_CSRC_EXPERT_BATCH_H_
#define MLA_TESTS_CSRC_EXPERT_BATCH_H_

#include <string>
#include <vector>

#include "cases.h"
#include "expert_mlp/kernel.h"

namespace mla::test {

struct ExpertBatch {
  int64_t tokens, slots, experts, hidden, inner;

  std::string name() const {
    return std::to_string(tokens) + "x" + std::to_string(slots) + " of " + std::to_string(experts) +
           " " + std::to_string(hidden) + "x" + std::to_string(inner);
  }

  // All but the weights.
  ExpertMlpArgs Take(Memory& memory, DType io) const {
    const int32_t bad[] = {-1, kLowest, static_cast<int32_t>(experts), kHighest};
    std::vector<int32_t> ids;
    for (int32_t p = 0; p < tokens * slots; ++p) {
      // Most pairs go to the first expert, so that it has more than one tile of them.
      const int32_t expert = p % 4 == 1 ? p / 4 % static_cast<int32_t>(experts) : 0;
      ids.push_back(p % 11 == 7 ? bad[p / 11 % 4] : expert);
    }
    ExpertMlpArgs args = {};
    args.x = memory.Values(io, tokens * hidden);
    args.ids = memory.Copy(ids);
    args.weights = static_cast<float*>(memory.Values(DType::kF32, tokens * slots));
    args.y = memory.Result(io, tokens * hidden);
    args.io_type = io;
    args.tokens = tokens;
    args.slots = slots;
    args.experts = experts;
    args.hidden = hidden;
    args.inner = inner;
    return args;
  }
};

inline const std::vector<ExpertBatch>& ExpertBatches() {
  static const std::vector<ExpertBatch> batches = {
      {1, 1, 1, 2, 2},   {0, 2, 3, 4, 4},    {3, 0, 2, 6, 4},     {1, 3, 5, 70, 34},
      {5, 2, 4, 33, 31}, {9, 3, 2, 130, 70}, {190, 1, 3, 18, 38}, {70, 2, 3, 64, 224},
  };
  return batches;
}

}  // namespace mla::test

#endif  // MLA_TESTS_CSRC_EXPERT_BATCH_H_
