// One head times a block of tokens a task: a head's weights stay in the second-level cache.
#include "absorb/cpu_kernel.h"

#include "common/axpy_tile.h"
#include "common/bfloat16.h"
#include "common/product.h"
#include "common/scratch.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {
namespace {

constexpr int64_t kMaxTokens = 64;

// y[t, h, :] from sums of weight rows.
template <typename T>
void ContractRows(const AbsorbArgs& args, int64_t h, const T* const* x, const T* const* w,
                  int64_t t0, int64_t count, float* acc) {
  T* y = static_cast<T*>(args.y);
  SumRows(x, count, w, args.rows_used, args.rank, acc, [&](int64_t i, int rows) {
    for (int64_t j = 0; j < rows; ++j) {
      RowFromFloat(acc + j * args.rank, args.rank, y + ((t0 + i + j) * args.heads + h) * args.rank);
    }
  });
}

template <typename T>
void Run(const AbsorbArgs& args, const Executor& executor) {
  const int64_t blocks = CeilDiv(args.tokens, kMaxTokens);
  const double work = static_cast<double>(args.heads) * static_cast<double>(args.rows_used) *
                      static_cast<double>(args.rank);
  const double cost = work * (sizeof(T) / 20.0 + static_cast<double>(args.tokens) / 100.0);
  ForEach(executor, args.heads * blocks, cost, [&](int64_t task) {
    const int64_t h = task / blocks;
    const int64_t t0 = task % blocks * kMaxTokens;
    const int64_t count = Min(kMaxTokens, args.tokens - t0);
    Carver size(nullptr);
    size.Take<const T*>(args.rows_used);
    size.Take<float>(kManyRows * args.rank);
    Carver carver(Scratch(kTaskScratch, size.used()));
    const T** w = carver.Take<const T*>(args.rows_used);
    float* acc = carver.Take<float>(kManyRows * args.rank);
    const T* x[kMaxTokens];
    for (int64_t i = 0; i < count; ++i) {
      x[i] = static_cast<const T*>(args.x) + ((t0 + i) * args.heads + h) * args.x_width +
             args.x_offset;
    }
    const T* first =
        static_cast<const T*>(args.w) + (h * args.w_rows + args.row_offset) * args.rank;
    for (int64_t d = 0; d < args.rows_used; ++d) w[d] = first + d * args.rank;
    if (args.contract_columns) {
      T* y = static_cast<T*>(args.y);
      using C = typename ProductType<T, T>::T;
      const PackedRows<C> packed = PackHere<C>(x, count, args.rank, {Order::kPlain, true});
      const PlainWeights<T, T> weights = {first, args.rank};
      Product(packed, 0, packed.Tiles(), weights, 0, args.rows_used,
              [&](int64_t m, int mv, int64_t n, int nv, const float* tile, int ld) {
                for (int i = 0; i < mv; ++i) {
                  T* row = y + ((t0 + m + i) * args.heads + h) * args.rows_used + n;
                  for (int j = 0; j < nv; ++j) StoreOne(row + j, tile[i * ld + j]);
                }
              });
    } else {
      ContractRows(args, h, x, w, t0, count, acc);
    }
  });
}

}  // namespace

void Absorb(const AbsorbArgs& args, const Executor& executor) {
  if (args.tokens == 0 || args.heads == 0) return;
  if (args.io_type == DType::kF32) {
    Run<float>(args, executor);
  } else {
    Run<bf16>(args, executor);
  }
}

}  // namespace MLA_ISA
}  // namespace mla
