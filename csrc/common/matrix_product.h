// Products of packed rows with weight rows on the tiles of matrix_tile.h, for any number of rows.
#ifndef MLA_COMMON_MATRIX_PRODUCT_H_
#define MLA_COMMON_MATRIX_PRODUCT_H_

#include "common/panel.h"
#include "common/scratch.h"

namespace mla {
namespace MLA_ISA {
#if defined(__AMX_BF16__)

// Columns of a panel for many rows: the activations have room in the first-level cache.
constexpr int64_t kMatrixChunk = 256;

// How far ahead of their use the weights for a few rows are asked for.
constexpr int64_t kMatrixAhead = 2 * kMatrixColumns;

// As Products in product.h, with the same Weights.
template <typename C, typename Weights, typename Sink>
struct MatrixProducts {
  const PackedRows<C>& x;
  const int64_t tile0, tiles;
  const Weights& w;
  const int64_t n0, cols;
  const Sink& sink;

  using Rows = typename Weights::Rows;
  using Constants = typename Weights::Constants;

  // Columns [k0, k0 + width) of weight rows [p0, p0 + count), counted from n0.
  struct Piece {
    int64_t p0, count, k0, width;
  };

  // Adds the sums of `count` weight rows from n on, over columns that have the scales of column k.
  template <int V>
  void AddScaled(const float* part, int64_t n, int64_t count, int64_t k, float* to) const {
    const bool first = ScaleEnd(k) == ScaleEnd(0);
    float scale[kGroupRows];
    w.ReadScales(n, count, k, scale);
    for (int64_t j = 0; j < count; ++j) {
      MLA_UNROLL
      for (int v = 0; v < V; ++v) {
        const int64_t at = j * kLaneTileRows + v * kLanes;
        const vf before = first ? vf{} : Load(to + at);
        Store(to + at, MulAdd(Load(part + at), Splat(scale[j]), before));
      }
    }
  }

  // Where the sums that have the scales of column k end: also where a panel ends, so that no row's
  // depend on how many rows there are.
  int64_t ScaleEnd(int64_t k) const {
    if constexpr (Weights::kScaled) {
      return Min(w.ScaleEnd(k), (k / kMatrixChunk + 1) * kMatrixChunk);
    } else {
      return INT64_MAX;
    }
  }
  bool Starts(int64_t k) const { return k == 0 || ScaleEnd(k - 1) == k; }

  // A panel times a tile of rows, into or onto sums (weight rows, kLaneTileRows). ask() runs once a
  // step.
  template <int V, typename Ask>
  void Multiply(const C* x_chunk, int64_t height, const Panel<C>& panel, const Piece& piece,
                float* sums, float* part, const Ask& ask) const {
    for (int64_t n = 0; n < piece.count; n += kGroupRows) {
      float* to = sums + n * kLaneTileRows;
      const C* rows[kGroups] = {panel.Row(n), panel.Row(n + kTileSide)};
      if constexpr (!Weights::kScaled) {
        if (piece.k0 == 0) {
          ZeroSums<V>();
        } else {
          LoadSums<V>(to, kLaneTileRows);
        }
        MatrixSteps<V>(x_chunk, height, rows, panel.pitch, piece.width / kTileColumns, ask);
        StoreSums<V>(to, kLaneTileRows);
      } else {
        for (int64_t k = piece.k0, end; k < piece.k0 + piece.width; k = end) {
          end = Min(piece.k0 + piece.width, ScaleEnd(k));
          const int64_t from = k - piece.k0;
          const C* part_rows[kGroups] = {rows[0] + from, rows[1] + from};
          ZeroSums<V>();
          MatrixSteps<V>(x_chunk + from * height, height, part_rows, panel.pitch,
                         (end - k) / kTileColumns, ask);
          StoreSums<V>(part, kLaneTileRows);
          AddScaled<V>(part, n0 + piece.p0 + n, Min(kGroupRows, piece.count - n), k, to);
        }
      }
    }
  }

  // Decodes one piece of weights after the other for a tile of rows, a few rows at a time: columns
  // [k, k + kMatrixColumns) of kGroupRows weight rows, first along the columns. Into two buffers in
  // turn, so that one can be multiplied meanwhile.
  struct Filler {
    static constexpr int64_t kPitch = kMatrixColumns + kTileColumns;
    static constexpr int64_t kRowsAStep = kGroupRows / (kMatrixColumns / kTileColumns);

    const MatrixProducts& of;
    C* const buffers[2];
    int64_t n = 0, k = 0;
    int buffer = 0;
    Rows rows;
    // Of the piece from (n, k): its next row, how many it has, and the columns that are asked for
    // meanwhile: later ones of as many rows, or the first of the next group's.
    int64_t row = 0, count = 0, ahead = 0;

    Filler(const MatrixProducts& products, C* first, C* second)
        : of(products), buffers{first, second} {
      Turn();
      // Nobody has asked for these.
      for (int64_t i = 0; i < Min(kMatrixAhead, of.x.width); i += kMatrixColumns) {
        for (int64_t j = 0; j < count; ++j) rows.Ask(j, i);
      }
    }

    // To the piece from (n, k).
    void Turn() {
      row = 0;
      if (k == 0) {
        count = Clamp(of.cols - n, 0, kGroupRows);
        rows = of.w.RowsAt(of.n0 + n, count);
      }
      rows.AskScales(kGroupRows, k);
      ahead = k + kMatrixAhead;
      if (ahead >= of.x.width) {
        // Of a last group, which need not be whole, nothing is asked for: these are at hand.
        ahead = of.cols - n >= 2 * kGroupRows ? ahead + (kGroupRows - 1) * of.x.width : k;
      }
    }

    // The rows of a step.
    MLA_INLINE void Some(const Constants& constants) {
      const int64_t first = row, columns = k, next = ahead;
      row += kRowsAStep;
      if (row > count || k + kMatrixColumns > rows.Whole()) return Part(first);
      // A copy of what the stores into the buffer might change for all that the compiler knows.
      const Rows from = rows;
      C* to = buffers[buffer] + first * kPitch;
      MLA_UNROLL
      for (int64_t j = 0; j < kRowsAStep; ++j) {
        from.Ask(first + j, next);
        from.FillWhole(first + j, columns, constants, to + j * kPitch);
      }
    }

    // The same of fewer rows or columns.
    __attribute__((noinline)) void Part(int64_t first) {
      for (int64_t j = first; j < Min(count, row); ++j) {
        rows.Ask(j, ahead);
        rows.Fill(j, k, buffers[buffer] + j * kPitch);
      }
    }

    // The rest of a piece; returns it and turns to the next one.
    const C* Finish(const Constants& constants) {
      while (row < count) Some(constants);
      const C* piece = buffers[buffer];
      buffer ^= 1;
      k += kMatrixColumns;
      if (k >= of.x.width) {
        k = 0;
        n += kGroupRows;
      }
      Turn();
      return piece;
    }
  };

  // One tile of rows: two groups of weight rows at a time, whose sums stay in the tiles. The next
  // piece of weights is decoded beside the tiles' arithmetic.
  template <int V>
  void OneTile() const {
    constexpr int kSets = V == 1 ? 2 : 1;
    C* buffers[2];
    float *sums, *part;
    const auto carve = [&](void* base) {
      Carver carver(base);
      for (C*& buffer : buffers) buffer = carver.Take<C>(kGroupRows * Filler::kPitch);
      sums = carver.Take<float>(kGroupRows * kLaneTileRows);
      part = carver.Take<float>(kGroupRows * kLaneTileRows);
      return carver.used();
    };
    carve(Scratch(kPanelScratch, carve(nullptr)));
    const auto tile = x.At(tile0);
    const TileScope scope(Min(kLanes, tile.height));
    const Constants constants;
    Filler filler(*this, buffers[0], buffers[1]);
    int set = 0;  // The sums that grow.
    const auto with_set = [&](int which, const auto& f) {
      if (kSets == 2 && which == 1) return f(Constant<kSets - 1>());
      f(Constant<0>());
    };
    // Finished sums of weight rows from n on, over the columns up to k_end that have the scales of
    // column k. The other set, if there is one, has begun to grow before they are stored.
    struct {
      int64_t n, k, k_end;
      bool any = false;
    } finished;
    const auto store = [&]() {
      if (!finished.any) return;
      finished.any = false;
      float* to = Weights::kScaled ? part : sums;
      with_set((set + 1) % kSets,
               [&](auto s) { StoreSums<V, decltype(s)::value>(to, kLaneTileRows); });
      const int64_t n = finished.n, left = Min(kGroupRows, cols - n);
      if constexpr (Weights::kScaled) AddScaled<V>(part, n0 + n, left, finished.k, sums);
      if (finished.k_end == x.width) HandOn<C>(sums, tile, n, left, sink);
    };
    const C* next = filler.Finish(constants);
    for (int64_t n = 0; n < cols; n += kGroupRows) {
      for (int64_t k0 = 0; k0 < x.width; k0 += kMatrixColumns) {
        const int64_t end = Min(k0 + kMatrixColumns, x.width);
        const C* piece = next;
        for (int64_t k = k0, k_end; k < end; k = k_end) {
          k_end = Min(end, ScaleEnd(k));
          with_set(set, [&](auto s) {
            constexpr int kSet = decltype(s)::value;
            const C* group[kGroups] = {piece + (k - k0),
                                       piece + (k - k0) + kTileSide * Filler::kPitch};
            if (Starts(k)) ZeroSums<V, kSet>();
            MatrixSteps<V, kSet>(tile.data + k * tile.height, tile.height, group, Filler::kPitch,
                                 (k_end - k) / kTileColumns, [&]() { filler.Some(constants); });
          });
          store();
          if (k_end < x.width && !Starts(k_end)) continue;
          finished = {n, k, k_end, true};
          set = (set + 1) % kSets;
          if (kSets == 1) store();
        }
        next = filler.Finish(constants);
      }
    }
    store();
  }

  // Several tiles of rows share each panel.
  void ManyTiles() const {
    Panel<C> panel;
    float *sums, *part;
    constexpr int64_t kSums = kMatrixPanelRows * kLaneTileRows;
    const auto carve = [&](void* base) {
      Carver carver(base);
      panel = Panel<C>::Carve(&carver, kMatrixPanelRows, kMatrixChunk);
      sums = carver.Take<float>(tiles * kSums);
      part = carver.Take<float>(kGroupRows * kLaneTileRows);
      return carver.used();
    };
    carve(Scratch(kPanelScratch, carve(nullptr)));
    const TileScope scope(kTileSide);
    for (int64_t p0 = 0; p0 < cols; p0 += kMatrixPanelRows) {
      const int64_t count = Min(kMatrixPanelRows, cols - p0);
      const Rows rows = w.RowsAt(n0 + p0, count);
      for (int64_t k0 = 0; k0 < x.width; k0 += kMatrixChunk) {
        const Piece piece = {p0, count, k0, Min(kMatrixChunk, x.width - k0)};
        FillPanel(rows, piece, panel);
        for (int64_t k = 0; k < piece.width; k += kMatrixColumns) {
          rows.AskScales(kMatrixPanelRows, k0 + k);
        }
        // What comes next, in this panel or, after its last columns, in the next one.
        const bool wraps = k0 + kMatrixChunk >= x.width;
        const int64_t ahead = k0 + kMatrixChunk + (wraps ? (kMatrixPanelRows - 1) * x.width : 0);
        const int64_t asks = wraps ? Min(count, cols - p0 - kMatrixPanelRows) : count;
        const int64_t steps = tiles * CeilDiv(count, kGroupRows) * (piece.width / kTileColumns);
        const int64_t a_step = CeilDiv(count, steps);
        int64_t asked = 0;
        const auto ask = [&]() {
          for (const int64_t end = Min(asks, asked + a_step); asked < end; ++asked) {
            for (int64_t k = 0; k < kMatrixChunk; k += kMatrixColumns) rows.Ask(asked, ahead + k);
          }
        };
        for (int64_t t = 0; t < tiles; ++t) {
          const auto tile = x.At(tile0 + t);
          WithVectors<kLaneVectors>(tile.height, [&](auto vectors) {
            Multiply<decltype(vectors)::value>(tile.data + k0 * tile.height, tile.height, panel,
                                               piece, sums + t * kSums, part, ask);
          });
        }
      }
      for (int64_t t = 0; t < tiles; ++t) {
        HandOn<C>(sums + t * kSums, x.At(tile0 + t), p0, count, sink);
      }
    }
  }

  static void FillPanel(const Rows& rows, const Piece& piece, const Panel<C>& panel) {
    const Constants constants;
    for (int64_t j = 0; j < piece.count; ++j) {
      for (int64_t k = 0; k < piece.width; k += kMatrixColumns) {
        if (piece.k0 + k < rows.Whole()) {
          rows.FillWhole(j, piece.k0 + k, constants, panel.Row(j) + k);
        } else {
          rows.Fill(j, piece.k0 + k, panel.Row(j) + k);
        }
      }
    }
  }

  void Run() const {
    if (tiles > 1) return ManyTiles();
    WithVectors<kLaneVectors>(x.At(tile0).height,
                              [&](auto vectors) { OneTile<decltype(vectors)::value>(); });
  }
};

#endif  // __AMX_BF16__
}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_MATRIX_PRODUCT_H_
