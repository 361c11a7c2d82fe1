// One head times a block of tokens a task. Where the summed axis is that of the groups, products
// take the codes themselves; where it runs across them, the head's rows are decoded first.
#include "absorb_quantized/kernel.h"
#include "common/axpy_tile.h"
#include "common/bfloat16.h"
#include "common/quantized_weights.h"
#include "common/scratch.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {
namespace {

constexpr int64_t kMaxTokens = 64;

// Rows [row, row + count) into `dst`, for products across the groups. Returns whether their columns
// are in the order by nibble, in which MXFP4 decodes several times as fast. `work`: w.k elements.
inline bool DecodeAcross(const QuantizedMatrix& w, int64_t row, int64_t count, bf16* work,
                         float* dst) {
  for (int64_t d = 0; d < count; ++d) DecodeRow(w, row + d, 0, w.k, work, dst + d * w.k);
  return false;
}
inline bool DecodeAcross(const QuantizedMatrix& w, int64_t row, int64_t count, bf16*, bf16* dst) {
#if defined(__AVX512BF16__)
  if (Mxfp4Weights::Takes(w)) {
    const Mxfp4Weights weights = {w};
    const auto rows = weights.RowsAt(row, count);
    if (rows.Whole() == w.k) {
      constexpr int64_t kAhead = 4;
      const Mxfp4Constants constants;
      for (int64_t d = 0; d < count; ++d) {
        for (int64_t k = 0; k < w.k; k += kMatrixColumns) {
          rows.Ask(d + kAhead, k);
          rows.FillWhole(d, k, constants, dst + d * w.k + k);
        }
      }
      return true;
    }
  }
#endif
  for (int64_t d = 0; d < count; ++d) DecodeRow(w, row + d, 0, w.k, dst + d * w.k);
  return false;
}

// y[t, h, :] from sums of weight rows, held as W.
template <typename W, typename T>
void ContractRows(const AbsorbQuantizedArgs& args, int64_t h, const T* const* x, int64_t t0,
                  int64_t count) {
  const int64_t rank = args.w.k;
  bf16* work;
  W* values;
  const W** w;
  float *acc, *ordered;
  const auto carve = [&](void* base) {
    Carver carver(base);
    work = carver.Take<bf16>(rank);
    values = carver.Take<W>(args.rows_used * rank);
    w = carver.Take<const W*>(args.rows_used);
    acc = carver.Take<float>(kManyRows * rank);
    ordered = carver.Take<float>(rank);
    return carver.used();
  };
  carve(Scratch(kTaskScratch, carve(nullptr)));
  const bool by_nibble =
      DecodeAcross(args.w, h * args.w_rows + args.row_offset, args.rows_used, work, values);
  for (int64_t d = 0; d < args.rows_used; ++d) w[d] = values + d * rank;
  T* y = static_cast<T*>(args.y);
  SumRows(x, count, w, args.rows_used, rank, acc, [&](int64_t i, int rows) {
    for (int64_t j = 0; j < rows; ++j) {
      const float* sums = acc + j * rank;
      if (by_nibble) {
        FromNibbleOrder(sums, rank, ordered);
        sums = ordered;
      }
      RowFromFloat(sums, rank, y + ((t0 + i + j) * args.heads + h) * rank);
    }
  });
}

template <typename T>
void Run(const AbsorbQuantizedArgs& args, const Executor& executor) {
  const int64_t blocks = CeilDiv(args.tokens, kMaxTokens);
  const double work = static_cast<double>(args.heads) * static_cast<double>(args.rows_used) *
                      static_cast<double>(args.w.k);
  const double cost = work * (0.1 + static_cast<double>(args.tokens) / 100.0);
  ForEach(executor, args.heads * blocks, cost, [&](int64_t task) {
    const int64_t h = task / blocks;
    const int64_t t0 = task % blocks * kMaxTokens;
    const int64_t count = Min(kMaxTokens, args.tokens - t0);
    const T* x[kMaxTokens];
    for (int64_t i = 0; i < count; ++i) {
      x[i] = static_cast<const T*>(args.x) + ((t0 + i) * args.heads + h) * args.x_width +
             args.x_offset;
    }
    if (args.contract_columns) {
      T* y = static_cast<T*>(args.y);
      using C = typename ProductType<T, T>::T;
      const PackedRows<C> packed = PackHere<C>(x, count, args.w.k, PackingFor<T>(args.w));
      WithWeights<T>(args.w, [&](const auto& weights) {
        Product(packed, 0, packed.Tiles(), weights, h * args.w_rows + args.row_offset,
                args.rows_used,
                [&](int64_t m, int mv, int64_t n, int nv, const float* tile, int ld) {
                  for (int i = 0; i < mv; ++i) {
                    T* row = y + ((t0 + m + i) * args.heads + h) * args.rows_used + n;
                    for (int j = 0; j < nv; ++j) StoreOne(row + j, tile[i * ld + j]);
                  }
                });
      });
    } else if (args.w.code == Code::kE2M1) {
      ContractRows<T>(args, h, x, t0, count);
    } else {
      ContractRows<float>(args, h, x, t0, count);
    }
  });
}

}  // namespace

void AbsorbQuantized(const AbsorbQuantizedArgs& args, const Executor& executor) {
  if (args.tokens == 0 || args.heads == 0) return;
  if (args.io_type == DType::kF32) {
    Run<float>(args, executor);
  } else {
    Run<bf16>(args, executor);
  }
}

}  // namespace MLA_ISA
}  // namespace mla
