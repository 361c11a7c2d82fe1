// Rope, norm and append on a GPU: one block a part of a token's query heads, one wave a token's
// row.
#include "gpu/cache_row.h"
#include "gpu/rope.h"
#include "rope_append_latent/gpu_shape.h"

namespace mla {
namespace gpu {
namespace {

MLA_DEVICE int64_t RowOfTable(const RopeAppendArgs& args, int64_t token) {
  return TableRow(args.positions[token], args.table_rows) * (args.rope / 2);
}

// Part `part` of a token's query heads, pair by pair.
template <typename T>
MLA_DEVICE void RotateAnyQuery(const RopeAppendArgs& args, int64_t token, int part) {
  const int64_t half = args.rope / 2;
  const int64_t item = static_cast<int64_t>(part) * kThreads + ThreadX();
  if (item >= args.heads * half) return;
  const int64_t head = item / half, pair = item - head * half;
  const int64_t row = token * args.heads + head;
  const Pairs<T, 1> in(At<T>(args.q, row * args.q_width + args.q_offset), pair, half,
                       args.half_layout);
  StoreRotated(Angles<1>(args.cos, args.sin, RowOfTable(args, token) + pair), in,
               At<T>(args.q_rope, row * args.rope), pair, half, args.half_layout);
}

// The same, `pairs` of them at once. All of a thread's items are the same part of different heads,
// so that it reads its cosines and sines once.
template <typename T, int pairs, int items>
MLA_DEVICE void RotateQuery(const RopeAppendArgs& args, int64_t token, int part) {
  const int per_head = static_cast<int>(args.rope / 2) / pairs;
  const int at_once = kThreads / per_head;  // Heads
  const int thread_head = ThreadX() / per_head;
  if (thread_head >= at_once) return;
  const int64_t half = args.rope / 2;
  const int64_t first = static_cast<int64_t>(ThreadX() - thread_head * per_head) * pairs;
  const T* q = At<T>(args.q, token * args.heads * args.q_width + args.q_offset);
  T* q_rope = At<T>(args.q_rope, token * args.heads * args.rope);
  Pairs<T, pairs> in[items];
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const int64_t head = (part * items + i) * at_once + thread_head;
    if (head >= args.heads) break;
    in[i] = Pairs<T, pairs>(q + head * args.q_width, first, half, args.half_layout);
  }
  const Angles<pairs> angles(args.cos, args.sin, RowOfTable(args, token) + first);
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const int64_t head = (part * items + i) * at_once + thread_head;
    if (head >= args.heads) break;
    StoreRotated(angles, in[i], q_rope + head * args.rope, first, half, args.half_layout);
  }
}

// Loads of the first `passes` runs of a lane come first, so that a token alone waits for memory
// once and not once a step. With many tokens others work meanwhile, and registers are better spent
// on them.
template <typename T, int pairs, int passes>
MLA_DEVICE void AppendRow(const RopeAppendArgs& args, int64_t token) {
  constexpr int kRun = pairs > 1 ? 2 * pairs : 1;
  constexpr int kHeldWidth = passes * kWave * kRun;
  const int64_t slot = args.slots != nullptr ? args.slots[token] : token;
  const int64_t layer = args.layer != nullptr ? *args.layer : 0;
  const T* src = At<T>(args.kv_a, token * args.kv_width + args.kv_offset);
  const int64_t half = args.rope / 2, table = RowOfTable(args, token);
  Pack<T, kRun> held[passes + 1];
  float weights[passes + 1][kRun];
#pragma unroll
  for (int i = 0; i < passes; ++i) {
    const int64_t at = (i * kWave + Lane()) * kRun;
    if (at >= args.rank) break;
    held[i] = LoadRun<(pairs > 1), kRun>(src + at);
    ReadRun<(pairs > 1)>(args.norm_weight, args.weight_type, at, weights[i]);
  }
  const int64_t pair = Lane() * pairs;
  Rotated<pairs> rotated = {};
  const auto rotate = [&](int64_t first) {
    const Pairs<T, pairs> in(src + args.rank, first, half, args.half_layout);
    return Angles<pairs>(args.cos, args.sin, table + first).Rotate(in, args.half_layout);
  };
  if (pair < half) rotated = rotate(pair);
  // The slot is checked inside its layer: a bad one must not land in a neighbouring layer.
  if (slot < 0 || slot >= args.slots_per_layer || layer < 0 || layer >= args.layers) return;
  const int64_t row = (layer * args.slots_per_layer + slot) * (args.rank + args.rope);

  float sum = 0;
#pragma unroll
  for (int i = 0; i < passes; ++i) {
    if ((i * kWave + Lane()) * kRun >= args.rank) break;
#pragma unroll
    for (int j = 0; j < kRun; ++j) sum += ToFloat(held[i].at[j]) * ToFloat(held[i].at[j]);
  }
  for (int64_t at = kHeldWidth + Lane() * kRun; at < args.rank; at += kWave * kRun) {
    const auto in = LoadRun<(pairs > 1), kRun>(src + at);
#pragma unroll
    for (int j = 0; j < kRun; ++j) sum += ToFloat(in.at[j]) * ToFloat(in.at[j]);
  }
  const float mean = LanesSum<kWave>(sum) / static_cast<float>(args.rank);
  const float scale = 1.0f / __builtin_sqrtf(mean + args.eps);

  const float latent_inverse = CacheInverse(args.store_type, args.scales, 0);
  const auto store = [&](int64_t at, const Pack<T, kRun>& in, const float (&weight)[kRun]) {
    float out[kRun];
#pragma unroll
    for (int j = 0; j < kRun; ++j) out[j] = ToFloat(in.at[j]) * scale * weight[j];
    StoreCache<kRun>(args.store, args.store_type, row + at, latent_inverse, out);
  };
#pragma unroll
  for (int i = 0; i < passes; ++i) {
    const int64_t at = (i * kWave + Lane()) * kRun;
    if (at >= args.rank) break;
    store(at, held[i], weights[i]);
  }
  for (int64_t at = kHeldWidth + Lane() * kRun; at < args.rank; at += kWave * kRun) {
    float weight[kRun];
    ReadRun<(pairs > 1)>(args.norm_weight, args.weight_type, at, weight);
    store(at, LoadRun<(pairs > 1), kRun>(src + at), weight);
  }

  const float rope_inverse = CacheInverse(args.store_type, args.scales, 1);
  for (int64_t first = pair; first < half; first += kWave * pairs) {
    if (first != pair) rotated = rotate(first);
    if (args.half_layout) {
      float low[pairs], high[pairs];
#pragma unroll
      for (int i = 0; i < pairs; ++i) {
        low[i] = rotated.at[i];
        high[i] = rotated.at[pairs + i];
      }
      const int64_t at = row + args.rank + first;
      StoreCache<pairs>(args.store, args.store_type, at, rope_inverse, low);
      StoreCache<pairs>(args.store, args.store_type, at + half, rope_inverse, high);
    } else {
      StoreCache<2 * pairs>(args.store, args.store_type, row + args.rank + 2 * first, rope_inverse,
                            rotated.at);
    }
  }
}

// A block's share of the rows.
template <typename T, int pairs, int passes>
MLA_DEVICE void AppendRows(const RopeAppendArgs& args, int64_t block) {
  const int64_t token = block * (kThreads / kWave) + ThreadX() / kWave;
  if (token < args.tokens) AppendRow<T, pairs, passes>(args, token);
}

// A block's share of the queries.
template <typename T, int pairs, int items>
MLA_DEVICE void RotateQueries(const RopeAppendGpuArgs& all, int block) {
  const int token = block / all.parts;
  if (token < all.args.tokens)
    RotateQuery<T, pairs, items>(all.args, token, block - token * all.parts);
}

// Rows and queries in one launch, for few tokens. The blocks of rows come first: theirs is the
// longer way.
template <typename T, int pairs>
MLA_DEVICE void RopeAppend(const RopeAppendGpuArgs& all) {
  const int64_t row_blocks = (all.args.tokens + kThreads / kWave - 1) / (kThreads / kWave);
  if (BlockX() < row_blocks) {
    AppendRows<T, pairs, 512 / (kWave * 2 * pairs)>(all.args, BlockX());
  } else {
    RotateQueries<T, pairs, 1>(all, BlockX() - static_cast<int>(row_blocks));
  }
}

}  // namespace
}  // namespace gpu
}  // namespace mla

using mla::gpu::RopeAppendGpuArgs;

#define MLA_ROPE_APPEND(name, T, pairs)                         \
  MLA_GPU_KERNEL(name, mla::gpu::kThreads, RopeAppendGpuArgs) { \
    mla::gpu::RopeAppend<T, pairs>(args);                       \
  }

MLA_ROPE_APPEND(mla_rope_append_f32, float, 1)
MLA_ROPE_APPEND(mla_rope_append_f32_wide, float, 4)
MLA_ROPE_APPEND(mla_rope_append_bf16, mla::bf16, 1)
MLA_ROPE_APPEND(mla_rope_append_bf16_wide, mla::bf16, 4)

// For many tokens in two launches: together they would have the registers of the one that needs
// more.
MLA_GPU_KERNEL(mla_rope_rows_bf16, mla::gpu::kThreads, RopeAppendGpuArgs) {
  mla::gpu::AppendRows<mla::bf16, 4, 0>(args.args, mla::gpu::BlockX());
}
MLA_GPU_KERNEL(mla_rope_query_bf16, mla::gpu::kThreads, RopeAppendGpuArgs) {
  mla::gpu::RotateQueries<mla::bf16, 4, mla::gpu::kManyItems>(args, mla::gpu::BlockX());
}
