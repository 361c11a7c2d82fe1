// Scores of few query rows as dot products: columns lie across the lanes, and the sums over lanes
// come last. Of rows that fill one vector, across the lanes every product would take a read.
//
// A key of bf16 is multiplied as it lies in the cache: first its even columns, which a shift makes
// f32, then the odd ones. Every score has one sum for each lane, in that order, and a fixed tree
// adds those: it does not depend on the rows beside it.
#ifndef MLA_COMMON_ATTENTION_DOTS_H_
#define MLA_COMMON_ATTENTION_DOTS_H_

#include <type_traits>

#include "common/attention_tiles.h"
#include "common/dot_tile.h"
#include "common/simd.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {

// Whether scores of X with keys W may be dot products: where wide vectors of f32 are multiplied.
template <typename X, typename W>
constexpr bool kTakesDots = kLanes == 16 && std::is_same_v<typename ProductType<X, W>::T, float>;

// The columns of keys W in kParts parts, of which a step takes one vector from a row's next kParts.
template <typename W>
struct DotColumns {
  static constexpr int kParts = 1;
  static MLA_INLINE vf Get(const W* p, int) { return Load(p); }
  static MLA_INLINE vf GetLast(const W* p, int64_t n, int) { return LoadPart(p, n); }
  template <typename X>
  static MLA_INLINE void Split(const X* x, vf* parts) {
    parts[0] = Load(x);
  }
};
template <>
struct DotColumns<bf16> {
  static constexpr int kParts = 2;
  static MLA_INLINE vf Get(const bf16* p, int part) {
    return part == 0 ? EvenOf(LoadPairs(p)) : OddOf(LoadPairs(p));
  }
  static MLA_INLINE vf GetLast(const bf16* p, int64_t n, int part) {
    return part == 0 ? EvenOf(LoadPairsPart(p, n)) : OddOf(LoadPairsPart(p, n));
  }
  template <typename X>
  static MLA_INLINE void Split(const X* x, vf* parts) {
    const vf a = Load(x), b = Load(x + kLanes);
    parts[0] = Evens(a, b);
    parts[1] = Odds(a, b);
  }
};

template <typename W>
constexpr int64_t kDotStep = DotColumns<W>::kParts * kLanes;

// Floats of a packed query row, so many that rows of a power of two columns do not evict each
// other.
inline int64_t DotPitch(int64_t a_width, int64_t b_width) {
  constexpr int64_t kMostStep = 2 * kLanes;
  return (CeilDiv(a_width, kMostStep) + CeilDiv(b_width, kMostStep)) * kMostStep + kLanes;
}

// Steps of a query row's columns as DotTile takes them, with zeros at the end: parts lie `parts`
// floats apart.
template <typename W, typename X>
inline void PackDots(const X* x, int64_t width, int64_t parts, float* to) {
  constexpr int kParts = DotColumns<W>::kParts;
  constexpr int64_t kStep = kDotStep<W>;
  vf split[kParts];
  const auto store = [&](int64_t step) {
    for (int p = 0; p < kParts; ++p) Store(to + p * parts + step * kLanes, split[p]);
  };
  const int64_t whole = width / kStep;
  for (int64_t s = 0; s < whole; ++s) {
    DotColumns<W>::Split(x + s * kStep, split);
    store(s);
  }
  if (whole * kStep == width) return;
  X last[kStep] = {};
  for (int64_t c = whole * kStep; c < width; ++c) last[c - whole * kStep] = x[c];
  DotColumns<W>::Split(last, split);
  store(whole);
}

// Query rows and keys of a tile: 24 sums, and what is left of 16 rows.
constexpr int kDotRows = 6, kLastDotRows = 4, kDotKeys = 4;
// The rows of the next tile of `left` rows, a multiple of 16 at first.
constexpr int DotHeight(int64_t left) {
  return left >= kDotRows && left != 2 * kLastDotRows ? kDotRows : kLastDotRows;
}

// Keys that all rows meet before the next: with six rows they stay in the first-level cache.
constexpr int64_t kDotBlock = 16;

// Keys of the next block that a tile asks for, as far along as its columns: a few, since a core
// waits for few lines at once, and other tiles ask for others.
struct AskForKeys {
  const char* key[kDotKeys];
  int count;
  int64_t bytes;  // Of a column.

  // For what a step of `columns` from there on begins to need.
  MLA_INLINE void operator()(int64_t column, int64_t columns) const {
    if (column * bytes % 64 >= columns * bytes) return;
    for (int j = 0; j < count; ++j) __builtin_prefetch(key[j] + column * bytes);
  }
};

// scores[j * ld + i] (+)= scale * (key[j] . row[i]) over `width` columns, whole steps, for kRows
// rows whose parts are `parts` floats apart. Asks for what lies as far from the starts of its keys.
template <int kRows, typename W>
inline __attribute__((noinline)) void DotTile(const W* const* keys, const float* const* rows,
                                              int64_t parts, int64_t width, float scale, bool add,
                                              const AskForKeys& ask, float* scores, int64_t ld) {
  using Columns = DotColumns<W>;
  constexpr int kSums = kDotKeys * kRows;
  const W* key[kDotKeys];
  const float* row[kRows];
  for (int j = 0; j < kDotKeys; ++j) key[j] = keys[j];
  for (int i = 0; i < kRows; ++i) row[i] = rows[i];
  vf sum[kSums] = {};
  MLA_UNROLL
  for (int part = 0; part < Columns::kParts; ++part) {
    for (int64_t c = 0, at = part * parts; c < width; c += kDotStep<W>, at += kLanes) {
      ask(at, kLanes);
      vf a[kRows];
      MLA_UNROLL
      for (int i = 0; i < kRows; ++i) a[i] = Held(Load(row[i] + at));
      MLA_UNROLL
      for (int j = 0; j < kDotKeys; ++j) {
        const vf b = Held(Columns::Get(key[j] + c, part));
        MLA_UNROLL
        for (int i = 0; i < kRows; ++i) sum[j * kRows + i] = MulAdd(a[i], b, sum[j * kRows + i]);
      }
    }
  }
  alignas(64) float sums[CeilDiv(kSums, kLanes) * kLanes] = {};
  LaneSums<kSums>(sum, sums);
  for (int i = 0; i < kSums; i += kLanes) Store(sums + i, Load(sums + i) * scale);
  for (int j = 0; j < kDotKeys; ++j) {
    if (add) {
      for (int i = 0; i < kRows; ++i) sums[j * kRows + i] += scores[j * ld + i];
    }
    __builtin_memcpy(scores + j * ld, sums + j * kRows, kRows * sizeof(float));
  }
}

// The same over any `width` columns from column `from` of the keys and float `at` of packed rows.
template <int kRows, typename W>
inline void DotAnyWidth(const W* const* keys, const float* const* rows, int64_t from, int64_t at,
                        int64_t width, float scale, bool add, const AskForKeys& ask, float* scores,
                        int64_t ld) {
  constexpr int64_t kStep = kDotStep<W>;
  const int64_t whole = width / kStep * kStep, parts = CeilDiv(width, kStep) * kLanes;
  const W* key[kDotKeys];
  const float* row[kRows];
  for (int j = 0; j < kDotKeys; ++j) key[j] = keys[j] + from;
  for (int i = 0; i < kRows; ++i) row[i] = rows[i] + at;
  DotTile<kRows>(key, row, parts, whole, scale, add, ask, scores, ld);
  if (whole == width) return;
  alignas(64) W last[kDotKeys][kStep] = {};
  for (int j = 0; j < kDotKeys; ++j) {
    for (int64_t c = whole; c < width; ++c) last[j][c - whole] = key[j][c];
    key[j] = last[j];
  }
  for (int i = 0; i < kRows; ++i) row[i] += whole / kStep * kLanes;
  DotTile<kRows>(key, row, parts, kStep, scale, true, {}, scores, ld);
}

// Scores of `rows` rows with keys [0, limit), (keys, ld); ld is a multiple of 16. q: work memory of
// DotPitch floats a row. Asks for keys ahead.
template <typename X, typename W, typename Source>
inline void ScoreDots(const X* const* qa, const X* const* qb, int64_t rows, const Keys<W>& keys,
                      Source* source, int64_t limit, float* q, float* scores, int64_t ld) {
  constexpr int64_t kStep = kDotStep<W>;
  const int64_t pitch = DotPitch(keys.a_width, keys.b_width);
  // Both at once where they have one scale and no step has some of each.
  const bool whole = keys.a_width % kStep == 0 && keys.scale_a == keys.scale_b;
  const int64_t width = keys.a_width + (whole ? keys.b_width : 0);
  const int64_t a_steps = CeilDiv(keys.a_width, kStep), b_steps = CeilDiv(keys.b_width, kStep);
  const int64_t a_parts = (a_steps + (whole ? b_steps : 0)) * kLanes;
  const int64_t b_at = whole ? a_steps * kLanes : a_steps * kStep;
  for (int64_t r = 0; r < rows; ++r) {
    PackDots<W>(qa[r], keys.a_width, a_parts, q + r * pitch);
    if (keys.b_width == 0) continue;
    PackDots<W>(qb[r], keys.b_width, whole ? a_parts : b_steps * kLanes, q + r * pitch + b_at);
  }
  const int64_t calls = CeilDiv(rows, kDotRows) * (kDotBlock / kDotKeys);
  for (int64_t block = 0; block < limit; block += kDotBlock) {
    const int64_t end = Min(block + kDotBlock, limit);
    source->Ready(end);
    int64_t call = 0;
    for (int64_t m = 0; m < ld; m += DotHeight(ld - m)) {
      if (m >= rows) {  // Nobody's, but numbers.
        for (int64_t n = block; n < end; ++n) {
          __builtin_memset(scores + n * ld + m, 0, DotHeight(ld - m) * sizeof(float));
        }
        continue;
      }
      const float* row[kDotRows];
      for (int i = 0; i < kDotRows; ++i) row[i] = q + Min(m + i, rows - 1) * pitch;
      for (int64_t n = block; n < end; n += kDotKeys, ++call) {
        float* out = scores + n * ld + m;
        const W* key[kDotKeys];
        for (int j = 0; j < kDotKeys; ++j) key[j] = keys.k[Min(n + j, limit - 1)];
        AskForKeys ask = {{}, 0, sizeof(*source->Row(0))};
        for (int64_t j = end + call; j < Min(end + kDotBlock, limit); j += calls) {
          if (source->Far(j)) ask.key[ask.count++] = reinterpret_cast<const char*>(source->Row(j));
        }
        const auto score = [&](auto height) {
          constexpr int kRows = decltype(height)::value;
          DotAnyWidth<kRows>(key, row, 0, 0, width, keys.scale_a, false, ask, out, ld);
          if (!whole) {
            DotAnyWidth<kRows>(key, row, keys.a_width, b_at, keys.b_width, keys.scale_b, true, {},
                               out, ld);
          }
        };
        if (DotHeight(ld - m) == kDotRows) {
          score(Constant<kDotRows>());
        } else {
          score(Constant<kLastDotRows>());
        }
      }
    }
  }
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_ATTENTION_DOTS_H_
