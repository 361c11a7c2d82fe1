// Softmax attention of some query rows over one split of the keys, and the merge of splits.
//
// Keys are cut into splits of kSplitKeys from key 0. A split is computed on its own and splits are
// merged in order, so the result does not depend on how the work was shared out. Keys and values
// come as pointers to rows: pages and staged copies look alike. Who has to copy does so when the
// scores come to a key (where there are tiles, before), so that reading memory hides behind
// products. In the scores and their softmax the query rows lie across the lanes: every row has its
// own sums, in the order of columns and keys. Where a caller says so, scores of f32 are dot
// products instead (attention_dots.h). Scores are logarithms to the base of two.
#ifndef MLA_COMMON_ATTENTION_CORE_H_
#define MLA_COMMON_ATTENTION_CORE_H_

#include <optional>
#include <type_traits>

#include "common/attention_dots.h"
#include "common/attention_tiles.h"
#include "common/axpy_tile.h"
#include "common/lane_tile.h"
#include "common/packed_rows.h"
#include "common/simd.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {

// Half as many where bf16 keys are staged as f32, which should stay in the second-level cache.
constexpr int64_t kSplitKeys = kPairProducts ? 512 : 256;
constexpr int kAttendVectors = kLaneVectors == 4 ? 4 : 2;
constexpr int64_t kAttendRows = kAttendVectors * kLanes;  // Query rows whose scores are one pass.
// Keys whose values are used by all rows before the next: 16 KiB of them and as much of weights
// where there are four vectors, else 32 KiB at most and 16.
template <typename W>
constexpr int64_t kValueBlock = kAttendVectors == 4 ? 64 : 512 / static_cast<int64_t>(sizeof(W));

constexpr float kLog2E = 1.44269504f;  // A factor of scores whose softmax is that of e^score.
constexpr float kLn2 = 0.69314718f;

// Where keys come from: here, those that are multiplied where they lie. Ready(n) is called before
// the keys [0, n), and their values, are read; Row(j) is the memory of key j, which is worth asking
// for if it is Far(j).
template <typename W>
struct KeysInPlace {
  const W* const* keys;
  void Ready(int64_t) const {}
  const W* Row(int64_t j) const { return keys[j]; }
  bool Far(int64_t) const { return true; }
};

// Work memory of one split. P is what products with keys and values multiply.
template <typename X, typename W>
struct AttendScratch {
  using P = typename ProductType<X, W>::T;
  static constexpr int64_t kUnit = LaneStep<P, W>::kUnit;
  static constexpr int64_t kTiledKeys = kSplitKeys + 32;  // The last tile may be cut.
  static_assert(LaneCols(1) <= 32, "the rest of a cut tile");
  static constexpr int kTurns = kMatrixTiles<P> ? 2 : 1;  // Passes that are under way at once.

  float* scores[kTurns];  // (keys, rows of a pass), of passes in turn
  P* weights;             // (units of keys, rows of a pass)
  P* q;  // (units of the columns of a, then of b; rows of a pass), or packed for dot products
  AttendTiles<P> tiles;

  static int64_t Width(int64_t columns) { return CeilDiv(columns, kUnit) * kUnit; }
  // For at most `rows` rows, whole passes.
  static AttendScratch Carve(Carver* carver, int64_t rows, int64_t a_width, int64_t b_width) {
    AttendScratch s;
    for (float*& scores : s.scores) scores = carver->Take<float>(kTiledKeys * kAttendRows);
    s.weights = carver->Take<P>(kSplitKeys * kAttendRows);
    s.q = carver->Take<P>(DotPitch(a_width, b_width) * kAttendRows);
    s.tiles = AttendTiles<P>::Carve(carver, rows, kAttendRows, kSplitKeys, a_width + b_width);
    return s;
  }
};

// Asks for N rows, as far along as the columns that are multiplied meanwhile.
template <int N, typename A>
struct AskForRows {
  const A* row[N];  // The first null: for nothing.
  MLA_INLINE void operator()(int64_t column) const {
    if (row[0] == nullptr) return;
    for (int64_t c = 0; c < kAskColumns; c += 64 / static_cast<int64_t>(sizeof(A))) {
      for (int n = 0; n < N; ++n) __builtin_prefetch(row[n] + column + c);
    }
  }
};

// Scores of the rows in scratch with keys [0, limit), (keys, V * kLanes), and what is yet to be
// multiplied with them. Asks for keys ahead; where there are tiles, only if those are the `first`
// rows of a split, and beside() runs once in each of TileSteps(keys, limit) steps.
template <int V, typename X, typename W, typename Source, typename Beside>
inline float ScoreRows(const AttendScratch<X, W>& scratch, const Keys<W>& keys, Source* source,
                       int64_t limit, bool first, float* scores, const Beside& beside) {
  using Scratch = AttendScratch<X, W>;
  using P = typename Scratch::P;
#if defined(__AMX_BF16__)
  if constexpr (kMatrixTiles<P>) {
    if (TakesTiles(keys)) {
      source->Ready(limit);
      return ScoreTiles<V>(scratch.q, keys, limit, first, scratch.tiles, scores, beside);
    }
  }
#endif
  (void)first;
  (void)beside;
  constexpr int N = LaneCols(V);
  constexpr int64_t kRows = V * kLanes;
  float scale_a[N], scale_b[N];
  for (int j = 0; j < N; ++j) scale_a[j] = keys.scale_a;
  for (int j = 0; j < N; ++j) scale_b[j] = keys.scale_b;
  // Both parts at once where they have one scale and no unit of columns has some of each.
  const bool whole = keys.a_width % Scratch::kUnit == 0 && keys.scale_a == keys.scale_b;
  const int64_t a_width = keys.a_width + (whole ? keys.b_width : 0);
  const P* qb = scratch.q + Scratch::Width(keys.a_width) * kRows;
  for (int64_t n = 0; n < limit; n += N) {
    const W* key[N];
    for (int j = 0; j < N; ++j) key[j] = keys.k[Min(n + j, limit - 1)];
    source->Ready(Min(n + N, limit));
    AskForRows<N, std::remove_pointer_t<decltype(source->Row(0))>> ahead = {};
    for (int j = 0; j < N && source->Far(Min(n + N, limit - 1)); ++j) {
      ahead.row[j] = source->Row(Min(n + N + j, limit - 1));
    }
    float* out = scores + n * kRows;
    LaneTile<V, N, P, W>(scratch.q, key, a_width, scale_a, false, ahead, out, kRows);
    if (whole) continue;
    for (int j = 0; j < N; ++j) key[j] += keys.a_width;
    for (int j = 0; j < N && ahead.row[0] != nullptr; ++j) ahead.row[j] += keys.a_width;
    LaneTile<V, N, P, W>(qb, key, keys.b_width, scale_b, true, ahead, out, kRows);
  }
  return 1.0f;
}

// What a row knows about its softmax so far. The result is divided by the sum of the weights as
// they are stored, so that they add up to one; the log-sum-exp uses the sum before that rounding.
struct RowState {
  float max;
  float sum;
  float exact_sum;
};

// What scores are relative to. Where none is above minus infinity every weight is 0, and not the
// NaN of inf - inf.
inline float Base(float max) { return max == -__builtin_inff() ? 0.0f : max; }

// Stores the weights of one unit of keys and makes them what was stored.
MLA_INLINE void StoreUnit(float* p, vf* e) { Store(p, e[0]); }
#if defined(__AVX512BF16__)
MLA_INLINE void StoreUnit(bf16* p, vf* e) {
  alignas(64) static constexpr uint16_t kPairs[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)e[1], (__m512)e[0]);
  const vu pairs = (vu)_mm512_permutexvar_epi16(_mm512_load_si512(kPairs), halves);
  __builtin_memcpy(p, &pairs, sizeof(pairs));
  e[0] = FromBits(pairs << 16);
  e[1] = FromBits(pairs & 0xffff0000u);
}
#endif

constexpr int kMaxChains = 4;

// The softmax of one pass, V * kLanes rows: turns what ScoreRows left of keys [0, limit) into
// weights 2^(score - max), some keys at a time, and gives the rows' states. Row r sees the keys
// [0, visible[r]); all rows see the first `least`.
template <int V, typename X, typename W>
class Softmax {
 public:
  using P = typename AttendScratch<X, W>::P;
  static constexpr int kVectors = V;
  static constexpr int64_t kUnit = AttendScratch<X, W>::kUnit;
  static constexpr int64_t kRows = V * kLanes;

  Softmax(float* scores, float scale, P* weights, const int32_t* visible, int64_t least,
          int64_t limit)
      : scores_(scores), scale_(scale), weights_(weights), limit_(limit) {
    const vf lowest = Splat(-__builtin_inff());
    for (int v = 0; v < V; ++v) {
      float* lane_scores = scores + v * kLanes;
      vi seen;
      __builtin_memcpy(&seen, visible + v * kLanes, sizeof(seen));
      for (int64_t n = least; n < CeilDiv(limit, kUnit) * kUnit; ++n) {
        const vf score = Load(lane_scores + n * kRows);
        Store(lane_scores + n * kRows, seen > static_cast<int32_t>(n) ? score : lowest);
      }
      vf most[kMaxChains];  // As many as hide how long one comparison takes.
      MLA_UNROLL
      for (int i = 0; i < kMaxChains; ++i) most[i] = lowest;
      for (int64_t n = 0; n < limit; n += kMaxChains) {
        MLA_UNROLL
        for (int i = 0; i < kMaxChains; ++i) {
          most[i] = Max(most[i], Score(lane_scores + Min(n + i, limit - 1) * kRows));
        }
      }
      max_[v] = Max(Max(most[0], most[1]), Max(most[2], most[3]));
      base_[v] = max_[v] == lowest ? vf{} : max_[v];
    }
  }

  // The next `keys` keys, whole units, as far as there are any.
  MLA_INLINE void Advance(int64_t keys) {
    const int64_t end = Min(limit_, next_ + keys);
    for (int v = 0; v < V; ++v) {
      const vf base = base_[v];
      vf sum = sum_[v], exact = exact_[v];
      for (int64_t n = next_; n < end; n += kUnit) {
        vf e[kUnit];
        MLA_UNROLL
        for (int i = 0; i < kUnit; ++i) {
          e[i] = Exp2NotPositive(Score(scores_ + (n + i) * kRows + v * kLanes) - base);
        }
        MLA_UNROLL
        for (int i = 0; i < kUnit; ++i) exact += e[i];
        StoreUnit(weights_ + n * kRows + v * kLanes * kUnit, e);
        MLA_UNROLL
        for (int i = 0; i < kUnit; ++i) sum += e[i];
      }
      sum_[v] = sum;
      exact_[v] = exact;
    }
    next_ = end;
  }

  int64_t limit() const { return limit_; }

  // All that is left.
  void Finish(RowState* state) {
    Advance(limit_);
    for (int v = 0; v < V; ++v) {
      for (int i = 0; i < kLanes; ++i) {
        state[v * kLanes + i] = {max_[v][i], sum_[v][i], exact_[v][i]};
      }
    }
  }

 private:
  MLA_INLINE vf Score(const float* stored) const { return Load(stored) * scale_; }

  const float* scores_;
  float scale_;
  P* weights_;
  int64_t limit_, next_ = 0;
  vf max_[V], base_[V], sum_[V] = {}, exact_[V] = {};
};

// The weighted sums of values of one pass, of which row r sees the keys [0, visible[r]).
template <typename P, typename W>
inline void WeighValues(const P* weights, int64_t rows, const int32_t* visible, const Keys<W>& keys,
                        int64_t unit, float* acc) {
  const P* first[kAttendRows];
  for (int64_t r = 0; r < rows; ++r) first[r] = weights + r * unit;
  const int64_t stride = CeilDiv(rows, kLanes) * kLanes * unit;
  const int64_t width = keys.v_width;
  // Keys that every row of a tile sees, in whole pairs.
  int64_t shared[kAttendRows] = {};  // By the tile's first row.
  int64_t most_shared = 0;
  for (int64_t m = 0; m < rows; m += HeightWithin(rows - m)) {
    shared[m] = visible[m];
    for (int i = 1; i < HeightWithin(rows - m); ++i) shared[m] = Min(shared[m], visible[m + i]);
    shared[m] &= ~int64_t{1};
    most_shared = Max64(most_shared, shared[m]);
  }
  // A block of keys and a range of columns stay in the first-level cache for all tiles.
  for (int64_t begin = 0; begin < most_shared; begin += kValueBlock<W>) {
    for (int64_t col = 0; col < width; col += kStripsM * kStrip) {
      const int64_t cols = Min(kStripsM * kStrip, width - col);
      for (int64_t m = 0; m < rows; m += HeightWithin(rows - m)) {
        const int64_t end = Min(shared[m], begin + kValueBlock<W>);
        if (end <= begin) continue;
        WithHeight<kManyRows>(HeightWithin(rows - m), [&](auto height) {
          AxpyRows<decltype(height)::value>(SteppedRows<P>{first + m, stride}, keys.v, begin, end,
                                            col, col + cols, begin > 0, acc + m * width, width);
        });
      }
    }
  }
  for (int64_t m = 0; m < rows; m += HeightWithin(rows - m)) {
    for (int64_t r = m; r < m + HeightWithin(rows - m); ++r) {
      if (visible[r] > shared[m]) {
        AxpyRows<1>(SteppedRows<P>{first + r, stride}, keys.v, shared[m], visible[r], 0, width,
                    shared[m] > 0, acc + r * width, width);
      }
    }
  }
}

// Attends `rows` query rows, of which row r sees the split's keys [0, visible[r]). A key outside
// that range never enters row r's arithmetic, not even with weight zero: it may be NaN. Results, by
// row: the softmax state and the weighted sum of values (undefined if none is seen), of as many
// rows as make whole passes. kDots: the scores are dot products, which suits few rows. A row's bits
// differ then, so nothing may decide it that other rows have a part in.
template <bool kDots, typename X, typename W, typename Source>
inline void AttendSplit(const X* const* qa, const X* const* qb, int64_t rows,
                        const int32_t* visible, const Keys<W>& keys, Source* source,
                        const AttendScratch<X, W>& scratch, RowState* state, float* acc) {
  using Scratch = AttendScratch<X, W>;
  using P = typename Scratch::P;
  // The softmax of a pass runs beside the tiles' scores of the next one, which leave the vectors
  // idle.
  std::optional<Softmax<kAttendVectors, X, W>> before;
  const auto finish = [&](auto& softmax, int64_t r0) {
    softmax.Finish(state + r0);
#if defined(__AMX_BF16__)
    if constexpr (kMatrixTiles<P>) {
      constexpr int V = std::decay_t<decltype(softmax)>::kVectors;
      scratch.tiles.template KeepWeights<V>(scratch.weights, r0, softmax.limit());
    }
#endif
  };
  for (int64_t r0 = 0; r0 < rows; r0 += kAttendRows) {
    const int64_t count = Min(kAttendRows, rows - r0);
    alignas(64) int32_t seen[kAttendRows] = {};
    int64_t least = kSplitKeys, limit = 0;
    for (int64_t r = 0; r < count; ++r) {
      seen[r] = visible[r0 + r];
      least = Min(least, seen[r]);
      limit = Max64(limit, seen[r]);
    }
    WithVectors<kAttendVectors>(count, [&](auto vectors) {
      constexpr int V = decltype(vectors)::value;
      float* scores = scratch.scores[r0 / kAttendRows % Scratch::kTurns];
      float scale = 1.0f;
      if constexpr (kDots) {
        ScoreDots(qa + r0, qb + r0, count, keys, source, limit, scratch.q, scores, V * kLanes);
      } else {
        const auto pack = [&](const X* const* q, int64_t width, P* dst) {
          PackLanes<P>(
              count, V * kLanes, width, Scratch::Width(width), Order::kPlain,
              [&](int64_t i) { return q[r0 + i]; }, dst);
        };
        pack(qa, keys.a_width, scratch.q);
        pack(qb, keys.b_width, scratch.q + Scratch::Width(keys.a_width) * V * kLanes);
        int64_t beside = 0;  // Keys of the pass before, a step.
        if (before) {
          beside =
              CeilDiv(before->limit(), TileSteps(keys, limit) * Scratch::kUnit) * Scratch::kUnit;
        }
        scale = ScoreRows<V>(scratch, keys, source, limit, r0 == 0, scores, [&]() {
          if (beside > 0) before->Advance(beside);
        });
        if (before) finish(*before, r0 - kAttendRows);
        before.reset();
      }
      Softmax<V, X, W> softmax(scores, scale, scratch.weights, seen, least, limit);
      if constexpr (kMatrixTiles<P> && V == kAttendVectors) {
        if (r0 + kAttendRows < rows) {
          before.emplace(softmax);
          return;
        }
      }
      finish(softmax, r0);
    });
    if constexpr (!kMatrixTiles<P>) {
      WeighValues(scratch.weights, count, seen, keys, Scratch::kUnit, acc + r0 * keys.v_width);
    }
  }
#if defined(__AMX_BF16__)
  if constexpr (kMatrixTiles<P>)
    ValueTiles<kAttendVectors>(scratch.tiles, rows, visible, keys, acc);
#endif
}

// Adds one split's result to the running result of a row.
inline void MergeRow(const RowState& state, const float* acc, int64_t width, RowState* run,
                     float* run_acc) {
  const float top = state.max > run->max ? state.max : run->max;
  const float base = Base(top);
  const vf factors = Exp2NotPositive(vf{run->max - base, state.max - base});
  const float old_factor = factors[0], new_factor = factors[1];
  run->max = top;
  run->sum = run->sum * old_factor + state.sum * new_factor;
  run->exact_sum = run->exact_sum * old_factor + state.exact_sum * new_factor;
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    Store(run_acc + i, MulAdd(Load(run_acc + i), Splat(old_factor), Load(acc + i) * new_factor));
  }
  for (; i < width; ++i) run_acc[i] = run_acc[i] * old_factor + acc[i] * new_factor;
}

// acc / sum, rounded once, and the natural log of the sum of exponentials, for a row that saw a
// key.
template <typename Y>
inline void FinishRow(const RowState& state, const float* acc, int64_t width, float value_scale,
                      Y* out, float* lse) {
  const float factor = state.sum == 0.0f ? 0.0f : value_scale / state.sum;
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) Store(out + i, Load(acc + i) * factor);
  for (; i < width; ++i) StoreOne(out + i, acc[i] * factor);
  *lse = state.max * kLn2 + __builtin_logf(state.exact_sum);
}

template <typename Y>
inline void FillRow(int64_t width, float value, float lse_value, Y* out, float* lse) {
  for (int64_t i = 0; i < width; ++i) StoreOne(out + i, value);
  *lse = lse_value;
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_ATTENTION_CORE_H_
