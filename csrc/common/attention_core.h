// Softmax attention of a few query rows over one split of the keys, and the merge of splits.
//
// Keys are cut into splits of kSplitKeys from key 0. A split is computed on its own and splits are
// merged in order, so the result does not depend on how the work was shared out. All rows come as
// pointers: pages, staged copies and strided activations look alike.
#ifndef MLA_COMMON_ATTENTION_CORE_H_
#define MLA_COMMON_ATTENTION_CORE_H_

#include "common/axpy_tile.h"
#include "common/dot_tile.h"
#include "common/simd.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {

constexpr int64_t kSplitKeys = 512;
constexpr int64_t kAttendRows = 16;   // Query rows that share one pass: their scores stay close.
constexpr int64_t kValueBlock = 128;  // Keys whose values are used by all rows before the next.

// The keys of one split. A score is scale_a * (qa . a) + scale_b * (qb . b).
template <typename W>
struct Keys {
  const W* const* a;
  const W* const* b;
  const W* const* v;
  int64_t a_width, b_width, v_width;
  float scale_a, scale_b;
};

template <typename X, typename W>
struct AttendScratch {
  alignas(64) float scores[kAttendRows * kSplitKeys];
  // In the type that the product with the values multiplies.
  alignas(64) typename ProductType<X, W>::T weights[kAttendRows * kSplitKeys];
};

// out[m * N + n]: one tile of scores.
template <int M, int N, bool kTwoScales, typename X, typename W>
inline __attribute__((noinline)) void ScoreTile(const X* const* qa, const X* const* qb,
                                                const W* const* ka, const W* const* kb,
                                                const Keys<W>& keys, float* out) {
  vf acc[kWholeSums<M * N>] = {};
  DotAccumulate<M, N>(qa, ka, keys.a_width, acc);
  if (kTwoScales) {
    vf acc_b[M * N] = {};
    DotAccumulate<M, N>(qb, kb, keys.b_width, acc_b);
    MLA_UNROLL
    for (int i = 0; i < M * N; ++i) acc[i] = acc[i] * keys.scale_a + acc_b[i] * keys.scale_b;
  } else {
    DotAccumulate<M, N>(qb, kb, keys.b_width, acc);
    MLA_UNROLL
    for (int i = 0; i < M * N; ++i) acc[i] = acc[i] * keys.scale_a;
  }
  LaneSums<kWholeSums<M * N>>(acc, out);
}

// Asks for a row that will soon be multiplied.
template <typename T>
MLA_INLINE void PrefetchRow(const T* row, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(row + i);
}

// Scores of M rows (the last of them repeated where there are fewer) and the N keys from n on.
template <int M, int N, typename X, typename W>
inline void ScoreKeys(const X* const* qa, const X* const* qb, int64_t rows, const W* const* ka,
                      const W* const* kb, const Keys<W>& keys, float* scores) {
  alignas(64) float tile[kWholeSums<M * N>];
  const X* xa[M];
  const X* xb[M];
  for (int i = 0; i < M; ++i) {
    xa[i] = qa[Min(i, rows - 1)];
    xb[i] = qb[Min(i, rows - 1)];
  }
  if (keys.scale_a != keys.scale_b) {
    ScoreTile<M, N, true>(xa, xb, ka, kb, keys, tile);
  } else {
    ScoreTile<M, N, false>(xa, xb, ka, kb, keys, tile);
  }
  for (int64_t i = 0; i < Min(M, rows); ++i) {
    __builtin_memcpy(scores + i * kSplitKeys, tile + i * N, N * sizeof(float));
  }
}

template <int N, typename X, typename W>
inline void ScoreRows(const X* const* qa, const X* const* qb, int64_t rows, const int32_t* visible,
                      const Keys<W>& keys, float* scores) {
  int32_t most[CeilDiv(kAttendRows, kManyRows)] = {};  // Keys that any row of the tile sees.
  int32_t limit = 0;
  for (int64_t i = 0; i < rows; ++i) {
    int32_t& tile = most[i / kManyRows];
    if (visible[i] > tile) tile = visible[i];
    if (tile > limit) limit = tile;
  }
  for (int32_t n = 0; n < limit; n += N) {
    const W* ka[N];
    const W* kb[N];
    for (int j = 0; j < N; ++j) {
      const int32_t key = n + j < limit ? n + j : limit - 1;
      ka[j] = keys.a[key];
      kb[j] = keys.b[key];
      const int32_t next = n + 2 * N + j;
      if (next < limit) {
        PrefetchRow(keys.a[next], keys.a_width);
        PrefetchRow(keys.b[next], keys.b_width);
      }
    }
    for (int64_t m = 0; m < rows; m += kManyRows) {
      if (most[m / kManyRows] <= n) continue;
      const int64_t left = Min(kManyRows, rows - m);
      WithHeight<kManyRows>(TileHeight(left), [&](auto height) {
        ScoreKeys<decltype(height)::value, N>(qa + m, qb + m, left, ka, kb, keys,
                                              scores + m * kSplitKeys + n);
      });
    }
  }
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

// Turns n > 0 scores into weights e^(s - max).
template <typename P>
inline RowState SoftmaxRow(float* scores, int64_t n, P* weights) {
  const int64_t padded = (n + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = n; i < padded; ++i) scores[i] = -__builtin_inff();
  vf top = Load(scores);
  for (int64_t i = kLanes; i < padded; i += kLanes) top = Max(top, Load(scores + i));
  const float max = LaneMax(top), base = Base(max);
  vf total = {}, exact = {};
  for (int64_t i = 0; i < padded; i += kLanes) {
    const vf e = Exp(Load(scores + i) - base);
    Store(weights + i, e);
    total += Load(weights + i);
    exact += e;
  }
  return {max, LaneSum(total), LaneSum(exact)};
}

// Attends `rows` <= kAttendRows query rows, of which row r sees the split's keys [0, visible[r]).
// A key outside that range never enters row r's arithmetic, not even with weight zero: it may be
// NaN. Results, by row: the softmax state and the weighted sum of values (undefined if none is
// seen).
template <typename X, typename W>
inline void AttendSplit(const X* const* qa, const X* const* qb, int64_t rows,
                        const int32_t* visible, const Keys<W>& keys, AttendScratch<X, W>* scratch,
                        RowState* state, float* acc) {
  using P = typename ProductType<X, W>::T;
  if (rows == 1) {
    ScoreRows<4>(qa, qb, rows, visible, keys, scratch->scores);
  } else {
    ScoreRows<kTileN>(qa, qb, rows, visible, keys, scratch->scores);
  }
  const P* p[kAttendRows];
  for (int64_t r = 0; r < rows; ++r) {
    p[r] = scratch->weights + r * kSplitKeys;
    state[r] = {-__builtin_inff(), 0.0f, 0.0f};
    if (visible[r] > 0) {
      state[r] = SoftmaxRow(scratch->scores + r * kSplitKeys, visible[r],
                            scratch->weights + r * kSplitKeys);
    }
  }
  // Keys that every row of a tile sees, in whole pairs.
  const int64_t width = keys.v_width;
  int64_t shared[kAttendRows] = {};  // By the tile's first row.
  int64_t most_shared = 0;
  for (int64_t m = 0; m < rows; m += HeightWithin(rows - m)) {
    shared[m] = visible[m];
    for (int i = 1; i < HeightWithin(rows - m); ++i) shared[m] = Min(shared[m], visible[m + i]);
    shared[m] &= ~int64_t{1};
    most_shared = Max64(most_shared, shared[m]);
  }
  // A block of keys and a range of columns stay in the first-level cache for all tiles.
  for (int64_t begin = 0; begin < most_shared; begin += kValueBlock) {
    for (int64_t col = 0; col < width; col += kStripsM * kStrip) {
      const int64_t cols = Min(kStripsM * kStrip, width - col);
      for (int64_t m = 0; m < rows; m += HeightWithin(rows - m)) {
        const int64_t end = Min(shared[m], begin + kValueBlock);
        if (end <= begin) continue;
        WithHeight<kManyRows>(HeightWithin(rows - m), [&](auto height) {
          AxpyRows<decltype(height)::value>(p + m, keys.v, begin, end, col, col + cols, begin > 0,
                                            acc + m * width, width);
        });
      }
    }
  }
  for (int64_t m = 0; m < rows; m += HeightWithin(rows - m)) {
    for (int64_t r = m; r < m + HeightWithin(rows - m); ++r) {
      if (visible[r] > shared[m]) {
        AxpyRows<1>(p + r, keys.v, shared[m], visible[r], 0, width, shared[m] > 0, acc + r * width,
                    width);
      }
    }
  }
}

// Adds one split's result to the running result of a row. Not inlined: both ways of sharing out the
// work must round alike.
inline __attribute__((noinline)) void MergeRow(const RowState& state, const float* acc,
                                               int64_t width, RowState* run, float* run_acc,
                                               bool first) {
  if (first) {
    *run = state;
    __builtin_memcpy(run_acc, acc, static_cast<size_t>(width) * sizeof(float));
    return;
  }
  const float top = state.max > run->max ? state.max : run->max;
  const float base = Base(top);
  const vf factors = Exp(vf{run->max - base, state.max - base});
  const float old_factor = factors[0], new_factor = factors[1];
  run->max = top;
  run->sum = run->sum * old_factor + state.sum * new_factor;
  run->exact_sum = run->exact_sum * old_factor + state.exact_sum * new_factor;
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    Store(run_acc + i, Load(run_acc + i) * old_factor + Load(acc + i) * new_factor);
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
  *lse = state.max + __builtin_logf(state.exact_sum);
}

template <typename Y>
inline void FillRow(int64_t width, float value, float lse_value, Y* out, float* lse) {
  for (int64_t i = 0; i < width; ++i) StoreOne(out + i, value);
  *lse = lse_value;
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_ATTENTION_CORE_H_
