// Chooses the kernel by types, and wide accesses where every row and run allows them.
#include "rope_append_kv/gpu_shape.h"

namespace mla {
namespace gpu {

extern const Image kImage_rope_append_kv;

namespace {

// By the type of the caches, then wide or not.
constexpr const char* kFloat[][2] = {{"mla_rope_kv_f32_f32", "mla_rope_kv_f32_f32_wide"},
                                     {"mla_rope_kv_f32_bf16", "mla_rope_kv_f32_bf16_wide"},
                                     {"mla_rope_kv_f32_f8", "mla_rope_kv_f32_f8_wide"}};
constexpr const char* kBfloat[][2] = {{"mla_rope_kv_bf16_f32", "mla_rope_kv_bf16_f32_wide"},
                                      {"mla_rope_kv_bf16_bf16", "mla_rope_kv_bf16_bf16_wide"},
                                      {"mla_rope_kv_bf16_f8", "mla_rope_kv_bf16_f8_wide"}};

}  // namespace

xla::ffi::Error RopeAppendKv(const RopeAppendKvArgs& args, const Stream& stream) {
  const auto whole = [](int64_t n) { return n % kWideColumns == 0; };
  const bool wide = whole(args.keys.width) && whole(args.values.width) && whole(args.rope);
  const int64_t columns = wide ? kWideColumns : 1;
  const int64_t rotated = args.rope / (wide ? kWideColumns : 2);
  const int64_t key_items = rotated + (args.keys.width - args.rope) / columns;
  const int64_t value_items = args.values.width / columns;
  const int64_t items = args.q_heads * key_items + args.kv_heads * (key_items + value_items);
  const int64_t parts = CeilDiv(items, kThreads);
  const RopeAppendKvGpuArgs all{args, static_cast<int32_t>(rotated),
                                static_cast<int32_t>(key_items), static_cast<int32_t>(value_items),
                                static_cast<int32_t>(parts)};
  const auto& names = args.io_type == DType::kF32 ? kFloat : kBfloat;
  const int type = args.cache_type == DType::kF32 ? 0 : (args.cache_type == DType::kBF16 ? 1 : 2);
  return Launch({&kImage_rope_append_kv, names[type][wide]}, args.tokens * parts, kThreads, 0,
                stream, &all);
}

}  // namespace gpu
}  // namespace mla
