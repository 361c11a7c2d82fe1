// Rotates the queries' and the new key's rope part, norms the new latent, and stores the pair
// [latent | rotated key] either into the paged cache or into plain rows.
#ifndef MLA_ROPE_APPEND_LATENT_KERNEL_H_
#define MLA_ROPE_APPEND_LATENT_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace mla {

// Plain data, which device code reads as it is.
struct RopeAppendArgs {
  const void* q;             // (tokens, heads, q_width)
  const void* kv_a;          // (tokens, kv_width)
  const void* norm_weight;   // (rank)
  const float* cos;          // (table_rows, rope / 2)
  const float* sin;          // same
  const int32_t* positions;  // (tokens)
  const int32_t* slots;      // (tokens); null: row t goes to row t of `store`
  void* q_rope;              // (tokens, heads, rope)
  void* store;               // rows of rank + rope
  DType io_type, weight_type, store_type;
  int64_t tokens, heads, q_width, kv_width, rank, rope, table_rows;
  int64_t q_offset, kv_offset;
  int64_t slots_per_layer;  // Valid slots are [0, slots_per_layer).
  const int32_t* layer;     // Of `layers`; null: the only one. Outside, nothing is stored.
  int64_t layers;
  const float* scales;  // (latent, rope), read for float8 only
  float eps;
  bool half_layout;  // Pairs (i, i + rope / 2) instead of (2i, 2i + 1).
};

MLA_DECLARE_KERNEL(RopeAppend, RopeAppendArgs)

}  // namespace mla

#endif  // MLA_ROPE_APPEND_LATENT_KERNEL_H_
