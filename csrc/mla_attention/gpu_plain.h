// Attention of one head of one token a block, for any width and type: the way for float32 and for
// models whose widths the matrix-core kernels are not made for.
#ifndef MLA_MLA_ATTENTION_GPU_PLAIN_H_
#define MLA_MLA_ATTENTION_GPU_PLAIN_H_

#include "mla_attention/gpu_plan.h"

namespace mla {
namespace gpu {

MLA_DEVICE float ReadCache(const MlaAttentionArgs& args, int64_t at, bool latent) {
  if (args.cache_type != DType::kF8E4M3FN) return ReadOne(args.cache, args.cache_type, at);
  return ToFloat(static_cast<const f8e4m3fn*>(args.cache)[at]) * args.scales[latent ? 0 : 1];
}

// `sums` are rank floats in shared memory, column c the thread's c % kPlainThreads.
MLA_DEVICE void PlainAttention(const MlaAttentionArgs& args, float* sums) {
  __shared__ float scores[kPlainKeys];
  __shared__ int64_t rows[kPlainKeys];
  __shared__ int32_t notes[4];
  __shared__ int32_t missing;  // Some visible key has no row.
  const AttentionBlock block = BlockOf(args, BlockX(), 1);
  const int64_t token = block.token;
  if (ThreadX() == 0) missing = 0;
  const KeyPlan plan = PlanKeys<kPlainThreads>(args, token, notes);
  const Share share = ShareOf(plan.visible, kPlainKeys, block.split, static_cast<int>(args.splits));
  const int64_t row = token * args.heads + block.head;

  for (int64_t c = ThreadX(); c < args.rank; c += kPlainThreads) sums[c] = 0;
  float peak = -__builtin_inff(), total = 0;
  for (int key0 = share.first; key0 < share.end; key0 += kPlainKeys) {
    const int keys = share.end - key0 < kPlainKeys ? share.end - key0 : kPlainKeys;
    Barrier();
    for (int i = ThreadX(); i < keys; i += kPlainThreads) {
      rows[i] = RowOfKey(args, plan, PageOfKey(args, plan, key0 + i), key0 + i);
      if (rows[i] < 0) missing = 1;
    }
    Barrier();
    for (int i = ThreadX() / kWave; i < keys; i += kPlainThreads / kWave) {
      float score = 0;
      if (rows[i] >= 0) {
        for (int64_t c = Lane(); c < args.rank; c += kWave) {
          score += ReadOne(args.q_latent, args.io_type, row * args.rank + c) *
                   ReadCache(args, rows[i] + c, true);
        }
        for (int64_t c = Lane(); c < args.rope; c += kWave) {
          score += ReadOne(args.q_rope, args.io_type, row * args.rope + c) *
                   ReadCache(args, rows[i] + args.rank + c, false);
        }
      }
      score = LanesSum<kWave>(score);
      if (Lane() == 0) scores[i] = score * args.softmax_scale;
    }
    Barrier();
    float highest = peak;
    for (int i = 0; i < keys; ++i) highest = scores[i] > highest ? scores[i] : highest;
    const float base = highest == -__builtin_inff() ? 0.0f : highest;
    const float shrink = Exp2((peak - base) * kLog2E);
    float sum = 0;
    for (int i = 0; i < keys; ++i) sum += Exp2((scores[i] - base) * kLog2E);
    total = total * shrink + sum;
    peak = highest;
    for (int64_t c = ThreadX(); c < args.rank; c += kPlainThreads) {
      float value = sums[c] * shrink;
      for (int i = 0; i < keys; ++i) {
        if (rows[i] >= 0) {
          value += Exp2((scores[i] - base) * kLog2E) * ReadCache(args, rows[i] + c, true);
        }
      }
      sums[c] = value;
    }
  }
  Barrier();
  const bool broken = plan.too_long || missing != 0;
  const float nan = __builtin_nanf("");
  const float inverse = broken ? nan : (total == 0.0f ? 0.0f : 1.0f / total);
  const float lse2 =
      broken ? nan : (total == 0.0f ? -__builtin_inff() : peak * kLog2E + Log2(total));
  const int64_t at = args.partial != nullptr ? block.split * args.tokens * args.heads + row : row;
  if (ThreadX() == 0) {
    (args.partial != nullptr ? args.partial_lse : args.lse)[at] =
        args.partial != nullptr ? lse2 : lse2 * kLn2;
  }
  for (int64_t c = ThreadX(); c < args.rank; c += kPlainThreads) {
    const float value = sums[c] * inverse;
    if (args.partial != nullptr) {
      args.partial[at * args.rank + c] = value;
    } else {
      WriteOne(args.out, args.io_type, at * args.rank + c, value);
    }
  }
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_PLAIN_H_
