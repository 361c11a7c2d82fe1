// Gated MLP of the chosen experts, with quantised weights.
#ifndef MLA_EXPERT_MLP_QUANTIZED_KERNEL_H_
#define MLA_EXPERT_MLP_QUANTIZED_KERNEL_H_

#include "common/quantized_matrix.h"
#include "expert_mlp/kernel.h"

namespace mla {

struct ExpertMlpQuantizedArgs {
  ExpertMlpArgs base;       // gate_up and down are unused.
  QuantizedMatrix gate_up;  // The first of a stack of (2 * inner, hidden), gate rows first.
  QuantizedMatrix down;     // The first of a stack of (hidden, inner).
};

MLA_DECLARE_KERNEL(ExpertMlpQuantized, ExpertMlpQuantizedArgs)

}  // namespace mla

#endif  // MLA_EXPERT_MLP_QUANTIZED_KERNEL_H_
