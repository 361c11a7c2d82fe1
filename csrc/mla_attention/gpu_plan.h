// Which keys a block reads, from metadata on the device, which may hold anything.
#ifndef MLA_MLA_ATTENTION_GPU_PLAN_H_
#define MLA_MLA_ATTENTION_GPU_PLAN_H_

#include "gpu/convert.h"
#include "mla_attention/gpu_shape.h"

namespace mla {
namespace gpu {

struct KeyPlan {
  int32_t visible;   // Keys that the token sees.
  int32_t sequence;  // -1: no sequence owns the token.
  int32_t layer;     // -1: there is no such layer.
  bool too_long;     // The sequence has more tokens than its row of the page table.
};

// For token `token`; every thread of the block calls it and gets the same. `shared` is 4 ints.
template <int threads>
MLA_DEVICE KeyPlan PlanKeys(const MlaAttentionArgs& args, int64_t token, int32_t* shared) {
  const int32_t number = *args.layer;
  if (ThreadX() == 0) shared[0] = -1;
  Barrier();
  // All sequences are read at once: a search would wait for memory at every step.
  for (int64_t s = ThreadX(); s < args.sequences; s += threads) {
    const int32_t begin = args.query_start_loc[s], end = args.query_start_loc[s + 1];
    const int32_t held = args.seq_lens[s];
    if (begin <= token && token < end) {
      shared[0] = static_cast<int32_t>(s);
      shared[1] = begin;
      shared[2] = end;
      shared[3] = held;
    }
  }
  Barrier();
  const int32_t sequence = shared[0];
  if (sequence < 0) return {0, -1, -1, false};
  const int64_t begin = shared[1], end = shared[2], held = shared[3];
  const int64_t capacity = args.max_pages * args.page_size;
  const int64_t keys = held < 0 ? 0 : (held > capacity ? capacity : held);
  const int64_t before = keys - (end - begin);
  const int64_t visible = args.cached_only ? before : before + (token - begin) + 1;
  const int64_t seen = visible < 0 ? 0 : (visible > keys ? keys : visible);
  const int32_t layer = number >= 0 && number < args.layers ? number : -1;
  return {static_cast<int32_t>(seen), sequence, layer, held > capacity};
}

// Keys of one split.
struct Share {
  int32_t first, end;
};

// Whole steps of keys are dealt out evenly, by what the sequence has and not by what it could have.
MLA_DEVICE Share ShareOf(int visible, int keys, int split, int splits) {
  const int64_t steps = (static_cast<int64_t>(visible) + keys - 1) / keys;
  const int64_t share = (steps + splits - 1) / splits * keys;
  const int64_t first = split * share, end = first + share;
  return {static_cast<int32_t>(first < visible ? first : visible),
          static_cast<int32_t>(end < visible ? end : visible)};
}

// The number in the page table for key `key`.
MLA_DEVICE int32_t PageOfKey(const MlaAttentionArgs& args, const KeyPlan& plan, int32_t key) {
  const uint32_t entry = static_cast<uint32_t>(key) / static_cast<uint32_t>(args.page_size);
  return args.page_table[plan.sequence * args.max_pages + entry];
}

// The row of key `key`, which is on page `page`, in elements from the pool's beginning; -1 where
// the page or the layer does not exist.
MLA_DEVICE int64_t RowOfKey(const MlaAttentionArgs& args, const KeyPlan& plan, int32_t page,
                            int32_t key) {
  if (page < 0 || page >= args.pages || plan.layer < 0) return -1;
  const uint32_t offset = static_cast<uint32_t>(key) % static_cast<uint32_t>(args.page_size);
  return ((plan.layer * args.pages + page) * args.page_size + offset) * (args.rank + args.rope);
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_PLAN_H_
