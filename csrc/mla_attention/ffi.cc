// FFI binding of mla_jax.mla_attention: contract 1, or contract 2 with scratch for the splits of
// the keys.
#include "common/backend.h"
#include "common/ffi_checks.h"
#include "mla_attention/kernel.h"
#include "python/targets.h"

namespace mla {
namespace {

ffi::Error Call(Backend backend, ffi::AnyBuffer q_latent, ffi::AnyBuffer q_rope,
                ffi::AnyBuffer cache, ffi::AnyBuffer layer, ffi::AnyBuffer scales,
                ffi::AnyBuffer page_table, ffi::AnyBuffer query_start_loc, ffi::AnyBuffer seq_lens,
                float softmax_scale, int64_t cached_only, ffi::Result<ffi::AnyBuffer> out,
                ffi::Result<ffi::AnyBuffer> lse, ffi::RemainingRets scratch) {
  Checker check("mla_jax.mla_attention");
  MlaAttentionArgs args = {};
  args.io_type = check.Type("q_latent", q_latent, {DType::kF32, DType::kBF16});
  check.SameType("q_rope", q_rope, args.io_type, "q_latent");
  args.cache_type = check.Type("cache", cache, {DType::kF32, DType::kBF16, DType::kF8E4M3FN});
  check.Rank("q_latent", q_latent, 3);
  check.Rank("q_rope", q_rope, 3);
  check.Rank("cache", cache, 4);
  check.Rank("page_table", page_table, 2);
  args.tokens = Dim(q_latent, 0);
  args.heads = Dim(q_latent, 1);
  args.rank = Dim(q_latent, 2);
  args.rope = Dim(q_rope, 2);
  args.pages = Dim(cache, 1);
  args.page_size = Dim(cache, 2);
  args.sequences = Dim(page_table, 0);
  args.max_pages = Dim(page_table, 1);
  check.Shape("q_rope", q_rope, {args.tokens, args.heads, args.rope});
  check.Shape("cache", cache, {kAny, kAny, kAny, args.rank + args.rope});
  check.Require(args.page_size >= 1, "cache", "a page size of at least 1",
                "shape " + ShapeText(cache.dimensions()));
  check.Int32("layer", layer);
  check.Shape("layer", layer, {});
  check.SameType("scales", scales, DType::kF32, "lse");
  check.Shape("scales", scales, {2});
  check.Int32("page_table", page_table);
  check.Int32("query_start_loc", query_start_loc);
  check.Shape("query_start_loc", query_start_loc, {args.sequences + 1});
  check.Int32("seq_lens", seq_lens);
  check.Shape("seq_lens", seq_lens, {args.sequences});
  check.Require(cached_only == 0 || cached_only == 1, "cached_only", "0 or 1",
                std::to_string(cached_only));
  check.SameType("out", *out, args.io_type, "q_latent");
  check.Shape("out", *out, {args.tokens, args.heads, args.rank});
  check.SameType("lse", *lse, DType::kF32, "scales");
  check.Shape("lse", *lse, {args.tokens, args.heads});
  args.splits = 1;
  if (check.Scratch(scratch, 2)) {
    auto partial = *scratch.get<ffi::AnyBuffer>(0), partial_lse = *scratch.get<ffi::AnyBuffer>(1);
    const int64_t splits = Dim(*partial, 0);
    check.SameType("partial", *partial, DType::kF32, "lse");
    check.Shape("partial", *partial, {splits, args.tokens, args.heads, args.rank});
    check.SameType("partial_lse", *partial_lse, DType::kF32, "lse");
    check.Shape("partial_lse", *partial_lse, {splits, args.tokens, args.heads});
    if (splits > 0) {
      args.splits = splits;
      args.partial = static_cast<float*>(partial->untyped_data());
      args.partial_lse = static_cast<float*>(partial_lse->untyped_data());
    }
  }
  if (!check.ok()) return check.error();
  args.q_latent = q_latent.untyped_data();
  args.q_rope = q_rope.untyped_data();
  args.cache = cache.untyped_data();
  args.layer = static_cast<const int32_t*>(layer.untyped_data());
  args.layers = Dim(cache, 0);
  args.scales = static_cast<const float*>(scales.untyped_data());
  args.page_table = static_cast<const int32_t*>(page_table.untyped_data());
  args.query_start_loc = static_cast<const int32_t*>(query_start_loc.untyped_data());
  args.seq_lens = static_cast<const int32_t*>(seq_lens.untyped_data());
  args.out = out->untyped_data();
  args.lse = static_cast<float*>(lse->untyped_data());
  args.softmax_scale = softmax_scale;
  args.cached_only = cached_only == 1;
  return MLA_RUN(MlaAttention, MlaAttentionArgs, args, backend);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(MLA_SCRATCH_HANDLER(mla_attention, 1, 2), mla::Call,
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
                                  .Attr<float>("softmax_scale")
                                  .Attr<int64_t>("cached_only")
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .RemainingRets(),
                              MLA_TRAITS);
