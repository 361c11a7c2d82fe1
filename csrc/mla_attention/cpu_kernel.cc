// Paged latent attention. A query row is one head of one token; at most kTileRows of them, all of
// one sequence, make a tile. With many tiles a task takes a tile through all its key splits; with
// few (decode) every split is a task of its own and a second pass merges them in order. Both ways
// do the same arithmetic. Keys that are not of the type which products multiply are converted once
// a tile and split.
#include <type_traits>

#include "common/attention_core.h"
#include "common/bfloat16.h"
#include "common/float8.h"
#include "common/scratch.h"
#include "common/sequences.h"
#include "common/tasks.h"
#include "mla_attention/kernel.h"

namespace mla {
namespace MLA_ISA {
namespace {

// Rows of a tile share the keys that a split reads; fewer of them make more tasks of little work.
// Whole passes of attention_core.h, so that a row is computed the same in either.
constexpr int64_t kTileRows = 128;
constexpr int64_t kSmallTileRows = 64;
static_assert(kTileRows % kAttendRows == 0 && kSmallTileRows % kAttendRows == 0, "whole passes");
constexpr int64_t kTasksPerThread = 4;
// Partial results of separate splits may take this much; beyond it tiles keep to themselves.
constexpr int64_t kMaxPartialBytes = int64_t{128} << 20;

struct Tile {
  int64_t sequence;
  int64_t row0, rows;     // Query rows: token * heads + head.
  int64_t token0, first;  // First token of the sequence; keys that its first query sees.
  int64_t keys;           // Length of the sequence.
  int64_t bad_key;        // First key on a page that does not exist; -1: the table has too few.
  int64_t splits;         // Key splits that some row of the tile sees.
  int64_t partial;        // Number of (tile, split) pairs before this tile.
};

// Keys that query row `row` sees.
int64_t Visible(const MlaAttentionArgs& args, const Tile& tile, int64_t row) {
  const int64_t i = row / args.heads - tile.token0;
  return Clamp(args.cached_only ? tile.first : tile.first + 1 + i, 0, tile.keys);
}

// The pool's number of page `id` of the layer; -1: there is no such page, or no such layer.
int64_t PageOfPool(const MlaAttentionArgs& args, int64_t id) {
  const int64_t layer = *args.layer;
  const bool exists = id >= 0 && id < args.pages && layer >= 0 && layer < args.layers;
  return exists ? layer * args.pages + id : -1;
}

// First key whose page id is out of range, or a number past every key; -1 where the sequence is
// longer than its row of the table, so that no number of keys that a query sees is right.
int64_t FirstBadKey(const MlaAttentionArgs& args, int64_t sequence, int64_t keys) {
  if (args.seq_lens[sequence] > keys) return -1;
  const int32_t* table = args.page_table + sequence * args.max_pages;
  for (int64_t p = 0; p * args.page_size < keys; ++p) {
    if (PageOfPool(args, table[p]) < 0) return p * args.page_size;
  }
  return INT64_MAX;
}

// Fills `tiles` of at most `tile_rows` rows (or only counts, if null) and clears the rows that no
// sequence owns.
template <typename Y>
int64_t PlanTiles(const MlaAttentionArgs& args, int64_t tile_rows, Tile* tiles) {
  int64_t count = 0, partial = 0, end = 0;
  const auto clear = [&](int64_t from, int64_t to) {
    if (tiles == nullptr) return;
    for (int64_t row = from * args.heads; row < to * args.heads; ++row) {
      FillRow(args.rank, 0.0f, -__builtin_inff(), static_cast<Y*>(args.out) + row * args.rank,
              args.lse + row);
    }
  };
  for (int64_t s = 0; s < args.sequences; ++s) {
    const TokenRange range = SequenceRange(args.query_start_loc, s, end, args.tokens);
    clear(end, range.begin);
    end = range.end;
    if (range.begin == range.end) continue;
    const int64_t keys = Clamp(args.seq_lens[s], 0, args.max_pages * args.page_size);
    const int64_t bad_key = tiles == nullptr ? 0 : FirstBadKey(args, s, keys);
    const int64_t last = range.end * args.heads;
    for (int64_t row = range.begin * args.heads; row < last; row += tile_rows) {
      if (tiles != nullptr) {
        Tile& tile = tiles[count];
        tile = {s,
                row,
                Min(tile_rows, last - row),
                range.begin,
                keys - (range.end - range.begin),
                keys,
                bad_key,
                0,
                partial};
        tile.splits = CeilDiv(Visible(args, tile, row + tile.rows - 1), kSplitKeys);
        partial += tile.splits;
      }
      ++count;
    }
  }
  clear(end, args.tokens);
  return count;
}

// Results of the pairs of a tile and a split: the states of a tile's rows, then their weighted
// values.
struct Partials {
  int64_t rows, width;  // Of every pair.
  float* data = nullptr;

  int64_t Floats() const {
    return rows * (static_cast<int64_t>(sizeof(RowState) / sizeof(float)) + width);
  }
  RowState* States(int64_t pair) const {
    return reinterpret_cast<RowState*>(data + pair * Floats());
  }
  float* Values(int64_t pair) const { return data + (pair + 1) * Floats() - rows * width; }
};

// What a task works with.
template <typename X, typename Cache, typename W>
struct TaskMemory {
  static constexpr bool kStages = !std::is_same_v<Cache, W>;

  AttendScratch<X, W> attend;
  const Cache** rows;  // Of the cache, the keys of a split.
  const X** qa;        // Rows of a tile.
  const X** qb;
  int32_t* visible;
  Cache* zeros;    // One row.
  const W** keys;  // Staged: in another type than the cache's.
  W* staged;
  bf16* decoded;  // One key of FP8.

  static TaskMemory Carve(Carver* carver, const MlaAttentionArgs& args) {
    const int64_t width = args.rank + args.rope;
    TaskMemory m;
    m.attend = AttendScratch<X, W>::Carve(carver, kTileRows, args.rank, args.rope);
    m.rows = carver->Take<const Cache*>(kSplitKeys);
    m.qa = carver->Take<const X*>(kTileRows);
    m.qb = carver->Take<const X*>(kTileRows);
    m.visible = carver->Take<int32_t>(kTileRows);
    m.zeros = carver->Take<Cache>(width);
    m.keys = carver->Take<const W*>(kStages ? kSplitKeys : 0);
    m.staged = carver->Take<W>(kStages ? kSplitKeys * width : 0);
    m.decoded = carver->Take<bf16>(kStages ? width : 0);
    return m;
  }
};

// One key of the cache as what products multiply. `decoded`: as many elements.
template <typename Cache, typename W>
inline void Stage(const Cache* key, int64_t width, bf16* decoded, W* to) {
  if constexpr (!std::is_same_v<Cache, f8e4m3fn>) {
    ConvertRow(key, width, to);
  } else if constexpr (std::is_same_v<W, bf16>) {
    DecodeF8Row(key, width, to);
  } else {
    DecodeF8Row(key, width, decoded);
    ConvertRow(decoded, width, to);
  }
}

// Keys of another type than what products multiply, converted when the scores come to them.
template <typename X, typename Cache, typename W>
class StagedKeys {
 public:
  StagedKeys(const TaskMemory<X, Cache, W>& memory, int64_t width, int64_t count)
      : memory_(memory), width_(width) {
    for (int64_t j = 0; j < count; ++j) memory.keys[j] = memory.staged + j * width;
  }
  void Ready(int64_t n) {
    for (; done_ < n; ++done_) {
      Stage(memory_.rows[done_], width_, memory_.decoded, memory_.staged + done_ * width_);
    }
  }
  const Cache* Row(int64_t j) const { return memory_.rows[j]; }
  bool Far(int64_t j) const { return j >= done_; }

 private:
  const TaskMemory<X, Cache, W>& memory_;
  int64_t width_, done_ = 0;
};

// Sets the pointers to rows [split * kSplitKeys, + count) of the cache. Keys on pages that do not
// exist point to a row of zeros: the queries that see them are overwritten with NaN at the end.
template <typename X, typename Cache, typename W>
void GatherKeys(const MlaAttentionArgs& args, const Tile& tile, int64_t split, int64_t count,
                const TaskMemory<X, Cache, W>& memory) {
  const int64_t width = args.rank + args.rope;
  const int32_t* table = args.page_table + tile.sequence * args.max_pages;
  const int64_t begin = split * kSplitKeys;
  for (int64_t j = 0; j < count;) {
    const int64_t page = (begin + j) / args.page_size, offset = (begin + j) % args.page_size;
    const int64_t number = PageOfPool(args, table[page]);
    const bool good = number >= 0;
    const int64_t end = Min(count, j + args.page_size - offset);
    const int64_t element = good ? (number * args.page_size + offset) * width : 0;
    const auto* key = static_cast<const Cache*>(args.cache) + element;
    for (; j < end; ++j, key += width) memory.rows[j] = good ? key : memory.zeros;
  }
}

// What elements of a cache are before they are multiplied.
template <typename Cache>
using Element = std::conditional_t<std::is_same_v<Cache, f8e4m3fn>, bf16, Cache>;

// Of a cache of such elements; kDots: with scores by dot products.
template <typename X, typename Cache, bool kDots>
struct Attention {
  static constexpr bool kFloat8 = std::is_same_v<Cache, f8e4m3fn>;
  using W = std::conditional_t<kDots, Element<Cache>,
                               typename ProductType<X, Element<Cache>>::T>;  // Keys in products.
  using Memory = TaskMemory<X, Cache, W>;

  const MlaAttentionArgs& args;

  int64_t width() const { return args.rank + args.rope; }
  float value_scale() const { return kFloat8 ? args.scales[0] : 1.0f; }

  // Attends all rows of a tile over one split.
  void Split(const Tile& tile, int64_t split, const Memory& memory, RowState* state,
             float* acc) const {
    const int64_t begin = split * kSplitKeys;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t row = tile.row0 + r;
      memory.qa[r] = static_cast<const X*>(args.q_latent) + row * args.rank;
      memory.qb[r] = static_cast<const X*>(args.q_rope) + row * args.rope;
      memory.visible[r] =
          static_cast<int32_t>(Clamp(Visible(args, tile, row) - begin, 0, kSplitKeys));
    }
    // Later rows never see fewer keys, so the last row tells how many are needed.
    const int64_t count = memory.visible[tile.rows - 1];
    GatherKeys(args, tile, split, count, memory);
    const float scale = args.softmax_scale * kLog2E;
    const auto attend = [&](const W* const* k, auto source) {
      const Keys<W> keys = {k,
                            k,
                            args.rank,
                            args.rope,
                            args.rank,
                            kFloat8 ? scale * args.scales[0] : scale,
                            kFloat8 ? scale * args.scales[1] : scale};
      AttendSplit<kDots>(memory.qa, memory.qb, tile.rows, memory.visible, keys, &source,
                         memory.attend, state, acc);
    };
    if constexpr (Memory::kStages) {
      attend(memory.keys, StagedKeys<X, Cache, W>(memory, width(), count));
    } else {
      attend(memory.rows, KeysInPlace<W>{memory.rows});
    }
  }

  void Finish(const Tile& tile, int64_t r, const RowState& state, const float* acc) const {
    const int64_t row = tile.row0 + r;
    X* out = static_cast<X*>(args.out) + row * args.rank;
    const int64_t visible = Visible(args, tile, row);
    if (visible > tile.bad_key) {
      FillRow(args.rank, __builtin_nanf(""), __builtin_nanf(""), out, args.lse + row);
    } else if (visible == 0) {
      FillRow(args.rank, 0.0f, -__builtin_inff(), out, args.lse + row);
    } else {
      FinishRow(state, acc, args.rank, value_scale(), out, args.lse + row);
    }
  }

  // A tile through all its splits, merging as it goes.
  void WholeTile(const Tile& tile) const {
    Memory memory;
    float *acc, *run;
    const auto carve = [&](void* base) {
      Carver carver(base);
      memory = Memory::Carve(&carver, args);
      acc = carver.Take<float>(kTileRows * args.rank);
      run = carver.Take<float>(kTileRows * args.rank);
      return carver.used();
    };
    carve(Scratch(kTaskScratch, carve(nullptr)));
    __builtin_memset(memory.zeros, 0, static_cast<size_t>(width()) * sizeof(Cache));
    RowState state[kTileRows] = {}, part[kTileRows];
    for (int64_t split = 0; split < tile.splits; ++split) {
      if (split == 0) {
        Split(tile, split, memory, state, run);
        continue;
      }
      Split(tile, split, memory, part, acc);
      for (int64_t r = 0; r < tile.rows; ++r) {
        if (memory.visible[r] == 0) continue;
        MergeRow(part[r], acc + r * args.rank, args.rank, state + r, run + r * args.rank);
      }
    }
    for (int64_t r = 0; r < tile.rows; ++r) {
      Finish(tile, r, state[r], run + r * args.rank);
    }
  }

  // A tile's pair with one split.
  void OnePair(const Tile& tile, int64_t pair, const Partials& partials) const {
    Memory memory;
    const auto carve = [&](void* base) {
      Carver carver(base);
      memory = Memory::Carve(&carver, args);
      return carver.used();
    };
    carve(Scratch(kTaskScratch, carve(nullptr)));
    __builtin_memset(memory.zeros, 0, static_cast<size_t>(width()) * sizeof(Cache));
    Split(tile, pair - tile.partial, memory, partials.States(pair), partials.Values(pair));
  }

  // Merges row r of a tile over its splits, into the first split's memory.
  void MergeTileRow(const Tile& tile, int64_t r, const Partials& partials) const {
    const int64_t at = r * args.rank;
    RowState state = partials.States(tile.partial)[r];
    float* run = partials.Values(tile.partial) + at;
    const int64_t visible = Visible(args, tile, tile.row0 + r);
    for (int64_t split = 1; split * kSplitKeys < visible; ++split) {
      const int64_t pair = tile.partial + split;
      MergeRow(partials.States(pair)[r], partials.Values(pair) + at, args.rank, &state, run);
    }
    Finish(tile, r, state, run);
  }

  // Pairs of a tile and a split.
  static int64_t Pairs(const Tile* tiles, int64_t count) {
    return count == 0 ? 0 : tiles[count - 1].partial + tiles[count - 1].splits;
  }

  void Run(const Executor& executor) const {
    const int64_t most = PlanTiles<X>(args, kSmallTileRows, nullptr);
    auto* tiles =
        static_cast<Tile*>(Scratch(kCallScratch, (most + 1) * static_cast<int64_t>(sizeof(Tile))));
    int64_t count = 0;
    for (const int64_t tile_rows : {kTileRows, kSmallTileRows}) {
      count = PlanTiles<X>(args, tile_rows, tiles);
      if (count > 0 && Pairs(tiles, count) >= kTasksPerThread * executor.Threads()) break;
    }
    double cost = 0;
    for (int64_t i = 0; i < count; ++i) {
      cost += static_cast<double>(tiles[i].rows * tiles[i].splits) *
              static_cast<double>(kSplitKeys * width()) / 50.0;
    }
    const int64_t pairs = Pairs(tiles, count);
    Partials partials = {0, args.rank};
    for (int64_t i = 0; i < count; ++i) partials.rows = Max64(partials.rows, tiles[i].rows);
    partials.rows = CeilDiv(partials.rows, kAttendRows) * kAttendRows;
    const int64_t bytes = pairs * partials.Floats() * static_cast<int64_t>(sizeof(float));
    if (pairs <= count || executor.Threads() == 1 || count >= 8 * executor.Threads() ||
        bytes > kMaxPartialBytes) {
      ForEach(executor, count, cost, [&](int64_t i) { WholeTile(tiles[i]); });
      return;
    }
    partials.data = static_cast<float*>(Scratch(kCallScratch2, bytes));
    ForEach(executor, pairs, cost, [&](int64_t pair) {
      int64_t i = 0;
      while (pair >= tiles[i].partial + tiles[i].splits) ++i;  // Few tiles, or we were not here.
      OnePair(tiles[i], pair, partials);
    });
    constexpr int64_t kMergeRows = 4;
    constexpr int64_t kPerTile = kTileRows / kMergeRows;
    const double merge_cost = static_cast<double>(bytes) / 20.0;
    ForEach(executor, count * kPerTile, merge_cost, [&](int64_t task) {
      const Tile& tile = tiles[task / kPerTile];
      const int64_t r0 = task % kPerTile * kMergeRows;
      for (int64_t r = r0; r < Min(tile.rows, r0 + kMergeRows); ++r) {
        MergeTileRow(tile, r, partials);
      }
    });
  }
};

template <typename X, typename Cache>
void RunForCache(const MlaAttentionArgs& args, const Executor& executor) {
  if constexpr (kTakesDots<X, Element<Cache>>) {
    // By heads alone, whatever tokens a call has.
    if (args.heads <= kLanes) return Attention<X, Cache, true>{args}.Run(executor);
  }
  Attention<X, Cache, false>{args}.Run(executor);
}

template <typename X>
void RunForIo(const MlaAttentionArgs& args, const Executor& executor) {
  switch (args.cache_type) {
    case DType::kF32:
      return RunForCache<X, float>(args, executor);
    case DType::kBF16:
      return RunForCache<X, bf16>(args, executor);
    case DType::kF8E4M3FN:
      return RunForCache<X, f8e4m3fn>(args, executor);
    case DType::kF8E4M3FNUZ:
    case DType::kU8:
      return;  // No cache holds them; the binding refuses it.
  }
}

}  // namespace

void MlaAttention(const MlaAttentionArgs& args, const Executor& executor) {
  if (args.tokens == 0 || args.heads == 0) return;
  if (args.io_type == DType::kF32) {
    RunForIo<float>(args, executor);
  } else {
    RunForIo<bf16>(args, executor);
  }
}

}  // namespace MLA_ISA
}  // namespace mla
