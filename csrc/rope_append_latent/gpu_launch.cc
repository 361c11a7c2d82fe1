// Chooses the kernel: wide accesses where every row, offset and run allows them.
#include "rope_append_latent/gpu_shape.h"

namespace mla {
namespace gpu {

extern const Image kImage_rope_append_latent;

namespace {

// A wide kernel moves 8 elements at once, 4 of each half in the half layout.
bool Wide(const RopeAppendArgs& args) {
  const auto whole = [](int64_t n) { return n % 8 == 0; };
  return whole(args.q_width) && whole(args.q_offset) && whole(args.kv_width) &&
         whole(args.kv_offset) && whole(args.rank) && whole(args.rope);
}

}  // namespace

xla::ffi::Error RopeAppend(const RopeAppendArgs& args, const Stream& stream) {
  const bool wide = Wide(args), f32 = args.io_type == DType::kF32;
  const int pairs = wide ? 4 : 1;
  const int64_t items = args.heads * (args.rope / 2 / pairs);
  const int64_t parts = (items + kThreads * kItems - 1) / (kThreads * kItems);
  // As many as waves of 64 need; where a wave has 32 lanes, the last ones find nothing to do.
  const int64_t row_blocks = (args.tokens + kThreads / 64 - 1) / (kThreads / 64);
  const RopeAppendGpuArgs all{args, static_cast<int32_t>(parts)};
  const Kernel kernel{&kImage_rope_append_latent,
                      f32 ? (wide ? "mla_rope_append_f32_wide" : "mla_rope_append_f32")
                          : (wide ? "mla_rope_append_bf16_wide" : "mla_rope_append_bf16")};
  return Launch(kernel, {row_blocks + args.tokens * parts}, kThreads, 0, stream, &all);
}

}  // namespace gpu
}  // namespace mla
