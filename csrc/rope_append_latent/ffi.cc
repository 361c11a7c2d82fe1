// FFI binding of mla_jax.rope_append_latent.v1 and mla_jax.rope_latent_rows.v1.
#include "common/backend.h"
#include "common/ffi_checks.h"
#include "python/handlers.h"
#include "rope_append_latent/kernel.h"

namespace mla {
namespace {

// The operands that both forms share.
struct Inputs {
  ffi::AnyBuffer q, kv_a, norm_weight, cos, sin, positions;
  int64_t q_offset, kv_offset, layout;
  float eps;
};

RopeAppendArgs CheckInputs(Checker& check, const Inputs& in, const ffi::AnyBuffer& q_rope) {
  RopeAppendArgs args = {};
  args.io_type = check.Type("q", in.q, {DType::kF32, DType::kBF16});
  check.SameType("kv_a", in.kv_a, args.io_type, "q");
  args.weight_type = check.Type("norm_weight", in.norm_weight, {DType::kF32, DType::kBF16});
  check.SameType("cos", in.cos, DType::kF32, "sin");
  check.SameType("sin", in.sin, DType::kF32, "cos");
  check.Int32("positions", in.positions);
  check.SameType("q_rope", q_rope, args.io_type, "q");
  check.Rank("q", in.q, 3);
  check.Rank("q_rope", q_rope, 3);
  check.Rank("norm_weight", in.norm_weight, 1);
  check.Rank("cos", in.cos, 2);
  args.tokens = Dim(in.q, 0);
  args.heads = Dim(in.q, 1);
  args.q_width = Dim(in.q, 2);
  args.kv_width = Dim(in.kv_a, 1);
  args.rank = Dim(in.norm_weight, 0);
  args.rope = Dim(q_rope, 2);
  args.table_rows = Dim(in.cos, 0);
  check.Shape("kv_a", in.kv_a, {args.tokens, kAny});
  check.Require(args.rope % 2 == 0, "q_rope", "an even rope width", std::to_string(args.rope));
  check.Require(args.table_rows > 0, "cos", "at least one row", ShapeText(in.cos.dimensions()));
  check.Shape("cos", in.cos, {args.table_rows, args.rope / 2});
  check.Shape("sin", in.sin, {args.table_rows, args.rope / 2});
  check.Shape("positions", in.positions, {args.tokens});
  check.Shape("q_rope", q_rope, {args.tokens, args.heads, args.rope});
  check.Require(
      in.q_offset >= 0 && args.rope <= args.q_width && in.q_offset <= args.q_width - args.rope,
      "q_offset",
      "0 <= q_offset and q_offset + " + std::to_string(args.rope) +
          " <= " + std::to_string(args.q_width) + " (the width of 'q')",
      std::to_string(in.q_offset));
  const int64_t width = args.rank + args.rope;
  check.Require(
      in.kv_offset >= 0 && width <= args.kv_width && in.kv_offset <= args.kv_width - width,
      "kv_offset",
      "0 <= kv_offset and kv_offset + " + std::to_string(width) +
          " <= " + std::to_string(args.kv_width) + " (the width of 'kv_a')",
      std::to_string(in.kv_offset));
  check.Require(in.layout == 0 || in.layout == 1, "layout", "0 (interleaved) or 1 (half)",
                std::to_string(in.layout));
  args.q = in.q.untyped_data();
  args.kv_a = in.kv_a.untyped_data();
  args.norm_weight = in.norm_weight.untyped_data();
  args.cos = static_cast<const float*>(in.cos.untyped_data());
  args.sin = static_cast<const float*>(in.sin.untyped_data());
  args.positions = static_cast<const int32_t*>(in.positions.untyped_data());
  args.q_rope = q_rope.untyped_data();
  args.q_offset = in.q_offset;
  args.kv_offset = in.kv_offset;
  args.eps = in.eps;
  args.half_layout = in.layout == 1;
  return args;
}

ffi::Error AppendCall(Backend backend, ffi::AnyBuffer q, ffi::AnyBuffer kv_a,
                      ffi::AnyBuffer norm_weight, ffi::AnyBuffer cos, ffi::AnyBuffer sin,
                      ffi::AnyBuffer positions, ffi::AnyBuffer slots, ffi::AnyBuffer cache,
                      ffi::AnyBuffer layer, ffi::AnyBuffer scales, int64_t q_offset,
                      int64_t kv_offset, float eps, int64_t layout,
                      ffi::Result<ffi::AnyBuffer> q_rope, ffi::Result<ffi::AnyBuffer> new_cache) {
  Checker check("mla_jax.rope_append_latent");
  RopeAppendArgs args = CheckInputs(
      check, {q, kv_a, norm_weight, cos, sin, positions, q_offset, kv_offset, layout, eps},
      *q_rope);
  args.store_type = check.Type("cache", cache, {DType::kF32, DType::kBF16, DType::kF8E4M3FN});
  check.Rank("cache", cache, 4);
  const int64_t layers = Dim(cache, 0);
  args.slots_per_layer = Dim(cache, 1) * Dim(cache, 2);
  check.Shape("cache", cache, {kAny, kAny, kAny, args.rank + args.rope});
  check.SameType("new_cache", *new_cache, args.store_type, "cache");
  check.Shape("new_cache", *new_cache,
              {layers, Dim(cache, 1), Dim(cache, 2), args.rank + args.rope});
  check.Int32("slots", slots);
  check.Shape("slots", slots, {args.tokens});
  check.Int32("layer", layer);
  check.Shape("layer", layer, {});
  check.SameType("scales", scales, DType::kF32, "cos");
  check.Shape("scales", scales, {2});
  check.Same("new_cache", *new_cache, "cache", cache);
  if (!check.ok()) return check.error();
  args.slots = static_cast<const int32_t*>(slots.untyped_data());
  args.scales = static_cast<const float*>(scales.untyped_data());
  args.store = new_cache->untyped_data();
  args.layer = static_cast<const int32_t*>(layer.untyped_data());
  args.layers = layers;
  return MLA_RUN(RopeAppend, RopeAppendArgs, args, backend);
}

ffi::Error RowsCall(Backend backend, ffi::AnyBuffer q, ffi::AnyBuffer kv_a,
                    ffi::AnyBuffer norm_weight, ffi::AnyBuffer cos, ffi::AnyBuffer sin,
                    ffi::AnyBuffer positions, int64_t q_offset, int64_t kv_offset, float eps,
                    int64_t layout, ffi::Result<ffi::AnyBuffer> q_rope,
                    ffi::Result<ffi::AnyBuffer> rows) {
  Checker check("mla_jax.rope_latent_rows");
  RopeAppendArgs args = CheckInputs(
      check, {q, kv_a, norm_weight, cos, sin, positions, q_offset, kv_offset, layout, eps},
      *q_rope);
  check.SameType("rows", *rows, args.io_type, "q");
  check.Shape("rows", *rows, {args.tokens, args.rank + args.rope});
  if (!check.ok()) return check.error();
  args.store_type = args.io_type;
  args.store = rows->untyped_data();
  args.slots_per_layer = args.tokens;
  args.layers = 1;
  return MLA_RUN(RopeAppend, RopeAppendArgs, args, backend);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_rope_append_latent_v1, mla::AppendCall,
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
                                  .Attr<int64_t>("q_offset")
                                  .Attr<int64_t>("kv_offset")
                                  .Attr<float>("eps")
                                  .Attr<int64_t>("layout")
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_rope_latent_rows_v1, mla::RowsCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("q_offset")
                                  .Attr<int64_t>("kv_offset")
                                  .Attr<float>("eps")
                                  .Attr<int64_t>("layout")
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);
