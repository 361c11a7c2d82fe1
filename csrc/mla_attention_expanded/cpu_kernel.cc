// Expanded attention: one head and a tile of kTileTokens queries a task. The head's keys and values
// are copied split by split into compact rows of what products multiply: in place they lie a power
// of two apart, where they would evict each other from the caches. Memory stays linear in the
// number of tokens.
#include "common/attention_core.h"
#include "common/bfloat16.h"
#include "common/scratch.h"
#include "common/sequences.h"
#include "common/tasks.h"
#include "mla_attention_expanded/kernel.h"

namespace mla {
namespace MLA_ISA {
namespace {

constexpr int64_t kTileTokens = 256;
constexpr int64_t kStageAhead = 12;  // Keys between one that is staged and those asked for.
static_assert(kSplitKeys % kTileTokens == 0,
              "every row of a tile sees a key of each of its splits");
static_assert(kTileTokens % kAttendRows == 0, "whole passes");

struct Tile {
  int64_t token0;  // First token of the sequence.
  int64_t begin, end;
};

template <typename T, typename W>
struct TaskMemory {
  const W* k[kSplitKeys];
  const W* v[kSplitKeys];
  const T* qa[kTileTokens];
  const T* qb[kTileTokens];
  int32_t visible[kTileTokens];
  RowState state[kTileTokens];
  RowState part[kTileTokens];  // Of one split.
};

template <typename T>
struct Attention {
  using W = typename ProductType<T, T>::T;
  const ExpandedAttentionArgs& args;

  // Fills `tiles` (or only counts, if null) and clears the rows that no sequence owns. The tiles
  // of a sequence come last first: those see the most keys and are best started early.
  int64_t Plan(Tile* tiles) const {
    int64_t count = 0, end = 0;
    const auto clear = [&](int64_t from, int64_t to) {
      if (tiles == nullptr) return;
      for (int64_t row = from * args.heads; row < to * args.heads; ++row) {
        FillRow(args.v, 0.0f, -__builtin_inff(), static_cast<T*>(args.out) + row * args.v,
                args.lse + row);
      }
    };
    for (int64_t s = 0; s < args.sequences; ++s) {
      const TokenRange range = SequenceRange(args.query_start_loc, s, end, args.tokens);
      clear(end, range.begin);
      end = range.end;
      const int64_t n = CeilDiv(range.end - range.begin, kTileTokens);
      for (int64_t i = n - 1; i >= 0; --i) {
        if (tiles != nullptr) {
          const int64_t begin = range.begin + i * kTileTokens;
          tiles[count] = {range.begin, begin, Min(range.end, begin + kTileTokens)};
        }
        ++count;
      }
    }
    clear(end, args.tokens);
    return count;
  }

  int64_t kv_width() const { return args.nope + args.v; }
  int64_t qk_width() const { return args.nope + args.rope; }

  // Keys and values of a head, copied when the scores come to them: side by side, as what products
  // multiply.
  struct StagedKeys {
    const Attention& attention;
    int64_t token0, count, head;
    W* staged;
    int64_t done = 0;

    const T* Row(int64_t j) const {
      const auto* kv = static_cast<const T*>(attention.args.kv);
      return kv + ((token0 + j) * attention.args.heads + head) * attention.kv_width();
    }
    bool Far(int64_t j) const { return j >= done; }
    void Ready(int64_t n) {
      const ExpandedAttentionArgs& args = attention.args;
      for (; done < n; ++done) {
        const T* kv = Row(done);
        const T* row = static_cast<const T*>(args.rows) + (token0 + done + 1) * args.row_width;
        W* to = staged + done * (attention.qk_width() + args.v);
        ConvertRow(kv, args.nope, to);
        ConvertRow(row - args.rope, args.rope, to + args.nope);
        ConvertRow(kv + args.nope, args.v, to + attention.qk_width());
        if constexpr (!kMatrixTiles<W>) AskForValue(Min(done + kStageAhead, count - 1));
      }
    }
    // For what is left of a value by those who ask for keys ahead: they do so as far as keys go.
    // Before tiles all keys are copied at once, which asking made no faster.
    MLA_INLINE void AskForValue(int64_t j) const {
      constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
      for (int64_t c = attention.qk_width(); c < attention.kv_width(); c += kLine) {
        __builtin_prefetch(Row(j) + c);
      }
    }
  };

  void RunTile(const Tile& tile, int64_t head) const {
    AttendScratch<T, W> attend;
    TaskMemory<T, W>* memory;
    W* staged;
    float *acc, *run;
    const auto carve = [&](void* base) {
      Carver carver(base);
      attend = AttendScratch<T, W>::Carve(&carver, kTileTokens, args.nope, args.rope);
      memory = carver.Take<TaskMemory<T, W>>(1);
      staged = carver.Take<W>(kSplitKeys * (qk_width() + args.v));
      acc = carver.Take<float>(kTileTokens * args.v);
      run = carver.Take<float>(kTileTokens * args.v);
      return carver.used();
    };
    carve(Scratch(kTaskScratch, carve(nullptr)));
    const int64_t rows = tile.end - tile.begin;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t th = (tile.begin + r) * args.heads + head;
      memory->qa[r] = static_cast<const T*>(args.q) + th * args.q_width;
      memory->qb[r] = static_cast<const T*>(args.q_rope) + th * args.rope;
    }
    const int64_t keys = tile.end - tile.token0;
    for (int64_t begin = 0; begin < keys; begin += kSplitKeys) {
      const int64_t count = Min(kSplitKeys, keys - begin);
      for (int64_t j = 0; j < count; ++j) {
        memory->k[j] = staged + j * (qk_width() + args.v);
        memory->v[j] = memory->k[j] + qk_width();
      }
      StagedKeys source = {*this, tile.token0 + begin, count, head, staged};
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t sees = tile.begin + r - tile.token0 + 1;
        memory->visible[r] = static_cast<int32_t>(Clamp(sees - begin, 0, count));
      }
      const float scale = args.softmax_scale * kLog2E;
      const Keys<W> k = {memory->k, memory->v, args.nope, args.rope, args.v, scale, scale};
      RowState* state = begin == 0 ? memory->state : memory->part;
      float* to = begin == 0 ? run : acc;
      AttendSplit<false>(memory->qa, memory->qb, rows, memory->visible, k, &source, attend, state,
                         to);
      for (int64_t r = 0; r < rows && begin > 0; ++r) {
        MergeRow(state[r], acc + r * args.v, args.v, memory->state + r, run + r * args.v);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t th = (tile.begin + r) * args.heads + head;
      FinishRow(memory->state[r], run + r * args.v, args.v, 1.0f,
                static_cast<T*>(args.out) + th * args.v, args.lse + th);
    }
  }

  void Run(const Executor& executor) const {
    const int64_t count = Plan(nullptr);
    auto* tiles =
        static_cast<Tile*>(Scratch(kCallScratch, (count + 1) * static_cast<int64_t>(sizeof(Tile))));
    Plan(tiles);
    double cost = 0;
    for (int64_t i = 0; i < count; ++i) {
      cost += static_cast<double>((tiles[i].end - tiles[i].begin) * args.heads) *
              static_cast<double>((tiles[i].end - tiles[i].token0) * (kv_width() + args.rope)) /
              100.0;
    }
    ForEach(executor, count * args.heads, cost,
            [&](int64_t task) { RunTile(tiles[task / args.heads], task % args.heads); });
  }
};

}  // namespace

void ExpandedAttention(const ExpandedAttentionArgs& args, const Executor& executor) {
  if (args.tokens == 0 || args.heads == 0) return;
  if (args.io_type == DType::kF32) {
    Attention<float>{args}.Run(executor);
  } else {
    Attention<bf16>{args}.Run(executor);
  }
}

}  // namespace MLA_ISA
}  // namespace mla
