// Rope, norm and append on a GPU: one block a part of a token's query heads, one wave a token's
// row.
#include "gpu/cache_row.h"
#include "gpu/convert.h"
#include "rope_append_latent/gpu_shape.h"

namespace mla {
namespace gpu {
namespace {

template <typename T>
MLA_DEVICE T* At(void* base, int64_t offset) {
  return static_cast<T*>(base) + offset;
}
template <typename T>
MLA_DEVICE const T* At(const void* base, int64_t offset) {
  return static_cast<const T*>(base) + offset;
}

MLA_DEVICE int64_t RowOfTable(const RopeAppendArgs& args, int64_t token) {
  const int64_t position = args.positions[token];
  const int64_t last = args.table_rows - 1;
  return (position < 0 ? 0 : (position > last ? last : position)) * (args.rope / 2);
}

// `pairs` pairs at `src`, rotated: neighbours, or elements half the width apart.
template <int pairs, typename T>
MLA_DEVICE void LoadPairs(const T* src, int64_t first, int64_t half, bool half_layout,
                          float (&x)[pairs], float (&y)[pairs]) {
  if (half_layout) {
    const auto low = LoadPack<pairs>(src + first), high = LoadPack<pairs>(src + half + first);
#pragma unroll
    for (int i = 0; i < pairs; ++i) {
      x[i] = ToFloat(low.at[i]);
      y[i] = ToFloat(high.at[i]);
    }
  } else {
    const auto both = LoadPack<2 * pairs>(src + 2 * first);
#pragma unroll
    for (int i = 0; i < pairs; ++i) {
      x[i] = ToFloat(both.at[2 * i]);
      y[i] = ToFloat(both.at[2 * i + 1]);
    }
  }
}

template <int pairs, typename T>
MLA_DEVICE void StorePairs(T* dst, int64_t first, int64_t half, bool half_layout,
                           const float (&x)[pairs], const float (&y)[pairs]) {
  if (half_layout) {
    Pack<T, pairs> low, high;
#pragma unroll
    for (int i = 0; i < pairs; ++i) {
      low.at[i] = FromFloat<T>(x[i]);
      high.at[i] = FromFloat<T>(y[i]);
    }
    StorePack(dst + first, low);
    StorePack(dst + half + first, high);
  } else {
    Pack<T, 2 * pairs> both;
#pragma unroll
    for (int i = 0; i < pairs; ++i) {
      both.at[2 * i] = FromFloat<T>(x[i]);
      both.at[2 * i + 1] = FromFloat<T>(y[i]);
    }
    StorePack(dst + 2 * first, both);
  }
}

template <int pairs>
MLA_DEVICE void RotatePairs(const RopeAppendArgs& args, int64_t table, int64_t first,
                            float (&x)[pairs], float (&y)[pairs]) {
  const auto cos = LoadPack<pairs>(args.cos + table + first);
  const auto sin = LoadPack<pairs>(args.sin + table + first);
#pragma unroll
  for (int i = 0; i < pairs; ++i) {
    const float a = x[i], b = y[i];
    x[i] = a * cos.at[i] - b * sin.at[i];
    y[i] = b * cos.at[i] + a * sin.at[i];
  }
}

template <typename T, int pairs>
MLA_DEVICE void RotateQuery(const RopeAppendArgs& args, int64_t token, int part) {
  const int per_head = static_cast<int>(args.rope / 2) / pairs;
  const int items = static_cast<int>(args.heads) * per_head;
  const int64_t half = args.rope / 2;
  const int64_t table = RowOfTable(args, token);
  const T* q = At<T>(args.q, token * args.heads * args.q_width + args.q_offset);
  T* q_rope = At<T>(args.q_rope, token * args.heads * args.rope);
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int item = (part * kItems + i) * kThreads + ThreadX();
    if (item >= items) return;
    const int head = item / per_head;
    const int64_t first = static_cast<int64_t>(item - head * per_head) * pairs;
    float x[pairs], y[pairs];
    LoadPairs<pairs>(q + head * args.q_width, first, half, args.half_layout, x, y);
    RotatePairs<pairs>(args, table, first, x, y);
    StorePairs<pairs>(q_rope + head * args.rope, first, half, args.half_layout, x, y);
  }
}

template <typename T, int pairs>
MLA_DEVICE void AppendRow(const RopeAppendArgs& args, int64_t token) {
  constexpr int kWidth = 2 * pairs;
  const int64_t slot = args.slots != nullptr ? args.slots[token] : token;
  const int64_t layer = args.layer != nullptr ? *args.layer : 0;
  // The slot is checked inside its layer: a bad one must not land in a neighbouring layer.
  if (slot < 0 || slot >= args.slots_per_layer || layer < 0 || layer >= args.layers) return;
  const T* src = At<T>(args.kv_a, token * args.kv_width + args.kv_offset);
  const int64_t row = (layer * args.slots_per_layer + slot) * (args.rank + args.rope);

  float sum = 0;
  for (int64_t i = Lane() * kWidth; i < args.rank; i += kWave * kWidth) {
    const auto in = LoadPack<kWidth>(src + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += ToFloat(in.at[j]) * ToFloat(in.at[j]);
  }
  const float mean = LanesSum<kWave>(sum) / static_cast<float>(args.rank);
  const float scale = 1.0f / __builtin_sqrtf(mean + args.eps);
  const float latent_inverse = CacheInverse(args.store_type, args.scales, 0);
  for (int64_t i = Lane() * kWidth; i < args.rank; i += kWave * kWidth) {
    const auto in = LoadPack<kWidth>(src + i);
    float out[kWidth];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      out[j] = ToFloat(in.at[j]) * scale * ReadOne(args.norm_weight, args.weight_type, i + j);
    }
    StoreCache<kWidth>(args.store, args.store_type, row + i, latent_inverse, out);
  }

  const int64_t table = RowOfTable(args, token), half = args.rope / 2;
  const float rope_inverse = CacheInverse(args.store_type, args.scales, 1);
  for (int64_t first = Lane() * pairs; first < half; first += kWave * pairs) {
    float x[pairs], y[pairs];
    LoadPairs<pairs>(src + args.rank, first, half, args.half_layout, x, y);
    RotatePairs<pairs>(args, table, first, x, y);
    if (args.half_layout) {
      StoreCache<pairs>(args.store, args.store_type, row + args.rank + first, rope_inverse, x);
      StoreCache<pairs>(args.store, args.store_type, row + args.rank + half + first, rope_inverse,
                        y);
    } else {
      float both[kWidth];
#pragma unroll
      for (int i = 0; i < pairs; ++i) {
        both[2 * i] = x[i];
        both[2 * i + 1] = y[i];
      }
      StoreCache<kWidth>(args.store, args.store_type, row + args.rank + 2 * first, rope_inverse,
                         both);
    }
  }
}

// The blocks of rows come first: theirs is the longer way.
template <typename T, int pairs>
MLA_DEVICE void RopeAppend(const RopeAppendGpuArgs& all) {
  const RopeAppendArgs& args = all.args;
  constexpr int kRows = kThreads / kWave;
  const int64_t block = BlockX();
  const int64_t row_blocks = (args.tokens + kRows - 1) / kRows;
  if (block < row_blocks) {
    const int64_t token = block * kRows + ThreadX() / kWave;
    if (token < args.tokens) AppendRow<T, pairs>(args, token);
    return;
  }
  const int64_t query = block - row_blocks;
  const int64_t token = query / all.parts;
  if (token < args.tokens)
    RotateQuery<T, pairs>(args, token, static_cast<int>(query - token * all.parts));
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
