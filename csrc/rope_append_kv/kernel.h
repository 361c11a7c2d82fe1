// Rotates queries and new keys and stores keys and values of every key head into the paged caches.
#ifndef MLA_ROPE_APPEND_KV_KERNEL_H_
#define MLA_ROPE_APPEND_KV_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace mla {

// How a cache orders (page, offset in the page, head, column).
enum class CacheForm : int32_t {
  kRows,           // (pages, page_size, heads, width)
  kPackedColumns,  // (pages, heads, width / pack, page_size, pack)
  kPackedSlots,    // (pages, heads, page_size / pack, width, pack)
};

struct CacheArray {
  void* data;          // all layers: their pages follow each other
  const float* scale;  // read for float8 only
  CacheForm form;
  int64_t width, pack;
};

// Plain data, which device code reads as it is.
struct RopeAppendKvArgs {
  const void* q;             // (tokens, q_heads, keys.width)
  const void* k;             // (tokens, kv_heads, keys.width)
  const void* v;             // (tokens, kv_heads, values.width)
  const float* cos;          // (table_rows, rope / 2)
  const float* sin;          // same
  const int32_t* positions;  // (tokens)
  const int32_t* slots;      // (tokens)
  const int32_t* slot_map;   // (map_size); null: slots are the caches' own
  void* q_rotated;           // like q
  CacheArray keys, values;
  DType io_type, cache_type;
  int64_t tokens, q_heads, kv_heads, rope, table_rows, map_size;
  int64_t num_pages, page_size;  // of one layer
  const int32_t* layer;          // of `layers`; outside, nothing is stored
  int64_t layers;
  bool half_layout;  // Pairs (i, i + rope / 2) instead of (2i, 2i + 1).
};

MLA_DECLARE_KERNEL(RopeAppendKv, RopeAppendKvArgs)

}  // namespace mla

#endif  // MLA_ROPE_APPEND_KV_KERNEL_H_
