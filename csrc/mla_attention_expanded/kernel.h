// Causal attention of new tokens over themselves, with keys and values expanded per head.
#ifndef MLA_MLA_ATTENTION_EXPANDED_KERNEL_H_
#define MLA_MLA_ATTENTION_EXPANDED_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace mla {

// Plain data, which device code reads as it is.
struct ExpandedAttentionArgs {
  const void* q;                   // (tokens, heads, q_width), the first `nope` columns are used
  const void* q_rope;              // (tokens, heads, rope)
  const void* kv;                  // (tokens, heads, nope + v)
  const void* rows;                // (tokens, row_width), the last `rope` columns are used
  const int32_t* query_start_loc;  // (sequences + 1)
  void* out;                       // (tokens, heads, v)
  float* lse;                      // (tokens, heads)
  DType io_type;
  int64_t tokens, heads, q_width, nope, v, rope, row_width, sequences;
  float softmax_scale;
};

MLA_DECLARE_KERNEL(ExpandedAttention, ExpandedAttentionArgs)

}  // namespace mla

#endif  // MLA_MLA_ATTENTION_EXPANDED_KERNEL_H_
