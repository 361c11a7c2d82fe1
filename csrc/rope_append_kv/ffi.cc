// FFI binding of mla_jax.rope_append_kv.v1 and mla_jax.rope_append_kv_mapped.v1.
#include "common/backend.h"
#include "common/ffi_checks.h"
#include "python/handlers.h"
#include "rope_append_kv/kernel.h"

namespace mla {
namespace {

// Orders of the two caches, as the caller names them.
enum CacheLayout : int64_t { kFlash = 0, kSplitK = 1, kSplitKV = 2 };

// Bytes of one packed run.
constexpr int64_t kPackBytes = 16;

// The checks of one cache against the sizes that `args` holds by then.
void CheckCache(Checker& check, const char* name, const ffi::AnyBuffer& cache, int64_t cache_layout,
                int64_t layers, const RopeAppendKvArgs& args, const CacheArray& array) {
  check.SameType(name, cache, args.cache_type, "k_cache");
  const int64_t pages = args.num_pages;
  const int64_t heads = args.kv_heads;
  const int64_t slots = args.page_size;
  switch (array.form) {
    case CacheForm::kRows:
      return check.Shape(name, cache, {layers, pages, slots, heads, array.width});
    case CacheForm::kPackedColumns:
      return check.Shape(name, cache,
                         {layers, pages, heads, array.width / array.pack, slots, array.pack});
    case CacheForm::kPackedSlots:
      if (cache_layout == kSplitK) {
        return check.Shape(name, cache, {layers, pages, heads, array.width, slots});
      }
      return check.Shape(name, cache,
                         {layers, pages, heads, slots / array.pack, array.width, array.pack});
  }
}

ffi::Error Call(const char* op, Backend backend, ffi::AnyBuffer q, ffi::AnyBuffer k,
                ffi::AnyBuffer v, ffi::AnyBuffer cos, ffi::AnyBuffer sin, ffi::AnyBuffer positions,
                ffi::AnyBuffer slots, ffi::AnyBuffer k_cache, ffi::AnyBuffer v_cache,
                ffi::AnyBuffer layer, ffi::AnyBuffer k_scale, ffi::AnyBuffer v_scale,
                const ffi::AnyBuffer* slot_map, int64_t layout, int64_t cache_layout,
                ffi::AnyBuffer q_rotated, ffi::AnyBuffer new_k_cache, ffi::AnyBuffer new_v_cache) {
  Checker check(op);
  RopeAppendKvArgs args = {};
  args.io_type = check.Type("q", q, {DType::kF32, DType::kBF16});
  check.SameType("k", k, args.io_type, "q");
  check.SameType("v", v, args.io_type, "q");
  check.SameType("q_rotated", q_rotated, args.io_type, "q");
  check.SameType("cos", cos, DType::kF32, "sin");
  check.SameType("sin", sin, DType::kF32, "cos");
  check.Int32("positions", positions);
  check.Int32("slots", slots);
  check.Int32("layer", layer);
  check.SameType("k_scale", k_scale, DType::kF32, "cos");
  check.SameType("v_scale", v_scale, DType::kF32, "cos");
  check.Rank("q", q, 3);
  check.Rank("k", k, 3);
  check.Rank("v", v, 3);
  check.Rank("cos", cos, 2);
  args.tokens = Dim(q, 0);
  args.q_heads = Dim(q, 1);
  args.keys.width = Dim(q, 2);
  args.kv_heads = Dim(k, 1);
  args.values.width = Dim(v, 2);
  args.table_rows = Dim(cos, 0);
  args.rope = 2 * Dim(cos, 1);
  check.Shape("k", k, {args.tokens, args.kv_heads, args.keys.width});
  check.Shape("v", v, {args.tokens, args.kv_heads, args.values.width});
  check.Shape("q_rotated", q_rotated, {args.tokens, args.q_heads, args.keys.width});
  check.Shape("sin", sin, {args.table_rows, args.rope / 2});
  check.Require(args.table_rows > 0, "cos", "at least one row", ShapeText(cos.dimensions()));
  check.Require(args.rope <= args.keys.width, "cos",
                "at most " + std::to_string(args.keys.width / 2) + " columns",
                ShapeText(cos.dimensions()));
  check.Shape("positions", positions, {args.tokens});
  check.Shape("slots", slots, {args.tokens});
  check.Shape("layer", layer, {});
  check.Shape("k_scale", k_scale, {});
  check.Shape("v_scale", v_scale, {});
  check.Require(layout == 0 || layout == 1, "layout", "0 (interleaved) or 1 (half)",
                std::to_string(layout));
  check.Require(cache_layout >= kFlash && cache_layout <= kSplitKV, "cache_layout",
                "0 (flash), 1 (split_k) or 2 (split_kv)", std::to_string(cache_layout));
  args.cache_type = check.Type("k_cache", k_cache, {DType::kF32, DType::kBF16, DType::kF8E4M3FN});
  check.Rank("k_cache", k_cache, cache_layout == kFlash ? 5 : 6);
  const int64_t layers = Dim(k_cache, 0);
  args.num_pages = Dim(k_cache, 1);
  args.page_size = Dim(k_cache, cache_layout == kFlash ? 2 : 4);
  if (!check.ok()) return check.error();
  const int64_t pack = kPackBytes / static_cast<int64_t>(ffi::ByteWidth(k_cache.element_type()));
  if (cache_layout == kFlash) {
    args.keys.form = args.values.form = CacheForm::kRows;
  } else {
    args.keys.form = CacheForm::kPackedColumns;
    args.keys.pack = pack;
    args.values.form = CacheForm::kPackedSlots;
    args.values.pack = cache_layout == kSplitK ? args.page_size : pack;
    check.Require(args.keys.width % pack == 0, "k",
                  "a width that is a multiple of " + std::to_string(pack),
                  std::to_string(args.keys.width));
    check.Require(cache_layout == kSplitK || args.page_size % pack == 0, "k_cache",
                  "a page size that is a multiple of " + std::to_string(pack),
                  std::to_string(args.page_size));
  }
  check.Require(args.page_size > 0, "k_cache", "a positive page size",
                ShapeText(k_cache.dimensions()));
  if (!check.ok()) return check.error();
  CheckCache(check, "k_cache", k_cache, cache_layout, layers, args, args.keys);
  CheckCache(check, "v_cache", v_cache, cache_layout, layers, args, args.values);
  CheckCache(check, "new_k_cache", new_k_cache, cache_layout, layers, args, args.keys);
  CheckCache(check, "new_v_cache", new_v_cache, cache_layout, layers, args, args.values);
  if (slot_map != nullptr) {
    check.Int32("slot_map", *slot_map);
    check.Shape("slot_map", *slot_map, {kAny});
    args.slot_map = static_cast<const int32_t*>(slot_map->untyped_data());
    args.map_size = Dim(*slot_map, 0);
  }
  check.Same("new_k_cache", new_k_cache, "k_cache", k_cache);
  check.Same("new_v_cache", new_v_cache, "v_cache", v_cache);
  if (!check.ok()) return check.error();
  args.q = q.untyped_data();
  args.k = k.untyped_data();
  args.v = v.untyped_data();
  args.cos = static_cast<const float*>(cos.untyped_data());
  args.sin = static_cast<const float*>(sin.untyped_data());
  args.positions = static_cast<const int32_t*>(positions.untyped_data());
  args.slots = static_cast<const int32_t*>(slots.untyped_data());
  args.q_rotated = q_rotated.untyped_data();
  args.keys.data = new_k_cache.untyped_data();
  args.keys.scale = static_cast<const float*>(k_scale.untyped_data());
  args.values.data = new_v_cache.untyped_data();
  args.values.scale = static_cast<const float*>(v_scale.untyped_data());
  args.half_layout = layout == 1;
  args.layer = static_cast<const int32_t*>(layer.untyped_data());
  args.layers = layers;
  return MLA_RUN(RopeAppendKv, RopeAppendKvArgs, args, backend);
}

ffi::Error AppendCall(Backend backend, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                      ffi::AnyBuffer cos, ffi::AnyBuffer sin, ffi::AnyBuffer positions,
                      ffi::AnyBuffer slots, ffi::AnyBuffer k_cache, ffi::AnyBuffer v_cache,
                      ffi::AnyBuffer layer, ffi::AnyBuffer k_scale, ffi::AnyBuffer v_scale,
                      int64_t layout, int64_t cache_layout, ffi::Result<ffi::AnyBuffer> q_rotated,
                      ffi::Result<ffi::AnyBuffer> new_k_cache,
                      ffi::Result<ffi::AnyBuffer> new_v_cache) {
  return Call("mla_jax.rope_append_kv", backend, q, k, v, cos, sin, positions, slots, k_cache,
              v_cache, layer, k_scale, v_scale, nullptr, layout, cache_layout, *q_rotated,
              *new_k_cache, *new_v_cache);
}

ffi::Error AppendMappedCall(Backend backend, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                            ffi::AnyBuffer cos, ffi::AnyBuffer sin, ffi::AnyBuffer positions,
                            ffi::AnyBuffer slots, ffi::AnyBuffer k_cache, ffi::AnyBuffer v_cache,
                            ffi::AnyBuffer layer, ffi::AnyBuffer k_scale, ffi::AnyBuffer v_scale,
                            ffi::AnyBuffer slot_map, int64_t layout, int64_t cache_layout,
                            ffi::Result<ffi::AnyBuffer> q_rotated,
                            ffi::Result<ffi::AnyBuffer> new_k_cache,
                            ffi::Result<ffi::AnyBuffer> new_v_cache) {
  return Call("mla_jax.rope_append_kv_mapped", backend, q, k, v, cos, sin, positions, slots,
              k_cache, v_cache, layer, k_scale, v_scale, &slot_map, layout, cache_layout,
              *q_rotated, *new_k_cache, *new_v_cache);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_rope_append_kv_v1, mla::AppendCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("layout")
                                  .Attr<int64_t>("cache_layout")
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_rope_append_kv_mapped_v1, mla::AppendMappedCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("layout")
                                  .Attr<int64_t>("cache_layout")
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);
