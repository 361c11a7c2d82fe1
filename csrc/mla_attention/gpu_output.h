// Where a block's results go: the answer, or scratch for the merge of the splits.
#ifndef MLA_MLA_ATTENTION_GPU_OUTPUT_H_
#define MLA_MLA_ATTENTION_GPU_OUTPUT_H_

#include "gpu/convert.h"
#include "mla_attention/gpu_shape.h"

namespace mla {
namespace gpu {

// Rows are the block's heads from `block.head` on; those beyond the last head are not stored.
struct AttentionOutput {
  const MlaAttentionArgs& args;
  AttentionBlock block;

  MLA_DEVICE int64_t At(int row) const {
    const int64_t at = block.token * args.heads + block.head + row;
    return args.partial != nullptr ? block.split * args.tokens * args.heads + at : at;
  }

  template <int n>
  MLA_DEVICE void StoreRun(int row, int column, const float (&run)[n]) const {
    if (block.head + row >= args.heads) return;
    const int64_t at = At(row) * kRank + column;
    if (args.partial != nullptr) {
      Pack<float, n> pack;
#pragma unroll
      for (int i = 0; i < n; ++i) pack.at[i] = run[i];
      StorePack(args.partial + at, pack);
    } else {
      Pack<bf16, n> pack;
#pragma unroll
      for (int i = 0; i < n; ++i) pack.at[i] = FromFloat<bf16>(run[i]);
      StorePack(static_cast<bf16*>(args.out) + at, pack);
    }
  }

  // Of one row: base-2 logarithm of the weights' sum, for the merge or as the answer.
  MLA_DEVICE void StoreLse(int row, float log2) const {
    if (block.head + row >= args.heads) return;
    (args.partial != nullptr ? args.partial_lse : args.lse)[At(row)] =
        args.partial != nullptr ? log2 : log2 * kLn2;
  }
};

// What a row's weighted sum is multiplied by, and its logarithm, from the peak and the sum of its
// weights. `broken`: there is no answer.
struct RowEnd {
  float factor, log2;
};
MLA_DEVICE RowEnd EndOf(float peak, float total, bool broken) {
  if (broken) return {__builtin_nanf(""), __builtin_nanf("")};
  if (total == 0.0f) return {0.0f, -__builtin_inff()};
  return {1.0f / total, peak + Log2(total)};
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_OUTPUT_H_
