// FFI binding of mla_jax.mla_attention_expanded.v1.
#include "common/backend.h"
#include "common/ffi_checks.h"
#include "mla_attention_expanded/kernel.h"
#include "python/handlers.h"

namespace mla {
namespace {

ffi::Error Call(Backend backend, ffi::AnyBuffer q, ffi::AnyBuffer q_rope, ffi::AnyBuffer kv,
                ffi::AnyBuffer rows, ffi::AnyBuffer query_start_loc, int64_t nope, int64_t v,
                float softmax_scale, ffi::Result<ffi::AnyBuffer> out,
                ffi::Result<ffi::AnyBuffer> lse) {
  Checker check("mla_jax.mla_attention_expanded");
  ExpandedAttentionArgs args = {};
  args.io_type = check.Type("q", q, {DType::kF32, DType::kBF16});
  check.SameType("q_rope", q_rope, args.io_type, "q");
  check.SameType("kv", kv, args.io_type, "q");
  check.SameType("rows", rows, args.io_type, "q");
  check.SameType("out", *out, args.io_type, "q");
  check.SameType("lse", *lse, DType::kF32, "lse");
  check.Int32("query_start_loc", query_start_loc);
  check.Rank("q", q, 3);
  check.Rank("q_rope", q_rope, 3);
  check.Rank("rows", rows, 2);
  check.Rank("query_start_loc", query_start_loc, 1);
  args.tokens = Dim(q, 0);
  args.heads = Dim(q, 1);
  args.q_width = Dim(q, 2);
  args.rope = Dim(q_rope, 2);
  args.row_width = Dim(rows, 1);
  args.sequences = Dim(query_start_loc, 0) - 1;
  args.nope = nope;
  args.v = v;
  args.softmax_scale = softmax_scale;
  check.Require(nope >= 0 && nope <= args.q_width, "nope",
                "between 0 and " + std::to_string(args.q_width) + " (the width of 'q')",
                std::to_string(nope));
  check.Require(v >= 0 && v <= INT32_MAX, "v", "a width", std::to_string(v));
  check.Shape("q_rope", q_rope, {args.tokens, args.heads, args.rope});
  if (check.ok()) check.Shape("kv", kv, {args.tokens, args.heads * (nope + v)});
  check.Shape("rows", rows, {args.tokens, kAny});
  check.Require(args.row_width >= args.rope, "rows",
                "at least " + std::to_string(args.rope) + " columns",
                "shape " + ShapeText(rows.dimensions()));
  check.Require(args.sequences >= 0, "query_start_loc", "at least one element", "shape (0)");
  check.Shape("out", *out, {args.tokens, args.heads, v});
  check.Shape("lse", *lse, {args.tokens, args.heads});
  if (!check.ok()) return check.error();
  args.q = q.untyped_data();
  args.q_rope = q_rope.untyped_data();
  args.kv = kv.untyped_data();
  args.rows = rows.untyped_data();
  args.query_start_loc = static_cast<const int32_t*>(query_start_loc.untyped_data());
  args.out = out->untyped_data();
  args.lse = static_cast<float*>(lse->untyped_data());
  return MLA_RUN(ExpandedAttention, ExpandedAttentionArgs, args, backend);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_mla_attention_expanded_v1, mla::Call,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("nope")
                                  .Attr<int64_t>("v")
                                  .Attr<float>("softmax_scale")
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);
