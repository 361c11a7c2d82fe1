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
// so that it reads its cosines and sines once. Which layout is known at compile time, and a token's
// elements are counted in 32 bits: with half as many registers twice as many threads wait for
// memory at once.
template <typename T, int pairs, int items, bool half_layout>
MLA_DEVICE void RotateQuery(const RopeAppendArgs& args, int64_t token, int part) {
  const int half = static_cast<int>(args.rope / 2);
  const int per_head = half / pairs;
  const int at_once = kThreads / per_head;  // Heads
  const int thread_head = ThreadX() / per_head;
  if (thread_head >= at_once) return;
  const int first = (ThreadX() - thread_head * per_head) * pairs;
  const int heads = static_cast<int>(args.heads), q_width = static_cast<int>(args.q_width);
  const T* q = At<T>(args.q, token * args.heads * args.q_width + args.q_offset);
  T* q_rope = At<T>(args.q_rope, token * args.heads * args.rope);
  HeldPairs<T, pairs> in[items];
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const int head = (part * items + i) * at_once + thread_head;
    if (head >= heads) break;
    in[i] = HeldPairs<T, pairs>(q + head * q_width, first, half, half_layout);
  }
  const Angles<pairs> angles(args.cos, args.sin, RowOfTable(args, token) + first);
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const int head = (part * items + i) * at_once + thread_head;
    if (head >= heads) break;
    StoreRotated(angles, in[i].Open(), q_rope + head * 2 * half, first, half, half_layout);
  }
}

// Whether the norm's weights and the cache are known to be of the activations' type: less code, and
// so a shorter way for a token alone.
enum class Types { kAny, kSame };
template <typename T, Types types>
MLA_DEVICE DType TypeOf(DType type) {
  if constexpr (types == Types::kAny) {
    return type;
  } else {
    return sizeof(T) == 4 ? DType::kF32 : DType::kBF16;
  }
}

// Loads of the first `passes` runs of a lane come first, so that a token alone waits for memory
// once and not once a step. With many tokens others work meanwhile, and registers are better spent
// on them.
template <typename T, int pairs, int passes, Types types, bool half_layout>
MLA_DEVICE void AppendRow(const RopeAppendArgs& args, int64_t token) {
  const DType store_type = TypeOf<T, types>(args.store_type);
  const DType weight_type = TypeOf<T, types>(args.weight_type);
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
    ReadRun<(pairs > 1)>(args.norm_weight, weight_type, at, weights[i]);
  }
  const int64_t pair = Lane() * pairs;
  Rotated<pairs> rotated = {};
  const auto rotate = [&](int64_t first) {
    const Pairs<T, pairs> in(src + args.rank, first, half, half_layout);
    return Angles<pairs>(args.cos, args.sin, table + first).Rotate(in, half_layout);
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

  const float latent_inverse = CacheInverse(store_type, args.scales, 0);
  const auto store = [&](int64_t at, const Pack<T, kRun>& in, const float (&weight)[kRun]) {
    float out[kRun];
#pragma unroll
    for (int j = 0; j < kRun; ++j) out[j] = ToFloat(in.at[j]) * scale * weight[j];
    StoreCache<kRun>(args.store, store_type, row + at, latent_inverse, out);
  };
#pragma unroll
  for (int i = 0; i < passes; ++i) {
    const int64_t at = (i * kWave + Lane()) * kRun;
    if (at >= args.rank) break;
    store(at, held[i], weights[i]);
  }
  for (int64_t at = kHeldWidth + Lane() * kRun; at < args.rank; at += kWave * kRun) {
    float weight[kRun];
    ReadRun<(pairs > 1)>(args.norm_weight, weight_type, at, weight);
    store(at, LoadRun<(pairs > 1), kRun>(src + at), weight);
  }

  const float rope_inverse = CacheInverse(store_type, args.scales, 1);
  for (int64_t first = pair; first < half; first += kWave * pairs) {
    if (first != pair) rotated = rotate(first);
    if constexpr (half_layout) {
      float low[pairs], high[pairs];
#pragma unroll
      for (int i = 0; i < pairs; ++i) {
        low[i] = rotated.at[i];
        high[i] = rotated.at[pairs + i];
      }
      const int64_t at = row + args.rank + first;
      StoreCache<pairs>(args.store, store_type, at, rope_inverse, low);
      StoreCache<pairs>(args.store, store_type, at + half, rope_inverse, high);
    } else {
      StoreCache<2 * pairs>(args.store, store_type, row + args.rank + 2 * first, rope_inverse,
                            rotated.at);
    }
  }
}

// A block's share of the rows.
template <typename T, int pairs, int passes, Types types>
MLA_DEVICE void AppendRows(const RopeAppendArgs& args, int64_t block) {
  const int64_t token = block * (kThreads / kWave) + ThreadX() / kWave;
  if (token >= args.tokens) return;
  if (args.half_layout) {
    AppendRow<T, pairs, passes, types, true>(args, token);
  } else {
    AppendRow<T, pairs, passes, types, false>(args, token);
  }
}

// A block's share of the queries.
template <typename T, int pairs, int items>
MLA_DEVICE void RotateQueries(const RopeAppendGpuArgs& all, int block) {
  const int token = block / all.parts, part = block - token * all.parts;
  if (token >= all.args.tokens) return;
  if constexpr (pairs == 1) {
    RotateAnyQuery<T>(all.args, token, part);
  } else if (all.args.half_layout) {
    RotateQuery<T, pairs, items, true>(all.args, token, part);
  } else {
    RotateQuery<T, pairs, items, false>(all.args, token, part);
  }
}

// Rows and queries in one launch. The blocks of rows come first: theirs is the longer way.
template <typename T, int pairs, int passes, int items, Types types>
MLA_DEVICE void RopeAppend(const RopeAppendGpuArgs& all) {
  const int64_t row_blocks = (all.args.tokens + kThreads / kWave - 1) / (kThreads / kWave);
  if (BlockX() < row_blocks) {
    AppendRows<T, pairs, passes, types>(all.args, BlockX());
  } else {
    RotateQueries<T, pairs, items>(all, BlockX() - static_cast<int>(row_blocks));
  }
}

// Of few tokens a row is held whole.
template <typename T, int pairs, Types types>
MLA_DEVICE void RopeAppendFew(const RopeAppendGpuArgs& all) {
  RopeAppend<T, pairs, 512 / (kWave * 2 * pairs), 1, types>(all);
}
template <Types types>
MLA_DEVICE void RopeAppendMany(const RopeAppendGpuArgs& all) {
  RopeAppend<bf16, 4, 0, kManyItems, types>(all);
}

}  // namespace
}  // namespace gpu
}  // namespace mla

using mla::gpu::RopeAppendGpuArgs;

#define MLA_ROPE_APPEND(name, T, pairs, types)                       \
  MLA_GPU_KERNEL(name, mla::gpu::kThreads, RopeAppendGpuArgs) {      \
    mla::gpu::RopeAppendFew<T, pairs, mla::gpu::Types::types>(args); \
  }

MLA_ROPE_APPEND(mla_rope_append_f32, float, 1, kAny)
MLA_ROPE_APPEND(mla_rope_append_f32_wide, float, 4, kAny)
MLA_ROPE_APPEND(mla_rope_append_bf16, mla::bf16, 1, kAny)
MLA_ROPE_APPEND(mla_rope_append_bf16_wide, mla::bf16, 4, kAny)
MLA_ROPE_APPEND(mla_rope_append_all_bf16_wide, mla::bf16, 4, kSame)

// Many tokens: as many threads as fit together, although a row then wants a register or two more.
MLA_GPU_KERNEL_BLOCKS(mla_rope_append_bf16_many, mla::gpu::kThreads, 5, RopeAppendGpuArgs) {
  mla::gpu::RopeAppendMany<mla::gpu::Types::kAny>(args);
}
MLA_GPU_KERNEL_BLOCKS(mla_rope_append_all_bf16_many, mla::gpu::kThreads, 6, RopeAppendGpuArgs) {
  mla::gpu::RopeAppendMany<mla::gpu::Types::kSame>(args);
}
