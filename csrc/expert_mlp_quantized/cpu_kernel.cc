// Experts whose weights are decoded next to the core.
#include "common/quantized_dot.h"
#include "expert_mlp/experts.h"
#include "expert_mlp_quantized/kernel.h"

namespace mla {
namespace MLA_ISA {
namespace {

struct QuantizedWeights {
  QuantizedMatrix first;

  double Bytes() const { return first.code == Code::kE4M3 ? 1.0 : 0.5; }

  template <typename T, typename Sink>
  void Dot(const T* const* x, int64_t rows, int64_t expert, int64_t row0, int64_t cols,
           const Sink& sink) const {
    QuantizedDotBlock(x, rows, first.At(expert), row0, cols, sink);
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
