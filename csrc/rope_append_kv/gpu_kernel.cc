// Rope and append on a GPU: a thread an item, some blocks a token; each item of a query goes to its
// rows, each of a key or a value to its place in the cache.
#include "gpu/rope.h"
#include "rope_append_kv/gpu_shape.h"
#include "rope_append_kv/place.h"

namespace mla {
namespace gpu {
namespace {

// Where a token is stored: the page counts from the first one of the first layer.
struct Slot {
  bool live;
  int64_t page, offset;

  MLA_DEVICE Slot(const RopeAppendKvArgs& args, int64_t token) : live(false), page(0), offset(0) {
    int64_t slot = args.slots[token];
    if (args.slot_map != nullptr) {
      // Before the map is read: a slot of -1 has no entry there.
      if (slot < 0 || slot >= args.map_size) return;
      slot = args.slot_map[slot];
    }
    const int64_t layer = *args.layer;
    // Inside the layer: a bad slot must not land in a neighbouring one.
    live = slot >= 0 && slot < args.num_pages * args.page_size && layer >= 0 && layer < args.layers;
    if (!live) return;
    page = layer * args.num_pages + slot / args.page_size;
    offset = slot % args.page_size;
  }
};

// n neighbouring columns of one head's row, from column d on. In a packed cache they are runs of
// the 16 bytes of a pack, or single elements `stride` apart.
template <int n, typename C>
MLA_DEVICE void StoreColumns(const CacheArray& cache, const Place& place, int64_t d,
                             const Pack<C, n>& columns) {
  C* data = static_cast<C*>(cache.data);
  constexpr int kRun = sizeof(C) * n > 16 ? 16 / sizeof(C) : n;
  if (cache.form == CacheForm::kPackedSlots) {
#pragma unroll
    for (int i = 0; i < n; ++i) data[place.start + (d + i) * place.stride] = columns.at[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < n; i += kRun) {
    Pack<C, kRun> run;
#pragma unroll
    for (int j = 0; j < kRun; ++j) run.at[j] = columns.at[i + j];
    StorePack(data + Element(place, d + i), run);
  }
}

template <int n, typename C>
MLA_DEVICE void StoreFloats(const CacheArray& cache, const Place& place, int64_t d,
                            const float (&values)[n], float inverse) {
  Pack<C, n> columns;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    columns.at[i] = FromFloat<C>(sizeof(C) == 1 ? values[i] * inverse : values[i]);
  }
  StoreColumns(cache, place, d, columns);
}

MLA_DEVICE Place PlaceOf(const RopeAppendKvArgs& args, const CacheArray& cache, const Slot& slot,
                         int head) {
  return RowPlace(cache.form, cache.width, cache.pack, args.kv_heads, args.page_size, slot.page,
                  slot.offset, head);
}

// T is the type of queries, keys and values, C that of the caches.
template <typename T, typename C, int pairs>
struct Token {
  static constexpr int kColumns = pairs > 1 ? kWideColumns : 1;

  const RopeAppendKvGpuArgs& all;
  const RopeAppendKvArgs& args;
  int64_t token;

  MLA_DEVICE Angles<pairs> AnglesOf(int64_t pair) const {
    const int64_t half = args.rope / 2;
    const int64_t row = TableRow(args.positions[token], args.table_rows) * half;
    return Angles<pairs>(args.cos, args.sin, row + pair);
  }

  // The first column of an item behind the pairs of a head.
  MLA_DEVICE int64_t KeptColumn(int item) const {
    return args.rope + static_cast<int64_t>(item - all.rotated) * kColumns;
  }

  MLA_DEVICE void Query(int head, int item) const {
    const int64_t row = (token * args.q_heads + head) * args.keys.width;
    const T* src = At<T>(args.q, row);
    T* dst = static_cast<T*>(args.q_rotated) + row;
    if (item < all.rotated) {
      const int64_t pair = static_cast<int64_t>(item) * pairs, half = args.rope / 2;
      StoreRotated(AnglesOf(pair), Pairs<T, pairs>(src, pair, half, args.half_layout), dst, pair,
                   half, args.half_layout);
    } else {
      const int64_t d = KeptColumn(item);
      StorePack(dst + d, LoadPack<kColumns>(src + d));
    }
  }

  MLA_DEVICE void Key(const Slot& slot, int head, int item) const {
    const T* src = At<T>(args.k, (token * args.kv_heads + head) * args.keys.width);
    const Place place = PlaceOf(args, args.keys, slot, head);
    const float inverse = sizeof(C) == 1 ? 1.0f / *args.keys.scale : 1.0f;
    if (item >= all.rotated) {
      const int64_t d = KeptColumn(item);
      const auto read = LoadPack<kColumns>(src + d);
      float values[kColumns];
#pragma unroll
      for (int i = 0; i < kColumns; ++i) values[i] = ToFloat(read.at[i]);
      return StoreFloats<kColumns, C>(args.keys, place, d, values, inverse);
    }
    const int64_t pair = static_cast<int64_t>(item) * pairs, half = args.rope / 2;
    const Pairs<T, pairs> in(src, pair, half, args.half_layout);
    const Rotated<pairs> rotated = AnglesOf(pair).Rotate(in, args.half_layout);
    if constexpr (pairs > 1) {
      if (!args.half_layout) {
        return StoreFloats<2 * pairs, C>(args.keys, place, 2 * pair, rotated.at, inverse);
      }
    }
    // A pair alone may begin anywhere: neither is it stored as one.
    float low[pairs], high[pairs];
#pragma unroll
    for (int i = 0; i < pairs; ++i) {
      low[i] = rotated.at[i];
      high[i] = rotated.at[pairs + i];
    }
    const int64_t first = args.half_layout ? pair : 2 * pair;
    const int64_t second = args.half_layout ? half + pair : first + 1;
    StoreFloats<pairs, C>(args.keys, place, first, low, inverse);
    StoreFloats<pairs, C>(args.keys, place, second, high, inverse);
  }

  MLA_DEVICE void Value(const Slot& slot, int head, int item) const {
    const int64_t d = static_cast<int64_t>(item) * kColumns;
    const auto read =
        LoadPack<kColumns>(At<T>(args.v, (token * args.kv_heads + head) * args.values.width + d));
    const Place place = PlaceOf(args, args.values, slot, head);
    if constexpr (sizeof(T) == sizeof(C)) {
      StoreColumns<kColumns, T>(args.values, place, d, read);  // Bit by bit, also a NaN.
    } else {
      float values[kColumns];
#pragma unroll
      for (int i = 0; i < kColumns; ++i) values[i] = ToFloat(read.at[i]);
      StoreFloats<kColumns, C>(args.values, place, d, values,
                               sizeof(C) == 1 ? 1.0f / *args.values.scale : 1.0f);
    }
  }
};

template <typename T, typename C, int pairs>
MLA_DEVICE void RopeAppendKv(const RopeAppendKvGpuArgs& all) {
  const int block = BlockX() / all.parts;
  const Token<T, C, pairs> token{all, all.args, block};
  // One token's items are far fewer than 2^31.
  int item = (BlockX() - block * all.parts) * kThreads + ThreadX();
  const int query_items = static_cast<int>(all.args.q_heads) * all.key_items;
  if (item < query_items) {
    const int head = item / all.key_items;
    return token.Query(head, item - head * all.key_items);
  }
  item -= query_items;
  const int all_keys = static_cast<int>(all.args.kv_heads) * all.key_items;
  const bool is_key = item < all_keys;
  if (!is_key) {
    item -= all_keys;
    if (item >= static_cast<int>(all.args.kv_heads) * all.value_items) return;
  }
  const Slot slot(all.args, block);
  if (!slot.live) return;
  const int head_items = is_key ? all.key_items : all.value_items;
  const int head = item / head_items;
  if (is_key) {
    token.Key(slot, head, item - head * head_items);
  } else {
    token.Value(slot, head, item - head * head_items);
  }
}

}  // namespace
}  // namespace gpu
}  // namespace mla

#define MLA_ROPE_APPEND_KV(name, T, C)                                                           \
  MLA_GPU_KERNEL(mla_rope_kv_##name, mla::gpu::kThreads, mla::gpu::RopeAppendKvGpuArgs) {        \
    mla::gpu::RopeAppendKv<T, C, 1>(args);                                                       \
  }                                                                                              \
  MLA_GPU_KERNEL(mla_rope_kv_##name##_wide, mla::gpu::kThreads, mla::gpu::RopeAppendKvGpuArgs) { \
    mla::gpu::RopeAppendKv<T, C, 4>(args);                                                       \
  }

MLA_ROPE_APPEND_KV(f32_f32, float, float)
MLA_ROPE_APPEND_KV(f32_bf16, float, mla::bf16)
MLA_ROPE_APPEND_KV(f32_f8, float, mla::f8e4m3fn)
MLA_ROPE_APPEND_KV(bf16_f32, mla::bf16, float)
MLA_ROPE_APPEND_KV(bf16_bf16, mla::bf16, mla::bf16)
MLA_ROPE_APPEND_KV(bf16_f8, mla::bf16, mla::f8e4m3fn)
