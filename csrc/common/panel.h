// Panels: weight rows decoded or copied next to the core, and the sums of the products that take
// them with rows of activations across the lanes.
#ifndef MLA_COMMON_PANEL_H_
#define MLA_COMMON_PANEL_H_

#include "common/packed_rows.h"

namespace mla {
namespace MLA_ISA {

// The most weight rows of a tile of products.
constexpr int kMaxTileCols = kLanes > 8 ? kLanes : 8;
constexpr int64_t kMaxDotTile = 32;
constexpr int64_t kMaxTile = Max64(kMaxDotTile, kLanes* kLanes);

// Weight rows of a panel for rows across the lanes.
constexpr int64_t kLanePanelRows = 96;
constexpr int64_t kMatrixPanelRows = 192;
template <typename C>
constexpr int64_t kPackedPanelRows = kMatrixTiles<C> ? kMatrixPanelRows : kLanePanelRows;

// Weight rows in the vnni layout that a task takes at a time, and vnni_product.h for a few rows.
constexpr int64_t kRowTileCols = 96;

// Columns of the pieces that matrix_product.h decodes for a few rows.
constexpr int64_t kMatrixColumns = 128;

// Inlined, as its callers must be: GCC takes a function that only asks for one without effect, and
// drops its calls.
MLA_INLINE void AskFor(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i, 0, 2);
}

// What a tile of N weight rows asks for while it multiplies a chunk of them: as much of later rows,
// piece by piece. Of long rows, of each by itself, since what decides is how many places of memory
// are read at once; of short ones in the order of memory, if that is the order of chunks.
template <int N>
class Ahead {
 public:
  Ahead() = default;  // Nothing.
  // `first`: the first of the later rows, of which `skipped` bytes come before the chunk.
  // `piece`: bytes that are asked for of one row at a time. `whole_rows`: the next chunk is of the
  // same rows.
  Ahead(const void* first, int64_t row_bytes, int64_t skipped, int64_t piece, bool whole_rows) {
    constexpr int64_t kLong = 2048;
    const bool by_rows = row_bytes >= kLong || !whole_rows;
    scale_ = by_rows ? 1 : N;
    pitch_ = by_rows ? row_bytes : piece;
    at_ = static_cast<const char*>(first) + skipped * scale_;
  }

  // For the rows' bytes [from, from + bytes) of the chunk.
  MLA_INLINE void Ask(int64_t from, int64_t bytes) const {
    if (at_ == nullptr) return;
    MLA_UNROLL
    for (int n = 0; n < N; ++n) AskFor(at_ + from * scale_ + n * pitch_, bytes);
  }

 private:
  const char* at_ = nullptr;
  int64_t scale_ = 0, pitch_ = 0;
};

struct NoConstants {};

// Where weight rows lie that will be decoded or copied: what is asked for before. Nothing by
// default.
struct WeightPlace {
  const void* data = nullptr;
  int64_t pitch = 0;  // Bytes of a row.
  int64_t bytes = 0;  // Of kAskColumns columns.

  // Asks for columns [column, column + kAskColumns) of row j: for a line once, beside the first of
  // its pieces that begins in it.
  MLA_INLINE void Ask(int64_t j, int64_t column) const {
    const char* p = static_cast<const char*>(data) + j * pitch + column / kAskColumns * bytes;
    if (static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) % 64) < bytes) AskFor(p, bytes);
  }
};

// Weight rows of one chunk, decoded.
template <typename C>
struct Panel {
  C* rows;
  int64_t pitch;

  C* Row(int64_t j) const { return rows + j * pitch; }
  // Rows a multiple of 4096 bytes apart would evict each other.
  static Panel Carve(Carver* carver, int64_t rows, int64_t columns) {
    const int64_t pitch = columns + 64 / static_cast<int64_t>(sizeof(C));
    return {carver->Take<C>(rows * pitch), pitch};
  }
};

// Hands a panel's sums with one tile of rows to the sink: (weight rows, kLaneTileRows), of which
// the first `count` are those from weight row n0 on.
template <typename C, typename Sink>
inline void HandOn(const float* sums, const typename PackedRows<C>::Tile& tile, int64_t n0,
                   int64_t count, const Sink& sink) {
  alignas(64) float out[kMaxTile];
  for (int64_t m = 0; m < tile.rows; m += kLanes) {
    const int rows = static_cast<int>(Min(kLanes, tile.rows - m));
    for (int64_t n = 0; n < count; n += kLanes) {
      const float* from = sums + n * kLaneTileRows + m;
      if (rows == 1) {
        for (int j = 0; j < kLanes; ++j) out[j] = from[j * kLaneTileRows];
      } else {
        LanesToRows(from, kLaneTileRows, out);
      }
      sink(tile.row0 + m, rows, n0 + n, static_cast<int>(Min(kLanes, count - n)), out, kLanes);
    }
  }
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_PANEL_H_
