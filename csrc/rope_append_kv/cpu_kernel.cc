// Rope and append: some tokens a task, f32 inside, one rounding into each output.
#include "common/cache_row.h"
#include "common/denormals.h"
#include "common/rope.h"
#include "common/scratch.h"
#include "common/tasks.h"
#include "rope_append_kv/kernel.h"
#include "rope_append_kv/place.h"

namespace mla {
namespace MLA_ISA {
namespace {

// Tokens of one task. Neighbouring slots of a packed cache share cache lines, so they should share
// a task.
constexpr int64_t kTokensOfRows = 4;
constexpr int64_t kTokensOfPacked = 16;

int64_t SizeOf(DType type) { return type == DType::kF32 ? 4 : (type == DType::kBF16 ? 2 : 1); }

const uint8_t* At(const void* base, int64_t byte) {
  return static_cast<const uint8_t*>(base) + byte;
}
uint8_t* At(void* base, int64_t byte) { return static_cast<uint8_t*>(base) + byte; }

// The slot of token t in its layer, or -1: nothing is stored.
int64_t LiveSlot(const RopeAppendKvArgs& args, int64_t t) {
  int64_t slot = args.slots[t];
  if (args.slot_map != nullptr) {
    // Before the map is read: a slot of -1 has no entry there.
    if (slot < 0 || slot >= args.map_size) return -1;
    slot = args.slot_map[slot];
  }
  // Inside the layer: a bad slot must not land in a neighbouring one.
  const bool live = slot >= 0 && slot < args.num_pages * args.page_size && *args.layer >= 0 &&
                    *args.layer < args.layers;
  return live ? slot : -1;
}

Place PlaceOf(const RopeAppendKvArgs& args, const CacheArray& cache, int64_t slot, int64_t head) {
  return RowPlace(cache.form, cache.width, cache.pack, args.kv_heads, args.page_size,
                  *args.layer * args.num_pages + slot / args.page_size, slot % args.page_size,
                  head);
}

// Copies runs of kBytes each to every `stride` bytes from `dst` on.
template <int64_t kBytes>
void ScatterRuns(const uint8_t* src, int64_t runs, int64_t stride, uint8_t* dst) {
  for (int64_t i = 0; i < runs; ++i) __builtin_memcpy(dst + i * stride, src + i * kBytes, kBytes);
}

// Stores one head's row, already of the cache's type, in a packed cache.
void StorePacked(const uint8_t* src, int64_t width, int64_t size, const Place& place, void* cache) {
  uint8_t* dst = At(cache, place.start * size);
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

// Stores tokens' rows of all heads; row i of `rows` is that of slot live[i].
void StoreAllPacked(const RopeAppendKvArgs& args, const CacheArray& cache, const int64_t* live,
                    int64_t count, const uint8_t* rows) {
  const int64_t size = SizeOf(args.cache_type);
  // Heads outside: what the slots of one head share stays in the nearest cache.
  for (int64_t h = 0; h < args.kv_heads; ++h) {
    for (int64_t i = 0; i < count; ++i) {
      if (live[i] < 0) continue;
      StorePacked(rows + (i * args.kv_heads + h) * cache.width * size, cache.width, size,
                  PlaceOf(args, cache, live[i], h), cache.data);
    }
  }
}

void RotateQuery(const RopeAppendKvArgs& args, int64_t t, const float* cos, const float* sin) {
  const int64_t width = args.keys.width;
  const int64_t at = t * args.q_heads * width;
  RotateRows(args.io_type, args.q, at, width, args.q_rotated, at, width, args.q_heads, cos, sin,
             args.rope, args.half_layout);
  if (args.rope == width) return;
  const int64_t size = SizeOf(args.io_type);
  for (int64_t h = 0; h < args.q_heads; ++h) {
    const int64_t kept = (at + h * width + args.rope) * size;
    __builtin_memcpy(At(args.q_rotated, kept), At(args.q, kept), (width - args.rope) * size);
  }
}

}  // namespace

void RopeAppendKv(const RopeAppendKvArgs& args, const Executor& executor) {
  const CacheArray& keys = args.keys;
  const CacheArray& values = args.values;
  const bool packed = keys.form != CacheForm::kRows;
  const bool is_float8 = args.cache_type == DType::kF8E4M3FN;
  const int64_t cache_size = SizeOf(args.cache_type);
  const int64_t key_row = args.kv_heads * keys.width;
  const int64_t value_row = args.kv_heads * values.width;
  const int64_t tokens_a_task = packed ? kTokensOfPacked : kTokensOfRows;
  const double elements = static_cast<double>(args.q_heads * keys.width + key_row + value_row);
  const double cost = static_cast<double>(args.tokens) * elements * 0.2;
  ForEach(executor, CeilDiv(args.tokens, tokens_a_task), cost, [&](int64_t task) {
    const KeepDenormals guard;
    const float inverse_k_scale = is_float8 ? 1.0f / *keys.scale : 1.0f;
    const float inverse_v_scale = is_float8 ? 1.0f / *values.scale : 1.0f;
    const int64_t begin = task * tokens_a_task;
    const int64_t count = Min(args.tokens - begin, tokens_a_task);
    // A packed cache's rows are gathered here first; other rows go straight to their place.
    float* row = nullptr;
    uint8_t* key_rows = nullptr;
    uint8_t* value_rows = nullptr;
    const auto carve = [&](Carver carver) {
      row = carver.Take<float>(Max64(key_row, value_row));
      key_rows = carver.Take<uint8_t>(packed ? count * key_row * cache_size : 0);
      value_rows = carver.Take<uint8_t>(packed ? count * value_row * cache_size : 0);
      return carver.used();
    };
    carve(Carver(Scratch(kTaskScratch, carve(Carver(nullptr)))));
    int64_t live[Max64(kTokensOfRows, kTokensOfPacked)];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = begin + i;
      const int64_t position = Clamp(args.positions[t], 0, args.table_rows - 1);
      const float* cos = args.cos + position * (args.rope / 2);
      const float* sin = args.sin + position * (args.rope / 2);
      RotateQuery(args, t, cos, sin);
      live[i] = LiveSlot(args, t);
      if (live[i] < 0) continue;
      void* key_base = packed ? key_rows : keys.data;
      void* value_base = packed ? value_rows : values.data;
      const int64_t key_at = packed ? i * key_row : PlaceOf(args, keys, live[i], 0).start;
      const int64_t value_at = packed ? i * value_row : PlaceOf(args, values, live[i], 0).start;
      ReadRow(args.k, args.io_type, t * key_row, key_row, row);
      Rotate(Heads<float>{row, row, args.kv_heads, keys.width, keys.width}, cos, sin, args.rope,
             args.half_layout);
      WriteCacheRow(key_base, args.cache_type, key_at, key_row, row, inverse_k_scale);
      if (args.io_type == args.cache_type) {
        __builtin_memcpy(At(value_base, value_at * cache_size),
                         At(args.v, t * value_row * cache_size), value_row * cache_size);
      } else {
        ReadRow(args.v, args.io_type, t * value_row, value_row, row);
        WriteCacheRow(value_base, args.cache_type, value_at, value_row, row, inverse_v_scale);
      }
    }
    if (packed) {
      StoreAllPacked(args, keys, live, count, key_rows);
      StoreAllPacked(args, values, live, count, value_rows);
    }
  });
}

}  // namespace MLA_ISA
}  // namespace mla
