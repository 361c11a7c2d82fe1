// Both halves of the up-projection, as slices of wider rows.
#include "absorb/cpu_kernel.h"

#include "cases.h"

namespace mla::test {
namespace {

struct Shape {
  int64_t tokens, heads, rank, rows_used;
};

}  // namespace

void AbsorbCases(Runner& runner) {
  const auto table = MLA_KERNEL_TABLE(Absorb, AbsorbArgs);
  for (const Shape s :
       {Shape{1, 1, 1, 1}, Shape{0, 2, 8, 4}, Shape{1, 3, 65, 31}, Shape{5, 2, 130, 7},
        Shape{3, 5, 16, 64}, Shape{67, 3, 33, 18}, Shape{40, 1, 520, 9}, Shape{4, 2, 12, 0}}) {
    for (const DType io : kFloats) {
      for (const bool columns : {false, true}) {
        const std::string name = std::string("absorb ") + Name(io) +
                                 (columns ? " columns " : " rows ") + std::to_string(s.tokens) +
                                 "x" + std::to_string(s.rank);
        runner.Case<AbsorbArgs>(table, name, [=](Memory& memory) {
          const int64_t used = columns ? s.rank : s.rows_used;
          AbsorbArgs args = {};
          args.x_offset = columns ? 0 : 3;
          args.row_offset = columns ? 2 : 0;
          args.x_width = used + args.x_offset + (columns ? 0 : 1);
          args.w_rows = s.rows_used + args.row_offset + (columns ? 0 : 1);
          args.x = memory.Values(io, s.tokens * s.heads * args.x_width);
          args.w = memory.Values(io, s.heads * args.w_rows * s.rank);
          args.y = memory.Result(io, s.tokens * s.heads * (columns ? s.rows_used : s.rank));
          args.io_type = io;
          args.tokens = s.tokens;
          args.heads = s.heads;
          args.rank = s.rank;
          args.rows_used = s.rows_used;
          args.contract_columns = columns;
          return args;
        });
      }
    }
  }
}

}  // namespace mla::test
