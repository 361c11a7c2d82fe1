// Dense layer by tiles of dot products.
//
// Work is cut into blocks of weight rows that stay in the second-level cache, times blocks of
// tokens. One token reads every weight once, at the speed of memory.
#include "linear/cpu_kernel.h"

#include "common/bfloat16.h"
#include "common/dot_block.h"
#include "common/simd.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {
namespace {

constexpr int64_t kMaxRows = 128;  // Tokens a task.
constexpr int64_t kMaxCols = 128;  // Weight rows a task.

float Bias(const LinearArgs& args, int64_t n) {
  if (args.bias == nullptr) return 0.0f;
  if (args.bias_type == DType::kF32) return static_cast<const float*>(args.bias)[n];
  return ToFloat(static_cast<const bf16*>(args.bias)[n]);
}

template <typename Y>
void StoreTile(const LinearArgs& args, int64_t m0, int mv, int64_t n0, int nv, const float* tile,
               int ld) {
  float bias[4] = {};
  for (int j = 0; j < nv; ++j) bias[j] = Bias(args, n0 + j);
  for (int i = 0; i < mv; ++i) {
    Y* y = static_cast<Y*>(args.y) + (m0 + i) * args.n + n0;
    const float* row = tile + i * ld;
    if (args.bias != nullptr) {
      for (int j = 0; j < nv; ++j) StoreOne(y + j, row[j] + bias[j]);
    } else if (nv == kTileN) {
      for (int j = 0; j < kTileN; ++j) StoreOne(y + j, row[j]);
    } else {
      for (int j = 0; j < nv; ++j) StoreOne(y + j, row[j]);
    }
  }
}

template <typename X, typename W, typename Y>
void Run(const LinearArgs& args, const Executor& executor) {
  // Enough blocks for every thread, yet whole tiles.
  const int64_t cols = Max64(4, Min(kMaxCols, CeilDiv(args.n, 4 * executor.Threads()))) / 4 * 4;
  const int64_t n_blocks = CeilDiv(args.n, cols);
  const int64_t m_blocks = CeilDiv(args.m, kMaxRows);
  const double work = static_cast<double>(args.n) * static_cast<double>(args.k);
  const double cost = work * (sizeof(W) / 20.0 + static_cast<double>(args.m) / 100.0);
  ForEach(executor, n_blocks * m_blocks, cost, [&](int64_t task) {
    const int64_t n0 = task / m_blocks * cols;
    const int64_t m0 = task % m_blocks * kMaxRows;
    const int64_t nc = Min(cols, args.n - n0);
    const int64_t mc = Min(kMaxRows, args.m - m0);
    const X* x[kMaxRows];
    const W* w[kMaxCols];
    for (int64_t i = 0; i < mc; ++i) x[i] = static_cast<const X*>(args.x) + (m0 + i) * args.k;
    for (int64_t j = 0; j < nc; ++j) w[j] = static_cast<const W*>(args.w) + (n0 + j) * args.k;
    DotBlock(x, mc, w, nc, args.k,
             [&](int64_t m, int mv, int64_t n, int nv, const float* tile, int ld) {
               StoreTile<Y>(args, m0 + m, mv, n0 + n, nv, tile, ld);
             });
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
