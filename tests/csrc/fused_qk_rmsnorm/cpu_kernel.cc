// Two norms in place; the columns behind them stay as they are.
#include "cases.h"
#include "fused_qk_rmsnorm/kernel.h"

namespace mla::test {
namespace {

struct Shape {
  int64_t rows, q_width, q, kv_width, kv;
};

}  // namespace

void FusedQkRmsNormCases(Runner& runner) {
  const auto table = MLA_KERNEL_TABLE(FusedQkRmsNorm, FusedQkRmsNormArgs);
  for (const Shape s : {Shape{1, 1, 1, 1, 1}, Shape{0, 3, 3, 5, 4}, Shape{9, 5, 0, 7, 3},
                        Shape{19, 65, 65, 70, 33}, Shape{33, 48, 47, 131, 127}}) {
    for (const DType io : kFloats) {
      for (const DType weight : kFloats) {
        const std::string name = std::string("fused_qk_rmsnorm ") + Name(io) + " " + Name(weight) +
                                 " " + std::to_string(s.kv_width);
        runner.Case<FusedQkRmsNormArgs>(table, name, [=](Memory& memory) {
          const auto rows = [&](int64_t width, int64_t n) {
            return NormedRows{memory.Values(io, s.rows * width, Memory::Kind::kInPlace),
                              memory.Values(weight, n),
                              weight,
                              width,
                              n,
                              1e-6f};
          };
          FusedQkRmsNormArgs args = {};
          args.q = rows(s.q_width, s.q);
          args.kv = rows(s.kv_width, s.kv);
          args.io_type = io;
          args.rows = s.rows;
          return args;
        });
      }
    }
  }
}

}  // namespace mla::test
