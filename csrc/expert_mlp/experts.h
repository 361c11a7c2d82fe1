// The gated MLP of chosen experts, for any way of storing their weights.
//
// Two passes over weight rows, with the tokens grouped by expert so that each chosen expert's
// weights are read once: first the gated inner activations of every (token, slot), then the down
// projections. Each token then adds up its slots in order.
#ifndef MLA_EXPERT_MLP_EXPERTS_H_
#define MLA_EXPERT_MLP_EXPERTS_H_

#include "common/bfloat16.h"
#include "common/packed_rows.h"
#include "common/product.h"
#include "common/scratch.h"
#include "common/tasks.h"
#include "expert_mlp/kernel.h"

namespace mla {
namespace MLA_ISA {

constexpr int64_t kMaxExpertRows = 384;  // (token, slot) pairs a turn of work.
// Gate rows (and as many up rows) a task, and output columns a task.
constexpr int64_t kInnerBlock = kMatrixTiles<bf16> ? 192 : 32;
constexpr int64_t kOutBlock = kMatrixTiles<bf16> ? 192 : 64;
// The pairs' down projections, in f32, may take this much; the output columns are taken in ranges.
constexpr int64_t kSumBytes = int64_t{64} << 20;

// The chosen experts and the pairs of each, in order of the pair number token * slots + slot.
struct Groups {
  int64_t count;
  int64_t pairs;
  int32_t* expert;  // (count)
  int64_t* start;   // (count + 1) into order
  int64_t* order;   // (pairs) pair numbers
};

inline Groups GroupByExpert(const ExpertMlpArgs& args) {
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

// gate[i] = silu(gate[i]) * up[i], n elements.
inline void Gate(float* gate, const float* up, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const vf g = Load(gate + i);
    Store(gate + i, g / (1.0f + Exp(-g)) * Load(up + i));
  }
  if (i < n) {
    const vf g = LoadPart(gate + i, n - i);
    StorePart(gate + i, g / (1.0f + Exp(-g)) * LoadPart(up + i, n - i), n - i);
  }
}

// The activations of every group, packed one group after the other.
template <typename C>
struct PackedGroups {
  C* data = nullptr;
  int64_t* offset = nullptr;  // (count): elements before each group.

  PackedGroups(int64_t columns, Packing how, const Groups* of)
      : k(columns), packing(how), groups(of) {}

  PackedRows<C> At(int64_t group) const { return Rows(group, data + offset[group]); }
  // Elements of all groups; sets the offsets, unless they are null.
  int64_t Place() const {
    int64_t before = 0;
    for (int64_t group = 0; group < groups->count; ++group) {
      if (offset != nullptr) offset[group] = before;
      const PackedRows<C> rows = Rows(group, nullptr);
      before += rows.Height() * rows.width;
    }
    return before;
  }

  const int64_t k;
  const Packing packing;
  const Groups* const groups;

 private:
  PackedRows<C> Rows(int64_t group, C* first) const {
    return PackedRows<C>::Of(first, groups->start[group + 1] - groups->start[group], k, packing);
  }
};

// Weights: `gate_up` and `down` with
//   With<T>(expert, f): calls f(weights) with the expert's, as Product takes them;
//   PackingOf<T>(): how they want their activations; Bytes(), of one weight.
template <typename T, typename Weights>
struct Experts {
  using C = typename ProductType<T, T>::T;

  const ExpertMlpArgs& args;
  const Weights gate_up;
  const Weights down;

  const T* X(int64_t pair) const {
    return static_cast<const T*>(args.x) + pair / args.slots * args.hidden;
  }

  // Packs the groups' rows, to which `row(pair)` points.
  template <typename Row>
  void PackGroups(const PackedGroups<C>& to, const Executor& executor, const Row& row) const {
    const Groups& g = *to.groups;
    ForEach(executor, g.count, PackCost(g.pairs, to.k), [&](int64_t group) {
      const PackedRows<C> packed = to.At(group);
      for (int64_t tile = 0; tile < packed.Tiles(); ++tile) {
        PackTile(packed, tile, to.k, to.packing.order,
                 [&](int64_t i) { return row(g.order[g.start[group] + i]); });
      }
    });
  }

  // Inner columns [c0, c0 + cols) of tiles [tile0, tile0 + tiles) of a group, into rows `inner`
  // of the group's pairs.
  void GateUp(const PackedRows<C>& x, int64_t tile0, int64_t tiles, const int64_t* pairs,
              int64_t expert, int64_t c0, int64_t cols, T* inner) const {
    auto* gate = static_cast<float*>(
        Scratch(kTaskScratch, 2 * kMaxExpertRows * kInnerBlock * int64_t{sizeof(float)}));
    float* up = gate + kMaxExpertRows * kInnerBlock;
    const int64_t row0 = x.At(tile0).row0;
    const auto keep = [&](float* to) {
      return [=](int64_t m, int mv, int64_t n, int nv, const float* tile, int ld) {
        for (int i = 0; i < mv; ++i) {
          float* row = to + (m - row0 + i) * kInnerBlock + n;
          for (int j = 0; j < nv; ++j) row[j] = tile[i * ld + j];
        }
      };
    };
    gate_up.template With<T>(expert, [&](const auto& weights) {
      Product(x, tile0, tiles, weights, c0, cols, keep(gate));
      Product(x, tile0, tiles, weights, args.inner + c0, cols, keep(up));
    });
    for (int64_t i = 0; i < Min(x.rows - row0, kMaxExpertRows); ++i) {
      Gate(gate + i * kInnerBlock, up + i * kInnerBlock, cols);
      RowFromFloat(gate + i * kInnerBlock, cols, inner + pairs[row0 + i] * args.inner + c0);
    }
  }

  void FirstPass(const Groups& g, const PackedGroups<C>& x, T* inner, const Executor& executor,
                 double cost) const {
    const int64_t blocks = CeilDiv(args.inner, kInnerBlock);
    ForEach(executor, g.count * blocks, cost, [&](int64_t task) {
      const int64_t group = task / blocks;
      const int64_t c0 = task % blocks * kInnerBlock;
      const int64_t cols = Min(kInnerBlock, args.inner - c0);
      const PackedRows<C> packed = x.At(group);
      const int64_t tiles = kMaxExpertRows / packed.TileRows();
      for (int64_t tile = 0; tile < packed.Tiles(); tile += tiles) {
        GateUp(packed, tile, Min(tiles, packed.Tiles() - tile), g.order + g.start[group],
               g.expert[group], c0, cols, inner);
      }
    });
  }

  // Down projections of every pair, output columns [c0, c0 + width), into sums (pairs, width).
  void SecondPass(const Groups& g, const PackedGroups<C>& inner, int64_t c0, int64_t width,
                  float* sums, const Executor& executor, double cost) const {
    const int64_t blocks = CeilDiv(width, kOutBlock);
    ForEach(executor, g.count * blocks, cost, [&](int64_t task) {
      const int64_t group = task / blocks;
      const int64_t from = task % blocks * kOutBlock;
      const PackedRows<C> packed = inner.At(group);
      const int64_t* pairs = g.order + g.start[group];
      down.template With<T>(g.expert[group], [&](const auto& weights) {
        Product(packed, 0, packed.Tiles(), weights, c0 + from, Min(kOutBlock, width - from),
                [&](int64_t m, int mv, int64_t n, int nv, const float* tile, int ld) {
                  for (int i = 0; i < mv; ++i) {
                    float* row = sums + pairs[m + i] * width + from + n;
                    for (int j = 0; j < nv; ++j) row[j] = tile[i * ld + j];
                  }
                });
      });
    });
  }

  // Those columns of y: each token's weighted sum over its slots, in order.
  void Combine(const float* sums, int64_t c0, int64_t width, const Executor& executor) const {
    const double cost = static_cast<double>(args.tokens * args.slots) * static_cast<double>(width);
    ForEach(executor, args.tokens, cost / 4.0, [&](int64_t t) {
      auto* total = static_cast<float*>(Scratch(kTaskScratch, width * 4));
      for (int64_t j = 0; j < width; ++j) total[j] = 0.0f;
      for (int64_t s = 0; s < args.slots; ++s) {
        const int64_t pair = t * args.slots + s;
        if (args.ids[pair] < 0 || args.ids[pair] >= args.experts) continue;
        const float weight = args.weights[pair];
        const float* row = sums + pair * width;
        for (int64_t j = 0; j < width; ++j) total[j] += weight * row[j];
      }
      RowFromFloat(total, width, static_cast<T*>(args.y) + t * args.hidden + c0);
    });
  }

  void Run(const Executor& executor) const {
    const Groups g = GroupByExpert(args);
    const int64_t all = args.tokens * args.slots;
    const double weights = static_cast<double>(args.inner) * static_cast<double>(args.hidden);
    const double cost = weights * (static_cast<double>(g.count) * gate_up.Bytes() / 20.0 +
                                   static_cast<double>(g.pairs) / 100.0);
    PackedGroups<C> x(args.hidden, gate_up.template PackingOf<T>(), &g);
    PackedGroups<C> gated(args.inner, down.template PackingOf<T>(), &g);
    T* inner;
    const int64_t packed = Max64(x.Place(), gated.Place());
    const auto carve = [&](void* base) {
      Carver carver(base);
      inner = carver.Take<T>(all * args.inner);
      x.offset = carver.Take<int64_t>(g.count);
      gated.offset = carver.Take<int64_t>(g.count);
      // The second pass packs where the first one's activations were.
      x.data = gated.data = carver.Take<C>(packed);
      return carver.used();
    };
    carve(Scratch(kCallScratch2, carve(nullptr)));
    x.Place();
    gated.Place();
    PackGroups(x, executor, [&](int64_t pair) { return X(pair); });
    FirstPass(g, x, inner, executor, 2 * cost);
    PackGroups(gated, executor, [&](int64_t pair) { return inner + pair * args.inner; });
    const int64_t range =
        Clamp(kSumBytes / Max64(1, all * 4) / kOutBlock * kOutBlock, kOutBlock, args.hidden);
    auto* sums = static_cast<float*>(Scratch(kCallScratch3, all * range * 4));
    for (int64_t c0 = 0; c0 < args.hidden; c0 += range) {
      const int64_t width = Min(range, args.hidden - c0);
      const double part = static_cast<double>(width) / static_cast<double>(args.hidden);
      SecondPass(g, gated, c0, width, sums, executor, cost * part);
      Combine(sums, c0, width, executor);
    }
  }
};

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_EXPERT_MLP_EXPERTS_H_
