// Attention in latent space over the paged cache, for any mix of prefill chunks and decode rows.
#ifndef MLA_MLA_ATTENTION_KERNEL_H_
#define MLA_MLA_ATTENTION_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace mla {

struct MlaAttentionArgs {
  const void* q_latent;            // (tokens, heads, rank)
  const void* q_rope;              // (tokens, heads, rope)
  const void* cache;               // (layers, pages, page_size, rank + rope)
  const int32_t* layer;            // outside [0, layers): no page exists
  const float* scales;             // (latent, rope), read for float8 only
  const int32_t* page_table;       // (sequences, max_pages)
  const int32_t* query_start_loc;  // (sequences + 1)
  const int32_t* seq_lens;         // (sequences)
  void* out;                       // (tokens, heads, rank)
  float* lse;                      // (tokens, heads)
  DType io_type, cache_type;
  int64_t tokens, heads, rank, rope, layers, pages, page_size, sequences, max_pages;
  float softmax_scale;
  bool cached_only;
  // Scratch of a GPU: what each of `splits` shares of the keys gives. Null where there is one.
  float* partial;      // (splits, tokens, heads, rank)
  float* partial_lse;  // (splits, tokens, heads), base 2
  int64_t splits;
};

MLA_DECLARE_KERNEL(MlaAttention, MlaAttentionArgs)

}  // namespace mla

#endif  // MLA_MLA_ATTENTION_KERNEL_H_
