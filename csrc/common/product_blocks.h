// A whole product of activations with a weight matrix, cut into tasks.
#ifndef MLA_COMMON_PRODUCT_BLOCKS_H_
#define MLA_COMMON_PRODUCT_BLOCKS_H_

#include "common/product.h"

namespace mla {
namespace MLA_ISA {

// Tasks a thread, so that a late one does not leave the others idle for long.
constexpr int64_t kTasksPerThread = 8;
constexpr int64_t kMaxTaskCols = 384;   // Weight rows a task of a few activations.
constexpr int64_t kMaxTaskRows = 576;   // Rows of activations a task.
constexpr int64_t kLeastTaskRows = 48;  // As few share a decoded panel.
// Of packed activations that tasks in a row share, each with other weights: they stay in a core's
// second-level cache.
constexpr int64_t kSharedBytes = int64_t{1} << 20;

// Rounds a tile of products into rows `ld_y` apart.
template <typename Y>
inline void StoreTile(const float* tile, int ld, int rows, int cols, Y* y, int64_t ld_y) {
  static_assert(kMaxDotTile % kLanes == 0, "tiles are whole vectors");
  if (cols == kLanes) {
    for (int i = 0; i < rows; ++i) Store(y + i * ld_y, Load(tile + i * ld));
    return;
  }
  alignas(64) Y rounded[kMaxTile];
  for (int64_t i = 0; i < rows * ld; i += kLanes) Store(rounded + i, Load(tile + i));
  for (int i = 0; i < rows; ++i) {
    if (cols == 4) {
      __builtin_memcpy(y + i * ld_y, rounded + i * ld, 4 * sizeof(Y));
    } else {
      for (int j = 0; j < cols; ++j) y[i * ld_y + j] = rounded[i * ld + j];
    }
  }
}

// All of x (rows, k), row major, times all n rows of `weights`, of `bytes` bytes each element.
// sink as that of Product, with n counted from the first weight row; tasks call it at once.
template <typename X, typename Weights, typename Sink>
inline void ProductBlocks(const X* x, int64_t rows, int64_t k, Packing packing,
                          const Weights& weights, int64_t n, double bytes, const Executor& executor,
                          const Sink& sink) {
  using C = typename Weights::C;
  PackedRows<C> packed = PackedRows<C>::Of(nullptr, rows, k, packing);
  packed.data = static_cast<C*>(Scratch(kCallScratch, packed.Bytes()));
  Pack(packed, k, packing.order, executor, [&](int64_t i) { return x + i * k; });

  const int64_t tasks = kTasksPerThread * executor.Threads();
  const bool few = rows <= (kMatrixTiles<C> && packed.lanes ? kLaneTileRows : kFewRows);
  const int64_t least = kMatrixTiles<C> ? 2 * kMaxTileCols : kMaxTileCols;
  const auto share = [&](int64_t most_tasks, int64_t some, int64_t most) {
    return Clamp(CeilDiv(n, most_tasks * some) * some, some, most);
  };
  const int64_t cols = packed.row_tiles ? share(4 * tasks, kRowTileCols, 2 * kRowTileCols)
                       : few            ? share(tasks, least, kMaxTaskCols)
                       : packed.lanes   ? kPackedPanelRows<C>
                                        : kPanelRows;
  const int64_t n_blocks = CeilDiv(n, cols);
  // Panels are decoded once a task, for as many activations as possible. Weights that are decoded
  // beside their products, for 48 rows at a time whatever a task has, go past the same activations
  // one after the other instead: the codes of all weights are fewer bytes.
  const bool weights_first = packed.row_tiles;
  const int64_t row_bytes = packed.width * static_cast<int64_t>(sizeof(C));
  const int64_t most_rows =
      weights_first ? Clamp(kSharedBytes / row_bytes, kLeastTaskRows, kMaxTaskRows) : kMaxTaskRows;
  const int64_t most =
      Clamp(packed.Tiles() * n_blocks / tasks, CeilDiv(kLeastTaskRows, packed.TileRows()),
            CeilDiv(most_rows, packed.TileRows()));
  const int64_t m_blocks = CeilDiv(packed.Tiles(), most);
  const int64_t tiles = CeilDiv(packed.Tiles(), m_blocks);
  const double work = static_cast<double>(n) * static_cast<double>(k);
  const double cost = work * (bytes / 20.0 + static_cast<double>(rows) / 100.0);
  ForEach(executor, n_blocks * m_blocks, cost, [&](int64_t task) {
    const int64_t n0 = (weights_first ? task % n_blocks : task / m_blocks) * cols;
    const int64_t tile0 = (weights_first ? task / n_blocks : task % m_blocks) * tiles;
    Product(packed, tile0, Min(tiles, packed.Tiles() - tile0), weights, n0, Min(cols, n - n0),
            [&](int64_t m, int mv, int64_t j, int nv, const float* tile, int ld) {
              sink(m, mv, n0 + j, nv, tile, ld);
            });
  });
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_PRODUCT_BLOCKS_H_
