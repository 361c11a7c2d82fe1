// Experts whose weights are stored as they are multiplied.
#include "common/dot_block.h"
#include "expert_mlp/experts.h"
#include "expert_mlp/kernel.h"

namespace mla {
namespace MLA_ISA {
namespace {

template <typename T>
struct DenseWeights {
  const T* data;  // (experts, n, k)
  int64_t n, k;

  static constexpr double Bytes() { return sizeof(T); }

  template <typename Sink>
  void Dot(const T* const* x, int64_t rows, int64_t expert, int64_t row0, int64_t cols,
           const Sink& sink) const {
    const T* w[kMaxOutBlock] = {};
    for (int64_t j = 0; j < cols; ++j) w[j] = data + (expert * n + row0 + j) * k;
    DotBlock(x, rows, w, cols, k, sink);
  }
};

template <typename T>
void Run(const ExpertMlpArgs& args, const Executor& executor) {
  const DenseWeights<T> gate_up = {static_cast<const T*>(args.gate_up), 2 * args.inner,
                                   args.hidden};
  const DenseWeights<T> down = {static_cast<const T*>(args.down), args.hidden, args.inner};
  Experts<T, DenseWeights<T>>{args, gate_up, down}.Run(executor);
}

}  // namespace

void ExpertMlp(const ExpertMlpArgs& args, const Executor& executor) {
  if (args.tokens == 0 || args.hidden == 0) return;
  if (args.io_type == DType::kF32) {
    Run<float>(args, executor);
  } else {
    Run<bf16>(args, executor);
  }
}

}  // namespace MLA_ISA
}  // namespace mla
