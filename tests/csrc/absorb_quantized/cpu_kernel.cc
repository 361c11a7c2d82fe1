// Both halves of a quantised up-projection, whose blocks may span heads.
#include "absorb_quantized/kernel.h"
#include "cases.h"
#include "quantized_weights.h"

namespace mla::test {
namespace {

struct Shape {
  int64_t tokens, heads, rank, rows_used;
};

}  // namespace

void AbsorbQuantizedCases(Runner& runner) {
  const auto table = MLA_KERNEL_TABLE(AbsorbQuantized, AbsorbQuantizedArgs);
  for (const WeightFormat& format : WeightFormats()) {
    for (const Shape s : {Shape{1, 1, 2, 1}, Shape{0, 2, 8, 4}, Shape{1, 3, 65, 31},
                          Shape{5, 2, 130, 7}, Shape{67, 3, 64, 18}, Shape{4, 2, 12, 0}}) {
      if (!format.Holds(s.rank) || format.Vnni()) continue;  // Which it does not take.
      for (const DType io : kFloats) {
        for (const bool columns : {false, true}) {
          const std::string name = std::string("absorb_quantized ") + format.name + " " + Name(io) +
                                   (columns ? " columns " : " rows ") + std::to_string(s.tokens) +
                                   "x" + std::to_string(s.rank);
          runner.Case<AbsorbQuantizedArgs>(table, name, [=](Memory& memory) {
            const int64_t used = columns ? s.rank : s.rows_used;
            AbsorbQuantizedArgs args = {};
            args.x_offset = columns ? 0 : 3;
            args.row_offset = columns ? 2 : 0;
            args.x_width = used + args.x_offset + (columns ? 0 : 1);
            args.w_rows = s.rows_used + args.row_offset + (columns ? 0 : 1);
            args.x = memory.Values(io, s.tokens * s.heads * args.x_width);
            args.w = format.Take(memory, s.heads * args.w_rows, s.rank);
            args.y = memory.Result(io, s.tokens * s.heads * (columns ? s.rows_used : s.rank));
            args.io_type = io;
            args.tokens = s.tokens;
            args.heads = s.heads;
            args.rows_used = s.rows_used;
            args.contract_columns = columns;
            return args;
          });
        }
      }
    }
  }
}

}  // namespace mla::test
