// Experts whose weights are stored as they are multiplied.
#include "common/product.h"
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

  template <typename X>
  Packing PackingOf() const {
    return {Order::kPlain, true};
  }
  template <typename X, typename F>
  void With(int64_t expert, const F& f) const {
    f(PlainWeights<T, T>{data + expert * n * k, k});
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
