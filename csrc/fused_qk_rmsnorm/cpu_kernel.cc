// Both norms of a block of rows are one task: f32 inside, one rounding on the way out.
#include "common/bfloat16.h"
#include "common/denormals.h"
#include "common/norm.h"
#include "common/scratch.h"
#include "common/tasks.h"
#include "fused_qk_rmsnorm/kernel.h"

namespace mla {
namespace MLA_ISA {
namespace {

void NormRows(const NormedRows& part, DType io_type, int64_t first, int64_t end) {
  const int64_t n = part.n;
  if (n == 0) return;
  auto* weight = static_cast<float*>(Scratch(kTaskScratch, (2 * n + 64) * 4));
  float* v = weight + n;
  ReadRow(part.weight, part.weight_type, 0, n, weight);
  for (int64_t row = first; row < end; ++row) {
    ReadRow(part.values, io_type, row * part.width, n, v);
    ScaleRow(v, InverseRms(v, n, part.eps), weight, n);
    WriteRow(part.values, io_type, row * part.width, n, v);
  }
}

}  // namespace

void FusedQkRmsNorm(const FusedQkRmsNormArgs& args, const Executor& executor) {
  constexpr int64_t kRows = 8;
  const double cost =
      static_cast<double>(args.rows) * static_cast<double>(args.q.n + args.kv.n) * 0.25;
  ForEach(executor, CeilDiv(args.rows, kRows), cost, [&](int64_t task) {
    const KeepDenormals guard;
    const int64_t first = task * kRows, end = Min(args.rows, first + kRows);
    NormRows(args.q, args.io_type, first, end);
    NormRows(args.kv, args.io_type, first, end);
  });
}

}  // namespace MLA_ISA
}  // namespace mla
