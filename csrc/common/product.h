// Products of packed rows of activations with rows of a weight matrix, for any way of storing the
// weights.
//
// The columns are cut into chunks that fit the first-level cache. Within a chunk every output owns
// one vector accumulator that walks the columns in order and is then summed by a fixed tree; chunks
// are added in order. So it is whatever the tile and whichever way the weights come (straight from
// memory for few rows, from a panel copied next to the core for more): the result of a row does not
// depend on how many rows came with it, up to kMostDotRows. Beyond, rows lie across the lanes. With
// AMX products of bf16 are those of matrix_product.h for any number of rows, and those with weights
// in the vnni layout have overloads of Product of their own (vnni_product.h, fixed_product.h).
#ifndef MLA_COMMON_PRODUCT_H_
#define MLA_COMMON_PRODUCT_H_

#include "common/matrix_product.h"
#include "common/panel.h"
#include "common/scratch.h"

namespace mla {
namespace MLA_ISA {

// Columns of a chunk, of what is multiplied.
template <typename C>
constexpr int64_t kChunk = 4096 / static_cast<int64_t>(sizeof(C));

// Activations of one tile that leave room for weights in the first-level cache.
template <typename C>
constexpr int64_t kFewElements = 32768 / static_cast<int64_t>(sizeof(C));
// Whether such a tile takes weight rows one after the other, not their chunks.
template <typename C>
constexpr bool WholeRows(int64_t rows, int64_t width) {
  return rows * width <= kFewElements<C>;
}

// Weight rows that are asked for ahead of their use.
constexpr int64_t kRowsAhead = 8;

// Weight rows of a panel (second-level cache) for dot products.
constexpr int64_t kPanelRows = 64;

// Columns of a panel for rows across the lanes. A tile's activations in them are 48 or 64 KiB,
// whose vectors come from the second-level cache beside as many products as that takes.
template <typename C>
constexpr int64_t kLaneChunk = kChunk<C> / 4;

// `Weights` holds rows of k columns:
//   using C: what is multiplied.
//   static constexpr int FewCols(int height): weight rows a tile of few products.
//   static constexpr int ManyCols(): the same for tiles of a panel and for several tiles.
//   bool UsesPanel(int64_t rows) const: whether that many activations are worth a panel.
//   template <int M, int N> void Few(const C* x, int64_t n, int64_t last, int64_t k0,
//       int64_t width, float* out) const: out[m * N + j] = x[m] . w[min(n + j, last)] over `width`
//       columns from k0.
//   void Fill(int64_t n, int64_t count, int64_t k0, int64_t width, const Panel<C>& panel) const
//   template <int M, int N> void FromPanel(const C* x, const Panel<C>& panel, int64_t j,
//       int64_t last, int64_t n0, int64_t k0, int64_t width, float* out) const: as Few, of rows
//       j to min(j + N, last) of a panel whose first row is weight row n0.
//   static constexpr bool kOwnLanePanels: whether FillLanes, of the same arguments, fills panels
//   for
//       rows across the lanes.
//   WeightPlace PlaceOf(int64_t n) const: where row n and those after it lie.
//   For matrix_product.h:
//   struct Rows and Rows RowsAt(int64_t n, int64_t count) const: some weight rows, j their number
//       from n on;
//   void Ask(int64_t j, int64_t k) const of Rows: asks for the columns [k, k + kMatrixColumns) of
//       one, where a k past the last column means the rows that follow;
//   void AskScales(int64_t count, int64_t k) const of Rows: of the scales of the `count` rows that
//       follow the first as many, as large a part as those columns are of a row;
//   void Fill(int64_t j, int64_t k, C* dst) const of Rows: copies those columns, zeros past the
//       last one;
//   int64_t Whole() const of Rows: how many columns
//   void FillWhole(int64_t j, int64_t k, const Constants&, C* dst) const may copy instead, in whole
//       pieces; using Constants: what a loop over it keeps in registers.
//   static constexpr bool kScaled: whether a panel's elements have yet to be multiplied by
//       void ReadScales(int64_t n, int64_t count, int64_t k, float* scale) const of weight rows
//       [n, n + count), the same up to column int64_t ScaleEnd(int64_t k) const, an even number,
//       or one past them all.

// Adds up the chunks of a tile of products and hands on the finished ones.
template <typename Sink>
struct ChunkSums {
  const Sink& sink;
  float* saved;  // kMaxDotTile for every tile; null where there is one chunk.

  MLA_INLINE void Take(int64_t tile, bool first, bool last, int64_t m, int mv, int64_t n, int nv,
                       float* out, int ld) const {
    if (saved != nullptr) {
      float* before = saved + tile * kMaxDotTile;
      if (!first) {
        for (int64_t i = 0; i < kMaxDotTile; i += kLanes)
          Store(out + i, Load(before + i) + Load(out + i));
      }
      if (!last) __builtin_memcpy(before, out, kMaxDotTile * sizeof(float));
    }
    if (last) sink(m, mv, n, nv, out, ld);
  }
};

// What a tile of rows across the lanes asks for beside one chunk: its share of the activations that
// come next, and of the weight rows. As many columns of those as the chunk has, which may be more
// or less than they have.
struct AskForNext {
  const char* x;    // Null: for none.
  int64_t x_bytes;  // Beside kAskColumns columns.
  WeightPlace weights;
  int64_t begin, end;  // Of their rows.
  int64_t k0;          // Their column beside the chunk's first.

  MLA_INLINE void operator()(int64_t column) const {
    if (x != nullptr) AskFor(x + column / kAskColumns * x_bytes, x_bytes);
    for (int64_t j = begin; j < end; ++j) weights.Ask(j, k0 + column);
  }
};

// The products that one call asks for: tiles [tile0, tile0 + tiles) of x with weight rows
// [n0, n0 + cols).
template <typename C, typename Weights, typename Sink>
struct Products {
  const PackedRows<C>& x;
  const int64_t tile0, tiles;
  const Weights& w;
  const int64_t n0, cols;
  const Sink& sink;

  static constexpr int kN = Weights::ManyCols();

  // Chunk sums of `count` tiles of products, beside what else `more` takes of the same scratch.
  template <typename More>
  ChunkSums<Sink> Carve(int64_t count, const More& more) const {
    float* saved;
    const auto carve = [&](void* base) {
      Carver carver(base);
      saved = carver.Take<float>(x.width > kChunk<C> ? count * kMaxDotTile : 0);
      more(&carver);
      return carver.used();
    };
    carve(Scratch(kPanelScratch, carve(nullptr)));
    return {sink, x.width > kChunk<C> ? saved : nullptr};
  }

  // One tile of activations, straight from the weights: whole weight rows while the activations
  // fit the first-level cache beside them, else chunk by chunk.
  template <int M, int N>
  void OneTile() const {
    const auto tile = x.At(tile0);
    const int64_t chunks = CeilDiv(x.width, kChunk<C>), groups = CeilDiv(cols, N);
    const bool by_rows = WholeRows<C>(M, x.width);
    const ChunkSums<Sink> sums = Carve(groups, [](Carver*) {});
    alignas(64) float out[kMaxDotTile] = {};
    for (int64_t i = 0; i < chunks * groups; ++i) {
      const int64_t group = by_rows ? i / chunks : i % groups;
      const int64_t k0 = (by_rows ? i % chunks : i / groups) * kChunk<C>;
      const int64_t width = Min(kChunk<C>, x.width - k0), n = group * N;
      w.template Few<M, N>(tile.data + k0 * M, n0 + n, n0 + cols - 1, k0, width, out);
      sums.Take(group, k0 == 0, k0 + width == x.width, tile.row0, tile.rows, n,
                static_cast<int>(Min(N, cols - n)), out, N);
    }
  }

  // Several tiles, straight from the weights: a few weight rows stay in the first-level cache
  // while the activations pass.
  void InPlace() const {
    const ChunkSums<Sink> sums = Carve(tiles * CeilDiv(cols, kN), [](Carver*) {});
    alignas(64) float out[kMaxDotTile] = {};
    for (int64_t k0 = 0; k0 < x.width; k0 += kChunk<C>) {
      const int64_t width = Min(kChunk<C>, x.width - k0);
      for (int64_t n = 0; n < cols; n += kN) {
        for (int64_t t = 0; t < tiles; ++t) {
          const auto tile = x.At(tile0 + t);
          WithHeight<kManyRows>(tile.height, [&](auto height) {
            constexpr int kM = decltype(height)::value;
            w.template Few<kM, kN>(tile.data + k0 * kM, n0 + n, n0 + cols - 1, k0, width, out);
          });
          sums.Take(n / kN * tiles + t, k0 == 0, k0 + width == x.width, tile.row0, tile.rows, n,
                    static_cast<int>(Min(kN, cols - n)), out, kN);
        }
      }
    }
  }

  // From panels: a tile of activations stays in the first-level cache while the panel passes.
  void FromPanels() const {
    Panel<C> panel;
    const int64_t groups = CeilDiv(Min(cols, kPanelRows), kN);
    const ChunkSums<Sink> sums = Carve(tiles * groups, [&](Carver* carver) {
      panel = Panel<C>::Carve(carver, kPanelRows, kChunk<C>);
    });
    alignas(64) float out[kMaxDotTile] = {};
    for (int64_t p0 = 0; p0 < cols; p0 += kPanelRows) {
      const int64_t count = Min(kPanelRows, cols - p0);
      for (int64_t k0 = 0; k0 < x.width; k0 += kChunk<C>) {
        const int64_t width = Min(kChunk<C>, x.width - k0);
        w.Fill(n0 + p0, count, k0, width, panel);
        for (int64_t t = 0; t < tiles; ++t) {
          const auto tile = x.At(tile0 + t);
          for (int64_t n = 0; n < count; n += kN) {
            WithHeight(tile.height, [&](auto height) {
              constexpr int kM = decltype(height)::value;
              w.template FromPanel<kM, kN>(tile.data + k0 * kM, panel, n, count - 1, n0 + p0, k0,
                                           width, out);
            });
            sums.Take(t * groups + n / kN, k0 == 0, k0 + width == x.width, tile.row0, tile.rows,
                      p0 + n, static_cast<int>(Min(kN, count - n)), out, kN);
          }
        }
      }
    }
  }

  // What is multiplied after one chunk: a tile's activations in it, and weight rows from column k0.
  struct Next {
    const C* x;
    int64_t x_elements;
    WeightPlace weights;
    int64_t count, k0;
  };

  // One chunk of a panel times a tile of rows across the lanes, into or onto sums (n, rows). Of the
  // next weight rows it asks for part `part` of `parts`.
  template <int V>
  void LaneChunk(const C* x_chunk, const Panel<C>& panel, int64_t row0, int64_t count, int64_t k0,
                 int64_t width, const Next& next, int64_t part, int64_t parts, float* sums) const {
    constexpr int N = LaneCols(V);
    constexpr int64_t kStride = V * kLanes;
    const int64_t groups = CeilDiv(count, N);
    const int64_t x_bytes = CeilDiv(next.x_elements * static_cast<int64_t>(sizeof(C)) * kAskColumns,
                                    groups * width * 64) *
                            64;
    for (int64_t n = 0; n < count; n += N) {
      const int64_t at = part * groups + n / N;
      AskForNext ask = {nullptr,
                        x_bytes,
                        next.weights,
                        at * next.count / (parts * groups),
                        (at + 1) * next.count / (parts * groups),
                        next.k0};
      for (int64_t from = 0, to = width; from < width; from = to) {
        if constexpr (Weights::kScaled) to = Min(width, w.ScaleEnd(k0 + from) - k0);
        const C* rows[N];
        float scale[N] = {};
        if constexpr (Weights::kScaled) {
          w.ReadScales(row0 + n, Min(N, count - n), k0 + from, scale);
        } else {
          for (int j = 0; j < N; ++j) scale[j] = 1.0f;
        }
        for (int j = 0; j < N; ++j) rows[j] = panel.Row(Min(n + j, count - 1)) + from;
        if (next.x != nullptr) {
          ask.x = reinterpret_cast<const char*>(next.x) +
                  (n / N * CeilDiv(width, kAskColumns) + from / kAskColumns) * x_bytes;
        }
        ask.k0 = next.k0 + from;
        LaneTile<V, N, C, C>(x_chunk + from * kStride, rows, to - from, scale, k0 + from > 0, ask,
                             sums + n * kLaneTileRows, kLaneTileRows);
      }
    }
  }

  // Rows across the lanes. All tiles' sums of a panel are kept until its last chunk.
  void ByLanes() const {
    Panel<C> panel;
    float* sums;
    const auto carve = [&](void* base) {
      Carver carver(base);
      panel = Panel<C>::Carve(&carver, kLanePanelRows, kLaneChunk<C>);
      sums = carver.Take<float>(tiles * kLanePanelRows * kLaneTileRows);
      return carver.used();
    };
    carve(Scratch(kPanelScratch, carve(nullptr)));
    for (int64_t p0 = 0; p0 < cols; p0 += kLanePanelRows) {
      const int64_t count = Min(kLanePanelRows, cols - p0);
      for (int64_t k0 = 0; k0 < x.width; k0 += kLaneChunk<C>) {
        const int64_t width = Min(kLaneChunk<C>, x.width - k0);
        if constexpr (Weights::kOwnLanePanels) {
          w.FillLanes(n0 + p0, count, k0, width, panel);
        } else {
          w.Fill(n0 + p0, count, k0, width, panel);
        }
        const bool over = k0 + width == x.width;  // The chunk after this is of the next panel.
        const int64_t next_p0 = over ? p0 + kLanePanelRows : p0, next_k0 = over ? 0 : k0 + width;
        Next next = {};
        next.k0 = next_k0;
        next.count = Clamp(cols - next_p0, 0, kLanePanelRows);
        next.weights = w.PlaceOf(n0 + next_p0);
        if (next.weights.data == nullptr) next.count = 0;
        for (int64_t t = 0; t < tiles; ++t) {
          const auto tile = x.At(tile0 + t);
          const bool last = t + 1 == tiles;
          const auto following = x.At(tile0 + (last ? 0 : t + 1));
          const int64_t from = last ? next_k0 : k0;
          next.x = last && next_p0 >= cols ? nullptr : following.data + from * following.height;
          next.x_elements = following.height * Min(kLaneChunk<C>, x.width - from);
          WithVectors<kLaneVectors>(tile.height, [&](auto vectors) {
            LaneChunk<decltype(vectors)::value>(tile.data + k0 * tile.height, panel, n0 + p0, count,
                                                k0, width, next, t, tiles,
                                                sums + t * kLanePanelRows * kLaneTileRows);
          });
        }
      }
      for (int64_t t = 0; t < tiles; ++t) {
        HandOn<C>(sums + t * kLanePanelRows * kLaneTileRows, x.At(tile0 + t), p0, count, sink);
      }
    }
  }
};

// Calls sink(m, mv, n, nv, out, ld) for tiles [tile0, tile0 + tiles) and weight rows
// [n0, n0 + cols): out[i * ld + j] is the product of row m + i of the call and weight row
// n0 + n + j, for i < mv, j < nv <= kMaxTileCols.
template <typename C, typename Weights, typename Sink>
inline void Product(const PackedRows<C>& x, int64_t tile0, int64_t tiles, const Weights& w,
                    int64_t n0, int64_t cols, const Sink& sink) {
  const Products<C, Weights, Sink> products = {x, tile0, tiles, w, n0, cols, sink};
  const bool single = x.rows <= kFewRows;
  if (x.lanes) {
#if defined(__AMX_BF16__)
    if constexpr (kMatrixTiles<C>) {
      return MatrixProducts<C, Weights, Sink>{x, tile0, tiles, w, n0, cols, sink}.Run();
    }
#endif
    products.ByLanes();
  } else if (w.UsesPanel(single ? x.rows : tiles * kManyRows)) {
    products.FromPanels();
  } else if (single) {
    WithHeight(x.At(0).height, [&](auto height) {
      constexpr int kM = decltype(height)::value;
      products.template OneTile<kM, Weights::FewCols(kM)>();
    });
  } else {
    products.InPlace();
  }
}

// --- Weights that are stored as they are multiplied, or as bf16 that meets f32 ---

// out[m * N + n] = x[m] . w[n] over `width` columns of packed x.
template <int M, int N, typename C, typename W>
inline __attribute__((noinline)) void PlainTile(const C* x, const W* const* w, int64_t width,
                                                const Ahead<N>& ahead, float* out) {
  using Step = DotStep<C, W>;
  constexpr int64_t kStep = PackedRows<C>::kStep;
  constexpr auto kBytes = static_cast<int64_t>(sizeof(W));
  const Ahead<N> later = ahead;
  vf acc[kWholeSums<M * N>] = {};
  const W* ws[N];
  MLA_UNROLL
  for (int n = 0; n < N; ++n) ws[n] = w[n];
  const auto add = [&](int64_t i, const auto* b) __attribute__((always_inline)) {
    MLA_UNROLL
    for (int m = 0; m < M; ++m) {
      auto a = DotStep<C, C>::Get(x + i * M + m * kStep);
      if constexpr (N > 1) a = Held(a);
      MLA_UNROLL
      for (int n = 0; n < N; ++n) acc[m * N + n] = Step::Add(acc[m * N + n], a, b[n]);
    }
  };
  decltype(Step::Get(ws[0])) b[N];
  int64_t i = 0;
  for (; i + kStep <= width; i += kStep) {
    later.Ask(i * kBytes, kStep * kBytes);
    MLA_UNROLL
    for (int n = 0; n < N; ++n) {
      b[n] = Step::Get(ws[n] + i);
      if constexpr (M > 1) b[n] = Held(b[n]);
    }
    add(i, b);
  }
  if (i < width) {
    MLA_UNROLL
    for (int n = 0; n < N; ++n) b[n] = Step::GetPart(ws[n] + i, width - i);
    add(i, b);
  }
  LaneSums<kWholeSums<M * N>>(acc, out);
}

// As PlainTile, of rows j to j + N of a panel, none past `last`.
template <int M, int N, typename C>
inline void PanelTile(const C* x, const Panel<C>& panel, int64_t j, int64_t last, int64_t width,
                      float* out) {
  const C* w[N];
  for (int n = 0; n < N; ++n) w[n] = panel.Row(Min(j + n, last));
  PlainTile<M, N>(x, w, width, {}, out);
}

template <typename X, typename W>
struct PlainWeights {
  using C = typename ProductType<X, W>::T;
  using Constants = NoConstants;
  const W* data;  // (rows, k)
  int64_t k;

  static constexpr bool kScaled = false;
  static constexpr bool kOwnLanePanels = false;
  static constexpr int FewCols(int height) { return height == 1 ? 8 : (height == 8 ? 3 : kTileN); }
  static constexpr int ManyCols() { return kTileN; }
  // Copies pay for themselves sooner where they also save a conversion in every tile.
  bool UsesPanel(int64_t rows) const { return rows >= (sizeof(C) == sizeof(W) ? 48 : 16); }

  struct Rows {
    const W* data = nullptr;
    int64_t k = 0;
    MLA_INLINE void Ask(int64_t j, int64_t k0) const {
      AskFor(data + j * k + k0, kMatrixColumns * sizeof(W));
    }
    MLA_INLINE void AskScales(int64_t, int64_t) const {}
    int64_t Whole() const { return k / kMatrixColumns * kMatrixColumns; }
    MLA_INLINE void FillWhole(int64_t j, int64_t k0, NoConstants, C* dst) const {
      PackRow(data + j * k + k0, kMatrixColumns, kMatrixColumns, Order::kPlain, 1, dst);
    }
    void Fill(int64_t j, int64_t k0, C* dst) const {
      const int64_t n = Min(kMatrixColumns, k - k0);
      PackRow(data + j * k + k0, n, kMatrixColumns, Order::kPlain, 1, dst);
    }
  };
  Rows RowsAt(int64_t n, int64_t) const { return {data + n * k, k}; }
  WeightPlace PlaceOf(int64_t n) const {
    constexpr auto kBytes = static_cast<int64_t>(sizeof(W));
    return {data + n * k, k * kBytes, kAskColumns * kBytes};
  }

  template <int M, int N>
  void Few(const C* x, int64_t n, int64_t last, int64_t k0, int64_t width, float* out) const {
    const W* w[N];
    for (int j = 0; j < N; ++j) w[j] = data + Min(n + j, last) * k + k0;
    constexpr auto kBytes = static_cast<int64_t>(sizeof(W));
    const Ahead<N> ahead(data + (n + kRowsAhead) * k, k * kBytes, k0 * kBytes,
                         PackedRows<C>::kStep * kBytes, WholeRows<C>(M, k));
    PlainTile<M, N>(x, w, Min(width, k - k0), ahead, out);
  }

  void Fill(int64_t n, int64_t count, int64_t k0, int64_t width, const Panel<C>& panel) const {
    for (int64_t j = 0; j < count; ++j) {
      PackRow(data + (n + j) * k + k0, Min(width, k - k0), width, Order::kPlain, 1, panel.Row(j));
    }
  }

  template <int M, int N>
  void FromPanel(const C* x, const Panel<C>& panel, int64_t j, int64_t last, int64_t, int64_t,
                 int64_t width, float* out) const {
    PanelTile<M, N>(x, panel, j, last, width, out);
  }
};

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_PRODUCT_H_
