// FFI binding of mla_jax.absorb_quantized.v2.
#include "absorb_quantized/kernel.h"
#include "common/backend.h"
#include "common/ffi_checks.h"
#include "common/quantized_ffi.h"
#include "python/handlers.h"

namespace mla {
namespace {

ffi::Error AbsorbQuantizedCall(Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer data,
                               ffi::AnyBuffer scale, int64_t x_offset, int64_t row_offset,
                               int64_t rows_used, int64_t contract, int64_t code, int64_t block_n,
                               int64_t block_k, ffi::Result<ffi::AnyBuffer> y) {
  Checker check("mla_jax.absorb_quantized");
  AbsorbQuantizedArgs args = {};
  int64_t stack = 1;
  args.w = QuantizedArgument(&check, "data", data, scale, code, block_n, block_k, &stack);
  args.io_type = check.Type("x", x, {DType::kF32, DType::kBF16});
  check.SameType("y", *y, args.io_type, "x");
  check.Rank("x", x, 3);
  args.tokens = Dim(x, 0);
  args.heads = Dim(x, 1);
  args.x_width = Dim(x, 2);
  check.Require(stack == 1 && args.heads > 0 && args.w.n % args.heads == 0, "data",
                "(heads * rows, rank) for " + std::to_string(args.heads) + " heads",
                "shape " + ShapeText(data.dimensions()));
  if (!check.ok()) return check.error();
  args.w_rows = args.w.n / args.heads;
  check.Require(contract == 0 || contract == 1, "contract", "0 (rows) or 1 (columns)",
                std::to_string(contract));
  check.Require(rows_used >= 0 && rows_used <= args.w_rows, "rows_used",
                "between 0 and " + std::to_string(args.w_rows) + " (the rows of a head)",
                std::to_string(rows_used));
  check.Require(row_offset >= 0 && row_offset <= args.w_rows - rows_used, "row_offset",
                "0 <= row_offset and row_offset + " + std::to_string(rows_used) +
                    " <= " + std::to_string(args.w_rows) + " (the rows of a head)",
                std::to_string(row_offset));
  const int64_t used = contract == 0 ? rows_used : args.w.k;
  check.Require(x_offset >= 0 && used <= args.x_width && x_offset <= args.x_width - used,
                "x_offset",
                "0 <= x_offset and x_offset + " + std::to_string(used) +
                    " <= " + std::to_string(args.x_width) + " (the width of 'x')",
                std::to_string(x_offset));
  check.Shape("y", *y, {args.tokens, args.heads, contract == 0 ? args.w.k : rows_used});
  if (!check.ok()) return check.error();
  args.x = x.untyped_data();
  args.y = y->untyped_data();
  args.x_offset = x_offset;
  args.row_offset = row_offset;
  args.rows_used = rows_used;
  args.contract_columns = contract == 1;
  return MLA_RUN(AbsorbQuantized, AbsorbQuantizedArgs, args, backend);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_absorb_quantized_v2, mla::AbsorbQuantizedCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("x_offset")
                                  .Attr<int64_t>("row_offset")
                                  .Attr<int64_t>("rows_used")
                                  .Attr<int64_t>("contract")
                                  .Attr<int64_t>("code")
                                  .Attr<int64_t>("block_n")
                                  .Attr<int64_t>("block_k")
                                  .Ret<xla::ffi::AnyBuffer>(),
                              MLA_TRAITS);
