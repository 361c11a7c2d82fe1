// Dense layer over a quantised matrix: blocks of weight rows times blocks of tokens.
#include "common/bfloat16.h"
#include "common/quantized_dot.h"
#include "common/tasks.h"
#include "linear_quantized/kernel.h"

namespace mla {
namespace MLA_ISA {
namespace {

constexpr int64_t kMaxRows = 512;  // Tokens a task: a decoded panel should serve many.
constexpr int64_t kMaxCols = 128;  // Weight rows a task.

template <typename X, typename Y>
void Run(const LinearQuantizedArgs& args, const Executor& executor) {
  const QuantizedMatrix& w = args.w;
  const int64_t cols = Max64(4, Min(kMaxCols, CeilDiv(w.n, 4 * executor.Threads()))) / 4 * 4;
  const int64_t n_blocks = CeilDiv(w.n, cols);
  const int64_t m_blocks = CeilDiv(args.m, kMaxRows);
  const double work = static_cast<double>(w.n) * static_cast<double>(w.k);
  const double cost = work * (0.05 + static_cast<double>(args.m) / 100.0);
  ForEach(executor, n_blocks * m_blocks, cost, [&](int64_t task) {
    const int64_t n0 = task / m_blocks * cols;
    const int64_t m0 = task % m_blocks * kMaxRows;
    const int64_t nc = Min(cols, w.n - n0);
    const int64_t mc = Min(kMaxRows, args.m - m0);
    const X* x[kMaxRows];
    for (int64_t i = 0; i < mc; ++i) x[i] = static_cast<const X*>(args.x) + (m0 + i) * w.k;
    float bias[kMaxCols] = {};
    if (args.bias != nullptr) ReadRow(args.bias, args.bias_type, n0, nc, bias);
    QuantizedDotBlock(x, mc, w, n0, nc,
                      [&](int64_t m, int mv, int64_t n, int nv, const float* tile, int ld) {
                        for (int i = 0; i < mv; ++i) {
                          Y* y = static_cast<Y*>(args.y) + (m0 + m + i) * w.n + n0 + n;
                          for (int j = 0; j < nv; ++j)
                            StoreOne(y + j, tile[i * ld + j] + bias[n + j]);
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
