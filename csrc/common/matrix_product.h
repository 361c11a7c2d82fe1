// Products of packed rows with weight rows on the tiles of matrix_tile.h, for any number of rows.
#ifndef MLA_COMMON_MATRIX_PRODUCT_H_
#define MLA_COMMON_MATRIX_PRODUCT_H_

#include <new>
#include <type_traits>

#include "common/panel.h"
#include "common/scratch.h"

namespace mla {
namespace MLA_ISA {
#if defined(__AMX_BF16__)

// Columns of a panel for many rows: the activations have room in the first-level cache.
constexpr int64_t kMatrixChunk = 256;

// How far ahead of their use the weights for a few rows are asked for.
constexpr int64_t kMatrixAhead = 4 * kMatrixColumns;

// As Products in product.h, with the same Weights.
template <typename C, typename Weights, typename Sink>
struct MatrixProducts {
  const PackedRows<C>& x;
  const int64_t tile0, tiles;
  const Weights& w;
  const int64_t n0, cols;
  const Sink& sink;

  using Row = typename Weights::Row;

  // Columns [k0, k0 + width) of weight rows [p0, p0 + count), counted from n0.
  struct Piece {
    int64_t p0, count, k0, width;
  };
  // Memory for what is known about some rows.
  template <int64_t n>
  using RowMemory = std::aligned_storage_t<sizeof(Row), alignof(Row)>[n];

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
    return Min(w.ScaleEnd(k), (k / kMatrixChunk + 1) * kMatrixChunk);
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

    const MatrixProducts& of;
    C* const buffers[2];
    int64_t n = 0, k = 0, row = 0;
    int buffer = 0;
    RowMemory<kGroupRows> memory = {};

    void Some(int64_t count) {
      auto* rows = reinterpret_cast<Row*>(memory);
      const int64_t left = of.cols - n, from = row;
      row = Min(kGroupRows, row + count);
      const int64_t to = Min(row, left);
      if (k == 0) {
        for (int64_t j = from; j < to; ++j) new (rows + j) Row(of.w.RowAt(of.n0 + n + j));
      }
      // What comes some columns later, or in the next group.
      const bool wraps = k + kMatrixAhead >= of.x.width;
      const int64_t ahead = k + kMatrixAhead + (wraps ? (kGroupRows - 1) * of.x.width : 0);
      for (int64_t j = from; j < to; ++j) {
        if (!wraps || j + kGroupRows < left) rows[j].Ask(ahead);
        rows[j].Fill(k, buffers[buffer] + j * kPitch);
      }
    }

    // The rest of a piece; returns it and turns to the next one.
    const C* Finish() {
      Some(kGroupRows);
      const C* piece = buffers[buffer];
      buffer ^= 1;
      row = 0;
      k += kMatrixColumns;
      if (k >= of.x.width) {
        k = 0;
        n += kGroupRows;
      }
      return piece;
    }
  };

  // One tile of rows: two groups of weight rows at a time, whose sums stay in the tiles. The next
  // piece of weights is decoded beside the tiles' arithmetic.
  template <int V>
  void OneTile() const {
    constexpr int64_t kRowsAStep = kGroupRows / (kMatrixColumns / kTileColumns);
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
    Filler filler = {*this, {buffers[0], buffers[1]}};
    const C* next = filler.Finish();
    for (int64_t n = 0; n < cols; n += kGroupRows) {
      const int64_t left = Min(kGroupRows, cols - n);
      for (int64_t k0 = 0; k0 < x.width; k0 += kMatrixColumns) {
        const int64_t end = Min(k0 + kMatrixColumns, x.width);
        const C* piece = next;
        const auto steps = [&](int64_t k, int64_t k_end) {
          const C* group[kGroups] = {piece + (k - k0),
                                     piece + (k - k0) + kTileSide * Filler::kPitch};
          MatrixSteps<V>(tile.data + k * tile.height, tile.height, group, Filler::kPitch,
                         (k_end - k) / kTileColumns, [&]() { filler.Some(kRowsAStep); });
        };
        if constexpr (!Weights::kScaled) {
          if (k0 == 0) ZeroSums<V>();
          steps(k0, end);
        } else {
          for (int64_t k = k0, k_end; k < end; k = k_end) {
            k_end = Min(end, ScaleEnd(k));
            if (Starts(k)) ZeroSums<V>();
            steps(k, k_end);
            if (k_end < x.width && !Starts(k_end)) continue;
            StoreSums<V>(part, kLaneTileRows);
            AddScaled<V>(part, n0 + n, left, k, sums);
          }
        }
        next = filler.Finish();
      }
      if constexpr (!Weights::kScaled) StoreSums<V>(sums, kLaneTileRows);
      HandOn<C>(sums, tile, n, left, sink);
    }
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
    RowMemory<kMatrixPanelRows> row_memory;
    auto* rows = reinterpret_cast<Row*>(row_memory);
    const TileScope scope(kTileSide);
    for (int64_t p0 = 0; p0 < cols; p0 += kMatrixPanelRows) {
      const int64_t count = Min(kMatrixPanelRows, cols - p0);
      for (int64_t j = 0; j < count; ++j) new (rows + j) Row(w.RowAt(n0 + p0 + j));
      for (int64_t k0 = 0; k0 < x.width; k0 += kMatrixChunk) {
        const Piece piece = {p0, count, k0, Min(kMatrixChunk, x.width - k0)};
        for (int64_t j = 0; j < count; ++j) {
          for (int64_t k = 0; k < piece.width; k += kMatrixColumns) {
            rows[j].Fill(k0 + k, panel.Row(j) + k);
          }
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
            for (int64_t k = 0; k < kMatrixChunk; k += kMatrixColumns) rows[asked].Ask(ahead + k);
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
