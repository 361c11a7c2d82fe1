// Which weights multiply activations by a quantised matrix.
#ifndef MLA_COMMON_QUANTIZED_WEIGHTS_H_
#define MLA_COMMON_QUANTIZED_WEIGHTS_H_

#include "common/fixed_product.h"
#include "common/float_product.h"
#include "common/quantized_product.h"
#include "common/vnni_product.h"

namespace mla {
namespace MLA_ISA {

// How they want activations of type X.
template <typename X>
inline Packing PackingFor(const QuantizedMatrix& m) {
  if (sizeof(X) == 2 && kVnniProducts && m.Vnni()) return {Order::kPlain, false, true};
#if defined(__AVX512BF16__)
  if (sizeof(X) == 2) {
    if (Mxfp4Weights::Takes(m)) return {Order::kByNibble, true};
    if (!m.Mxfp4()) return {Order::kPlain, CodeWeights<Code::kE4M3>::TakesLanes(m)};
  }
#endif
  if constexpr (sizeof(typename ProductType<X, X>::T) == 4) {
    if (TakesNibbles(m)) return {Order::kByNibble, true};
    if (TakesBytes(m)) return {Order::kPlainPairs, true};
  }
  return {Order::kPlain, true};
}

// Calls f(weights) with what multiplies activations of type X by m.
template <typename X, typename F>
inline void WithWeights(const QuantizedMatrix& m, const F& f) {
  if constexpr (sizeof(X) == 2 && kVnniProducts) {
    if (m.Vnni()) return f(VnniWeights{m});
  }
#if defined(__AVX512BF16__)
  if constexpr (sizeof(X) == 2) {
    if (Mxfp4Weights::Takes(m)) {
      f(Mxfp4Weights{m});
    } else if (m.Mxfp4()) {
      f(DecodedWeights<bf16>{m});
    } else if (m.code == Code::kE4M3) {
      f(CodeWeights<Code::kE4M3>{m});
    } else if (m.code == Code::kE4M3Fnuz) {
      f(CodeWeights<Code::kE4M3Fnuz>{m});
    } else {
      f(CodeWeights<Code::kInt4>{m});
    }
    return;
  }
#endif
  if constexpr (sizeof(typename ProductType<X, X>::T) == 4) {
#if defined(__AVX2__)
    if (FloatWeights<Code::kE2M1>::Takes(m)) return f(FloatWeights<Code::kE2M1>{m});
    if (FloatWeights<Code::kInt4>::Takes(m)) return f(FloatWeights<Code::kInt4>{m});
    if (FloatWeights<Code::kE4M3>::Takes(m)) return f(FloatWeights<Code::kE4M3>{m});
    if (FloatWeights<Code::kE4M3Fnuz>::Takes(m)) return f(FloatWeights<Code::kE4M3Fnuz>{m});
#endif
    f(DecodedWeights<float>{m});
  }
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_QUANTIZED_WEIGHTS_H_
