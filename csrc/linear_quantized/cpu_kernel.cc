// Dense layer over a quantised matrix: blocks of weight rows times blocks of tokens.
#include "common/bfloat16.h"
#include "common/product_blocks.h"
#include "common/quantized_weights.h"
#include "linear_quantized/kernel.h"

namespace mla {
namespace MLA_ISA {
namespace {

template <typename X, typename Y>
void Run(const LinearQuantizedArgs& args, const Executor& executor) {
  const QuantizedMatrix& w = args.w;
  const double bytes = static_cast<double>(w.RowBytes()) / static_cast<double>(Max64(1, w.k));
  WithWeights<X>(w, [&](const auto& weights) {
    ProductBlocks<X>(static_cast<const X*>(args.x), args.m, w.k, PackingFor<X>(w), weights, w.n,
                     bytes, executor,
                     [&](int64_t m, int mv, int64_t n, int nv, const float* tile, int ld) {
                       Y* y = static_cast<Y*>(args.y) + m * w.n + n;
                       if (args.bias == nullptr) return StoreTile(tile, ld, mv, nv, y, w.n);
                       float bias[kMaxTileCols] = {};
                       ReadRow(args.bias, args.bias_type, n, nv, bias);
                       for (int i = 0; i < mv; ++i) {
                         for (int j = 0; j < nv; ++j) {
                           StoreOne(y + i * w.n + j, tile[i * ld + j] + bias[j]);
                         }
                       }
                     });
  });
}

}  // namespace

void LinearQuantized(const LinearQuantizedArgs& args, const Executor& executor) {
  if (args.m == 0 || args.w.n == 0) return;
  if (args.x_type == DType::kF32) {
    Run<float, float>(args, executor);
  } else if (args.y_type == DType::kF32) {
    Run<bf16, float>(args, executor);
  } else {
    Run<bf16, bf16>(args, executor);
  }
}

}  // namespace MLA_ISA
}  // namespace mla
