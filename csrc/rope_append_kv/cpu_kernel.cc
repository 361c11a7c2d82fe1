// Rope and append: some tokens a task, f32 inside, one rounding into each output.
#include "rope_append_kv/cpu_kernel.h"

#include "common/cache_row.h"
#include "common/denormals.h"
#include "common/rope.h"
#include "common/scratch.h"
#include "common/tasks.h"
#include "rope_append_kv/place.h"

namespace mla {
namespace MLA_ISA {
namespace {

// Tokens of one task. Where neighbouring slots share cache lines, so should a task.
constexpr int64_t kTokensOfRows = 4;
constexpr int64_t kTokensOfPacked = 16;

int64_t SizeOf(DType type) {
  return type == DType::kF32 ? 4 : (type == DType::kBF16 ? 2 : 1);
}

// The slot of token t in its layer, or -1: nothing is stored.
int64_t LiveSlot(const RopeAppendKvArgs& args, int64_t t) {
  int64_t slot = args.slots[t];
  if (args.slot_map != nullptr) {
    // Before the map is read: a slot of -1 has no entry there.
    if (slot < 0 || slot >= args.map_size) return -1;
    slot = args.slot_map[slot];
  }
  // Inside the layer: a bad slot must not land in a neighbouring one.
  const bool live = slot >= 0 && slot < args.num_pages * args.page_size && args.first_page >= 0;
  return live ? slot : -1;
}

// Writes runs of kBytes each from `src` to every `stride` bytes from `dst` on.
template <int64_t kBytes>
void ScatterRuns(const uint8_t* src, int64_t runs, int64_t stride, uint8_t* dst) {
  for (int64_t i = 0; i < runs; ++i) __builtin_memcpy(dst + i * stride, src + i * kBytes, kBytes);
}

// Stores the bytes of one row, already of the cache's type.
void StoreBytes(const uint8_t* src, int64_t width, int64_t size, const Place& place, void* cache) {
  uint8_t* dst = static_cast<uint8_t*>(cache) + place.start * size;
  const int64_t runs = width / place.run;
  const int64_t stride = place.stride * size;
  switch (place.run * size) {
    case 1:
      return ScatterRuns<1>(src, runs, stride, dst);
    case 2:
      return ScatterRuns<2>(src, runs, stride, dst);
    case 4:
      return ScatterRuns<4>(src, runs, stride, dst);
    default:
      return ScatterRuns<16>(src, runs, stride, dst);
  }
}

// Stores one row of f32; `bytes` is room for it in the cache's type.
void StoreRow(const RopeAppendKvArgs& args, const CacheArray& cache, const Place& place,
              const float* row, uint8_t* bytes) {
  const float inverse_scale =
      args.cache_type == DType::kF8E4M3FN ? 1.0f / *cache.scale : 1.0f;
  if (cache.form == CacheForm::kRows) {
    WriteCacheRow(cache.data, args.cache_type, place.start, cache.width, row, inverse_scale);
  } else {
    WriteCacheRow(bytes, args.cache_type, 0, cache.width, row, inverse_scale);
    StoreBytes(bytes, cache.width, SizeOf(args.cache_type), place, cache.data);
  }
}

}  // namespace

void RopeAppendKv(const RopeAppendKvArgs& args, const Executor& executor) {
  const CacheArray& keys = args.keys;
  const CacheArray& values = args.values;
  const int64_t io_size = SizeOf(args.io_type);
  const int64_t kept_bytes = (keys.width - args.rope) * io_size;
  const int64_t widest = Max64(keys.width, values.width);
  const bool rows = keys.form == CacheForm::kRows;
  const int64_t tokens_a_task = rows ? kTokensOfRows : kTokensOfPacked;
  const double elements = static_cast<double>((args.q_heads + args.kv_heads) * keys.width +
                                              args.kv_heads * values.width);
  const double cost = static_cast<double>(args.tokens) * elements * 0.5;
  ForEach(executor, CeilDiv(args.tokens, tokens_a_task), cost, [&](int64_t task) {
    const KeepDenormals guard;
    Carver size(nullptr);
    size.Take<float>(widest);
    size.Take<float>(widest);
    Carver carver(Scratch(kTaskScratch, size.used()));
    auto* row = carver.Take<float>(widest);
    auto* bytes = carver.Take<uint8_t>(widest * 4);
    int64_t live[kTokensOfPacked];
    const int64_t begin = task * tokens_a_task;
    const int64_t count = Min(args.tokens - begin, tokens_a_task);
    const auto place_of = [&](const CacheArray& cache, int64_t slot, int64_t h) {
      return RowPlace(cache.form, cache.width, cache.pack, args.kv_heads, args.page_size,
                      args.first_page + slot / args.page_size, slot % args.page_size, h);
    };
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = begin + i;
      const int64_t position = Clamp(args.positions[t], 0, args.table_rows - 1);
      const float* cos = args.cos + position * (args.rope / 2);
      const float* sin = args.sin + position * (args.rope / 2);
      for (int64_t h = 0; h < args.q_heads; ++h) {
        const int64_t at = (t * args.q_heads + h) * keys.width;
        ReadRow(args.q, args.io_type, at, args.rope, row);
        Rotate(row, cos, sin, args.rope, args.half_layout);
        WriteRow(args.q_rotated, args.io_type, at, args.rope, row);
        const int64_t kept = (at + args.rope) * io_size;
        __builtin_memcpy(static_cast<uint8_t*>(args.q_rotated) + kept,
                         static_cast<const uint8_t*>(args.q) + kept, kept_bytes);
      }
      live[i] = LiveSlot(args, t);
      if (live[i] < 0) continue;
      for (int64_t h = 0; h < args.kv_heads; ++h) {
        ReadRow(args.k, args.io_type, (t * args.kv_heads + h) * keys.width, keys.width, row);
        Rotate(row, cos, sin, args.rope, args.half_layout);
        StoreRow(args, keys, place_of(keys, live[i], h), row, bytes);
      }
    }
    // Heads outside, so that the lines which neighbouring slots share stay in the first cache.
    for (int64_t h = 0; h < args.kv_heads; ++h) {
      for (int64_t i = 0; i < count; ++i) {
        if (live[i] < 0) continue;
        const int64_t at = ((begin + i) * args.kv_heads + h) * values.width;
        ReadRow(args.v, args.io_type, at, values.width, row);
        StoreRow(args, values, place_of(values, live[i], h), row, bytes);
      }
    }
  });
}

}  // namespace MLA_ISA
}  // namespace mla
