// FFI binding of mla_jax.absorb.v1.
#include "absorb/cpu_kernel.h"
#include "common/ffi_checks.h"
#include "common/parallel_for.h"
#include "python/handlers.h"

namespace mla {
namespace {

ffi::Error Call(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, int64_t x_offset,
                int64_t row_offset, int64_t rows_used, int64_t contract,
                ffi::Result<ffi::AnyBuffer> y) {
  Checker check("mla_jax.absorb");
  AbsorbArgs args = {};
  args.io_type = check.Type("x", x, {DType::kF32, DType::kBF16});
  check.SameType("w", w, args.io_type, "x");
  check.SameType("y", *y, args.io_type, "x");
  check.Rank("x", x, 3);
  check.Rank("w", w, 3);
  args.tokens = Dim(x, 0);
  args.heads = Dim(x, 1);
  args.x_width = Dim(x, 2);
  args.w_rows = Dim(w, 1);
  args.rank = Dim(w, 2);
  check.Shape("w", w, {args.heads, kAny, kAny});
  check.Require(contract == 0 || contract == 1, "contract", "0 (rows) or 1 (columns)",
                std::to_string(contract));
  check.Require(rows_used >= 0 && rows_used <= args.w_rows, "rows_used",
                "between 0 and " + std::to_string(args.w_rows) + " (the rows of 'w')",
                std::to_string(rows_used));
  check.Require(row_offset >= 0 && row_offset <= args.w_rows - rows_used, "row_offset",
                "0 <= row_offset and row_offset + " + std::to_string(rows_used) +
                    " <= " + std::to_string(args.w_rows) + " (the rows of 'w')",
                std::to_string(row_offset));
  const int64_t used = contract == 0 ? rows_used : args.rank;
  check.Require(x_offset >= 0 && used <= args.x_width && x_offset <= args.x_width - used,
                "x_offset",
                "0 <= x_offset and x_offset + " + std::to_string(used) +
                    " <= " + std::to_string(args.x_width) + " (the width of 'x')",
                std::to_string(x_offset));
  check.Shape("y", *y, {args.tokens, args.heads, contract == 0 ? args.rank : rows_used});
  if (!check.ok()) return check.error();
  args.x = x.untyped_data();
  args.w = w.untyped_data();
  args.y = y->untyped_data();
  args.x_offset = x_offset;
  args.row_offset = row_offset;
  args.rows_used = rows_used;
  args.contract_columns = contract == 1;
  MLA_KERNEL(Absorb, AbsorbArgs)(args, PoolExecutor(pool));
  return ffi::Error::Success();
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_absorb_v1, mla::Call,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("x_offset")
                                  .Attr<int64_t>("row_offset")
                                  .Attr<int64_t>("rows_used")
                                  .Attr<int64_t>("contract")
                                  .Ret<xla::ffi::AnyBuffer>());
