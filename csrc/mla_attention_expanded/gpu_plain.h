// Attention of a tile of queries of one head for any width: the way for float32, where products
// stay exact, and for widths that the matrix-core kernel is not made for.
#ifndef MLA_MLA_ATTENTION_EXPANDED_GPU_PLAIN_H_
#define MLA_MLA_ATTENTION_EXPANDED_GPU_PLAIN_H_

#include "mla_attention_expanded/gpu_plan.h"

namespace mla {
namespace gpu {

template <typename T>
struct PlainExpanded {
  static constexpr int kRows = kPlainRows, kKeys = 32, kDepth = 32;  // Of a step.
  static constexpr int kStride = kDepth + 1;
  // A thread has the scores of one row and every kRowThreads-th key, and these columns of its
  // output.
  static constexpr int kRowThreads = kPlainThreads / kRows;
  static constexpr int kScores = kKeys / kRowThreads;
  static constexpr int kColumns = kPlainColumns / kRowThreads;

  struct Shared {
    float query[kRows][kStride];
    float key[kKeys][kStride];
    float weight[kRows][kKeys + 1];
  };

  const ExpandedAttentionArgs& args;
  Shared& shared;
  int64_t head, column0;
  QueryTile tile;

  MLA_DEVICE static int Row() { return ThreadX() / kRowThreads; }
  MLA_DEVICE static int Part() { return ThreadX() % kRowThreads; }

  // Column `column` of a token's query or key: its own part, then the rope part.
  MLA_DEVICE float Query(int64_t token, int64_t column) const {
    const int64_t row = token * args.heads + head;
    return column < args.nope
               ? ToFloat(static_cast<const T*>(args.q)[row * args.q_width + column])
               : ToFloat(static_cast<const T*>(args.q_rope)[row * args.rope + column - args.nope]);
  }
  MLA_DEVICE const T* KeyValue(int64_t token) const {
    return static_cast<const T*>(args.kv) + (token * args.heads + head) * (args.nope + args.v);
  }
  MLA_DEVICE float Key(int64_t token, int64_t column) const {
    if (column < args.nope) return ToFloat(KeyValue(token)[column]);
    const int64_t rope0 = (token + 1) * args.row_width - args.rope;
    return ToFloat(static_cast<const T*>(args.rows)[rope0 + column - args.nope]);
  }

  // Of this thread's row with its keys among those from key0 on.
  MLA_DEVICE void Scores(int key0, float (&scores)[kScores]) const {
#pragma unroll
    for (int j = 0; j < kScores; ++j) scores[j] = 0;
    const int64_t width = args.nope + args.rope;
    for (int64_t depth = 0; depth < width; depth += kDepth) {
      if (depth > 0) Barrier();
      for (int i = ThreadX(); i < kRows * kDepth; i += kPlainThreads) {
        const int at = i / kDepth;
        const int64_t column = depth + i % kDepth;
        const bool row = tile.begin + at < tile.end, key = key0 + at < tile.end;
        shared.query[at][i % kDepth] =
            row && column < width ? Query(tile.begin + at, column) : 0.0f;
        shared.key[at][i % kDepth] = key && column < width ? Key(key0 + at, column) : 0.0f;
      }
      Barrier();
#pragma unroll 8
      for (int c = 0; c < kDepth; ++c) {
        const float query = shared.query[Row()][c];
#pragma unroll
        for (int j = 0; j < kScores; ++j)
          scores[j] += query * shared.key[Part() + j * kRowThreads][c];
      }
    }
  }

  MLA_DEVICE void Run() const {
    static_assert(kRows == kKeys, "queries and keys are read together");
    const int token = tile.begin + Row();
    float out[kColumns] = {}, peak = -__builtin_inff(), total = 0;
    for (int key0 = tile.token0; key0 < tile.end && tile.owned; key0 += kKeys) {
      float scores[kScores];
      Barrier();
      Scores(key0, scores);
      float highest = peak;
#pragma unroll
      for (int j = 0; j < kScores; ++j) {
        const bool seen = key0 + Part() + j * kRowThreads <= token;
        scores[j] = seen ? scores[j] * args.softmax_scale : -__builtin_inff();
        highest = scores[j] > highest ? scores[j] : highest;
      }
      highest = LanesMax<kRowThreads>(highest);
      // Where no score is above minus infinity every weight is 0, and not the NaN of inf - inf.
      const float base = highest == -__builtin_inff() ? 0.0f : highest;
      const float shrink = Exp2((peak - base) * kLog2E);
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kScores; ++j) {
        const float weight = Exp2((scores[j] - base) * kLog2E);
        shared.weight[Row()][Part() + j * kRowThreads] = weight;
        sum += weight;
      }
      total = total * shrink + LanesSum<kRowThreads>(sum);
      peak = highest;
      Barrier();
#pragma unroll
      for (int c = 0; c < kColumns; ++c) out[c] *= shrink;
      // Only what the row sees: weight 0 times NaN would be NaN.
      const int keys = token < tile.end ? token - key0 + 1 : 0;
      for (int k = 0; k < kKeys && k < keys; ++k) {
        const T* values = KeyValue(key0 + k) + args.nope + column0;
        const float weight = shared.weight[Row()][k];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const int column = Part() + c * kRowThreads;
          if (column0 + column < args.v) out[c] += weight * ToFloat(values[column]);
        }
      }
    }
    if (token >= tile.end) return;
    const int64_t row = token * args.heads + head;
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    if (column0 == 0 && Part() == 0) {
      args.lse[row] = total == 0.0f ? -__builtin_inff() : peak + Log2(total) * kLn2;
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int64_t column = column0 + Part() + c * kRowThreads;
      if (column < args.v)
        static_cast<T*>(args.out)[row * args.v + column] = FromFloat<T>(out[c] * inverse);
    }
  }
};

// Block x: columns first, then tiles, the longest first, then heads.
template <typename T>
MLA_DEVICE void RunPlainExpanded(const ExpandedGpuArgs& all) {
  __shared__ typename PlainExpanded<T>::Shared shared;
  const ExpandedAttentionArgs& args = all.args;
  const int parts =
      args.v <= kPlainColumns ? 1 : static_cast<int>((args.v - 1) / kPlainColumns + 1);
  const int at = BlockX() / parts, head = at / all.slots;
  const QueryTile tile = FindTile<kPlainRows>(args, (head + 1) * all.slots - 1 - at);
  PlainExpanded<T>{args, shared, head, static_cast<int64_t>(BlockX() - at * parts) * kPlainColumns,
                   tile}
      .Run();
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_EXPANDED_GPU_PLAIN_H_
