// Norm of rows: a block of rows a task, f32 inside, one rounding on the way out.
#include "common/bfloat16.h"
#include "common/denormals.h"
#include "common/norm.h"
#include "common/scratch.h"
#include "common/tasks.h"
#include "rmsnorm/kernel.h"

namespace mla {
namespace MLA_ISA {

void RmsNorm(const RmsNormArgs& args, const Executor& executor) {
  const int64_t n = args.n;
  if (n == 0) return;
  constexpr int64_t kRows = 8;
  const double cost = static_cast<double>(args.rows) * static_cast<double>(n) * 0.25;
  ForEach(executor, CeilDiv(args.rows, kRows), cost, [&](int64_t task) {
    const KeepDenormals guard;
    auto* weight = static_cast<float*>(Scratch(kTaskScratch, (3 * n + 64) * 4));
    float* v = weight + n;
    float* r = v + n;
    ReadRow(args.weight, args.weight_type, 0, n, weight);
    const int64_t end = Min(args.rows, (task + 1) * kRows);
    for (int64_t row = task * kRows; row < end; ++row) {
      ReadRow(args.x, args.io_type, row * args.width + args.offset, n, v);
      if (args.residual != nullptr) {
        ReadRow(args.residual, args.io_type, row * n, n, r);
        for (int64_t i = 0; i < n; ++i) v[i] += r[i];
        WriteRow(args.sum, args.io_type, row * n, n, v);
      }
      ScaleRow(v, InverseRms(v, n, args.eps), weight, n);
      WriteRow(args.y, args.io_type, row * n, n, v);
    }
  });
}

}  // namespace MLA_ISA
}  // namespace mla
