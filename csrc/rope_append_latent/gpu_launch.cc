// Chooses the kernel: wide accesses where every row, offset and run allows them.
#include <cstdint>

#include "rope_append_latent/gpu_shape.h"

namespace mla {
namespace gpu {

extern const Image kImage_rope_append_latent;

namespace {

// A wide kernel moves 8 elements at once, 4 of each half in the half layout, has a thread for every
// part of a head, and counts a token's elements in 32 bits.
bool Wide(const RopeAppendArgs& args) {
  const auto whole = [](int64_t n) { return n % 8 == 0; };
  return whole(args.q_width) && whole(args.q_offset) && whole(args.kv_width) &&
         whole(args.kv_offset) && whole(args.rank) && whole(args.rope) && args.rope > 0 &&
         args.rope / 8 <= kThreads && args.heads * args.q_width <= INT32_MAX;
}

}  // namespace

xla::ffi::Error RopeAppend(const RopeAppendArgs& args, const Stream& stream) {
  const bool wide = Wide(args), f32 = args.io_type == DType::kF32;
  const bool many = wide && !f32 && args.tokens >= kManyTokens;
  const int64_t parts =
      wide ? CeilDiv(args.heads, kThreads / (args.rope / 8) * (many ? kManyItems : 1))
           : CeilDiv(args.heads * (args.rope / 2), kThreads);
  // As many as waves of 64 need; where a wave has 32 lanes, the last ones find nothing to do.
  const int64_t row_blocks = CeilDiv(args.tokens, kThreads / 64);
  const RopeAppendGpuArgs all{args, static_cast<int32_t>(parts)};
  const bool all_bf16 = args.weight_type == DType::kBF16 && args.store_type == DType::kBF16;
  const char* name =
      f32        ? (wide ? "mla_rope_append_f32_wide" : "mla_rope_append_f32")
      : !wide    ? "mla_rope_append_bf16"
      : many     ? (all_bf16 ? "mla_rope_append_all_bf16_many" : "mla_rope_append_bf16_many")
      : all_bf16 ? "mla_rope_append_all_bf16_wide"
                 : "mla_rope_append_bf16_wide";
  return Launch({&kImage_rope_append_latent, name}, row_blocks + args.tokens * parts, kThreads, 0,
                stream, &all);
}

}  // namespace gpu
}  // namespace mla
