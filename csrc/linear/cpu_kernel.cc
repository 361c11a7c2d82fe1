// Dense layer: blocks of weight rows times blocks of tokens. One token reads every weight once, at
// the speed of memory.
#include "linear/cpu_kernel.h"

#include "common/bfloat16.h"
#include "common/product.h"
#include "common/product_blocks.h"
#include "common/simd.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {
namespace {

float Bias(const LinearArgs& args, int64_t n) {
  if (args.bias == nullptr) return 0.0f;
  if (args.bias_type == DType::kF32) return static_cast<const float*>(args.bias)[n];
  return ToFloat(static_cast<const bf16*>(args.bias)[n]);
}

template <typename X, typename W, typename Y>
void Run(const LinearArgs& args, const Executor& executor) {
  const PlainWeights<X, W> weights = {static_cast<const W*>(args.w), args.k};
  ProductBlocks<X>(static_cast<const X*>(args.x), args.m, args.k, {Order::kPlain, true}, weights,
                   args.n, sizeof(W), executor,
                   [&](int64_t m, int mv, int64_t n, int nv, const float* tile, int ld) {
                     Y* y = static_cast<Y*>(args.y) + m * args.n + n;
                     if (args.bias == nullptr) return StoreTile(tile, ld, mv, nv, y, args.n);
                     for (int i = 0; i < mv; ++i) {
                       for (int j = 0; j < nv; ++j) {
                         StoreOne(y + i * args.n + j, tile[i * ld + j] + Bias(args, n + j));
                       }
                     }
                   });
}

}  // namespace

void Linear(const LinearArgs& args, const Executor& executor) {
  if (args.m == 0 || args.n == 0) return;
  if (args.x_type == DType::kF32 && args.w_type == DType::kF32) {
    Run<float, float, float>(args, executor);
  } else if (args.x_type == DType::kF32) {
    Run<float, bf16, float>(args, executor);
  } else if (args.y_type == DType::kF32) {
    Run<bf16, bf16, float>(args, executor);
  } else {
    Run<bf16, bf16, bf16>(args, executor);
  }
}

}  // namespace MLA_ISA
}  // namespace mla
