// Experts whose weights are decoded next to the core.
#include "common/quantized_weights.h"
#include "expert_mlp/experts.h"
#include "expert_mlp_quantized/kernel.h"

namespace mla {
namespace MLA_ISA {
namespace {

struct QuantizedWeights {
  QuantizedMatrix first;

  double Bytes() const { return first.ByteCodes() ? 1.0 : 0.5; }

  template <typename X>
  Packing PackingOf() const {
    return PackingFor<X>(first);
  }
  template <typename X, typename F>
  void With(int64_t expert, const F& f) const {
    const QuantizedMatrix m = first.At(expert);
    WithWeights<X>(m, f);
  }
};

}  // namespace

void ExpertMlpQuantized(const ExpertMlpQuantizedArgs& args, const Executor& executor) {
  if (args.base.tokens == 0 || args.base.hidden == 0) return;
  const QuantizedWeights gate_up = {args.gate_up};
  const QuantizedWeights down = {args.down};
  if (args.base.io_type == DType::kF32) {
    Experts<float, QuantizedWeights>{args.base, gate_up, down}.Run(executor);
  } else {
    Experts<bf16, QuantizedWeights>{args.base, gate_up, down}.Run(executor);
  }
}

}  // namespace MLA_ISA
}  // namespace mla
