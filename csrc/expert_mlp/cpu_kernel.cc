// Experts in two passes over weight rows, with the tokens grouped by expert so that each chosen
// expert's weights are read once: first the gated inner activations of every (token, slot), then
// the down projection. A task of the second pass owns a range of output columns for all tokens, so
// it can add up the slots in order without any exchange between threads.
#include "expert_mlp/cpu_kernel.h"

#include "common/bfloat16.h"
#include "common/dot_block.h"
#include "common/scratch.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {
namespace {

constexpr int64_t kMaxRows = 128;     // (token, slot) pairs a tile of work.
constexpr int64_t kInnerBlock = 32;   // Gate rows (and as many up rows) a task.
constexpr int64_t kMaxOutBlock = 64;  // Output columns a task.
// Sums of one second-pass task, in f32, should stay near the second-level cache.
constexpr int64_t kSumBytes = 512 * 1024;

// The chosen experts and the pairs of each, in order of the pair number token * slots + slot.
struct Groups {
  int64_t count;
  int64_t pairs;
  int32_t* expert;  // (count)
  int64_t* start;   // (count + 1) into order
  int64_t* order;   // (pairs) pair numbers
};

Groups GroupByExpert(const ExpertMlpArgs& args) {
  const int64_t all = args.tokens * args.slots;
  Carver size(nullptr);
  size.Take<int64_t>(args.experts + 1);
  size.Take<int32_t>(args.experts);
  size.Take<int64_t>(args.experts + 1);
  size.Take<int64_t>(all);
  Carver carver(Scratch(kCallScratch, size.used()));
  int64_t* place = carver.Take<int64_t>(args.experts + 1);
  Groups g = {};
  g.expert = carver.Take<int32_t>(args.experts);
  g.start = carver.Take<int64_t>(args.experts + 1);
  g.order = carver.Take<int64_t>(all);
  for (int64_t e = 0; e <= args.experts; ++e) place[e] = 0;
  for (int64_t p = 0; p < all; ++p) {
    if (args.ids[p] >= 0 && args.ids[p] < args.experts) ++place[args.ids[p]];
  }
  for (int64_t e = 0; e < args.experts; ++e) {
    const int64_t n = place[e];
    place[e] = g.pairs;
    if (n == 0) continue;
    g.expert[g.count] = static_cast<int32_t>(e);
    g.start[g.count] = g.pairs;
    ++g.count;
    g.pairs += n;
  }
  g.start[g.count] = g.pairs;
  for (int64_t p = 0; p < all; ++p) {
    if (args.ids[p] >= 0 && args.ids[p] < args.experts) g.order[place[args.ids[p]]++] = p;
  }
  return g;
}

// gate -> silu(gate) * up, tile by tile of n floats.
template <int n>
MLA_INLINE void Gate(float* gate, const float* up) {
  for (int i = 0; i < n; i += kLanes < n ? kLanes : n) {
    if (kLanes <= n) {
      const vf g = Load(gate + i);
      Store(gate + i, g / (1.0f + Exp(-g)) * Load(up + i));
    } else {
      const vf g = LoadPart(gate, n);
      StorePart(gate, g / (1.0f + Exp(-g)) * LoadPart(up, n), n);
    }
  }
}

// First pass for one expert: inner columns [c0, c0 + cols) of pairs x[0..rows).
template <int M, int N, typename T>
void GateUp(const T* const* x, T* const* inner, int64_t rows, const T* gate, const T* up,
            int64_t hidden, int64_t c0, int64_t cols) {
  alignas(64) float g[M * N], u[M * N];
  for (int64_t n = 0; n < cols; n += N) {
    const T* gw[N];
    const T* uw[N];
    for (int j = 0; j < N; ++j) {
      const int64_t row = c0 + Min(n + j, cols - 1);
      gw[j] = gate + row * hidden;
      uw[j] = up + row * hidden;
    }
    for (int64_t m = 0; m < rows; m += M) {
      const T* xs[M];
      for (int i = 0; i < M; ++i) xs[i] = x[Min(m + i, rows - 1)];
      DotTile<M, N>(xs, gw, hidden, g);
      DotTile<M, N>(xs, uw, hidden, u);
      Gate<M * N>(g, u);
      for (int i = 0; i < M && m + i < rows; ++i) {
        for (int j = 0; j < N && n + j < cols; ++j) {
          StoreOne(inner[m + i] + c0 + n + j, g[i * N + j]);
        }
      }
    }
  }
}

template <typename T>
struct Experts {
  const ExpertMlpArgs& args;

  const T* X(int64_t pair) const {
    return static_cast<const T*>(args.x) + pair / args.slots * args.hidden;
  }

  void FirstPass(const Groups& g, T* inner, const Executor& executor, double cost) const {
    const int64_t blocks = CeilDiv(args.inner, kInnerBlock);
    ForEach(executor, g.count * blocks, cost, [&](int64_t task) {
      const int64_t group = task / blocks;
      const int64_t c0 = task % blocks * kInnerBlock;
      const int64_t cols = Min(kInnerBlock, args.inner - c0);
      const T* gate = static_cast<const T*>(args.gate_up) +
                      int64_t{g.expert[group]} * 2 * args.inner * args.hidden;
      const T* up = gate + args.inner * args.hidden;
      for (int64_t p0 = g.start[group]; p0 < g.start[group + 1]; p0 += kMaxRows) {
        const int64_t rows = Min(kMaxRows, g.start[group + 1] - p0);
        const T* x[kMaxRows];
        T* out[kMaxRows];
        for (int64_t i = 0; i < rows; ++i) {
          x[i] = X(g.order[p0 + i]);
          out[i] = inner + g.order[p0 + i] * args.inner;
        }
        if (rows == 1) {
          GateUp<1, 4>(x, out, rows, gate, up, args.hidden, c0, cols);
        } else {
          GateUp<kTileM, kTileN>(x, out, rows, gate, up, args.hidden, c0, cols);
        }
      }
    });
  }

  // Output columns [c0, c0 + cols) of every token. sums: (tokens * slots, cols).
  void SecondPassTask(const Groups& g, const T* inner, int64_t c0, int64_t cols,
                      float* sums) const {
    for (int64_t group = 0; group < g.count; ++group) {
      const T* down = static_cast<const T*>(args.down) +
                      (int64_t{g.expert[group]} * args.hidden + c0) * args.inner;
      const T* w[kMaxOutBlock];
      for (int64_t j = 0; j < cols; ++j) w[j] = down + j * args.inner;
      for (int64_t p0 = g.start[group]; p0 < g.start[group + 1]; p0 += kMaxRows) {
        const int64_t rows = Min(kMaxRows, g.start[group + 1] - p0);
        const T* x[kMaxRows];
        for (int64_t i = 0; i < rows; ++i) x[i] = inner + g.order[p0 + i] * args.inner;
        DotBlock(x, rows, w, cols, args.inner,
                 [&](int64_t m, int mv, int64_t n, int nv, const float* tile, int ld) {
                   for (int i = 0; i < mv; ++i) {
                     float* row = sums + g.order[p0 + m + i] * cols + n;
                     for (int j = 0; j < nv; ++j) row[j] = tile[i * ld + j];
                   }
                 });
      }
    }
    for (int64_t t = 0; t < args.tokens; ++t) {
      float total[kMaxOutBlock] = {};
      for (int64_t s = 0; s < args.slots; ++s) {
        const int64_t pair = t * args.slots + s;
        if (args.ids[pair] < 0 || args.ids[pair] >= args.experts) continue;
        const float weight = args.weights[pair];
        const float* row = sums + pair * cols;
        for (int64_t j = 0; j < cols; ++j) total[j] += weight * row[j];
      }
      RowFromFloat(total, cols, static_cast<T*>(args.y) + t * args.hidden + c0);
    }
  }

  void Run(const Executor& executor) const {
    const Groups g = GroupByExpert(args);
    const int64_t all = args.tokens * args.slots;
    const double weights = static_cast<double>(args.inner) * static_cast<double>(args.hidden);
    const double cost = weights * (static_cast<double>(g.count) * sizeof(T) / 20.0 +
                                   static_cast<double>(g.pairs) / 100.0);
    T* inner =
        static_cast<T*>(Scratch(kCallScratch2, all * args.inner * static_cast<int64_t>(sizeof(T))));
    FirstPass(g, inner, executor, 2 * cost);
    int64_t block = Clamp(kSumBytes / Max64(1, all * 4), 16, kMaxOutBlock) / 4 * 4;
    block = Clamp(CeilDiv(args.hidden, 4 * executor.Threads()), 4, block);
    ForEach(executor, CeilDiv(args.hidden, block), cost + static_cast<double>(args.hidden),
            [&](int64_t task) {
              const int64_t cols = Min(block, args.hidden - task * block);
              auto* sums = static_cast<float*>(Scratch(kTaskScratch, all * cols * 4));
              SecondPassTask(g, inner, task * block, cols, sums);
            });
  }
};

}  // namespace

void ExpertMlp(const ExpertMlpArgs& args, const Executor& executor) {
  if (args.tokens == 0 || args.hidden == 0) return;
  if (args.io_type == DType::kF32) {
    Experts<float>{args}.Run(executor);
  } else {
    Experts<bf16>{args}.Run(executor);
  }
}

}  // namespace MLA_ISA
}  // namespace mla
