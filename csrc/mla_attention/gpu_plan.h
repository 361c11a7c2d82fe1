// Which keys a block reads, from metadata on the device, which may hold anything.
#ifndef MLA_MLA_ATTENTION_GPU_PLAN_H_
#define MLA_MLA_ATTENTION_GPU_PLAN_H_

#include "gpu/convert.h"
#include "mla_attention/gpu_shape.h"

namespace mla {
namespace gpu {

struct KeyPlan {
  int64_t visible;   // Keys that the token sees.
  int32_t sequence;  // -1: no sequence owns the token.
  bool too_long;     // The sequence has more tokens than its row of the page table.
};

// For token `token`; every thread of the block calls it and gets the same. `shared` is one int.
template <int threads>
MLA_DEVICE KeyPlan PlanKeys(const MlaAttentionArgs& args, int64_t token, int32_t* shared) {
  if (ThreadX() == 0) *shared = -1;
  Barrier();
  // All starts are read at once: a search would wait for memory at every step.
  for (int64_t s = ThreadX(); s < args.sequences; s += threads) {
    if (args.query_start_loc[s] <= token && token < args.query_start_loc[s + 1]) {
      *shared = static_cast<int32_t>(s);
    }
  }
  Barrier();
  const int32_t sequence = *shared;
  if (sequence < 0) return {0, -1, false};
  const int64_t begin = args.query_start_loc[sequence], end = args.query_start_loc[sequence + 1];
  const int64_t capacity = args.max_pages * args.page_size;
  const int64_t held = args.seq_lens[sequence];
  const int64_t keys = held < 0 ? 0 : (held > capacity ? capacity : held);
  const int64_t before = keys - (end - begin);
  const int64_t visible = args.cached_only ? before : before + (token - begin) + 1;
  return {visible < 0 ? 0 : (visible > keys ? keys : visible), sequence, held > capacity};
}

// Key `key`'s row in the pool, in elements; -1 where its page or the layer does not exist.
MLA_DEVICE int64_t RowOfKey(const MlaAttentionArgs& args, int32_t sequence, int64_t key) {
  const uint32_t page_size = static_cast<uint32_t>(args.page_size);
  const uint32_t entry = static_cast<uint32_t>(key) / page_size;
  const int64_t page = args.page_table[sequence * args.max_pages + entry];
  const int64_t layer = *args.layer;
  if (page < 0 || page >= args.pages || layer < 0 || layer >= args.layers) return -1;
  const int64_t row = (layer * args.pages + page) * args.page_size +
                      (static_cast<uint32_t>(key) - entry * page_size);
  return row * (args.rank + args.rope);
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_PLAN_H_
