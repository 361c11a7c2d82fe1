// Norms of a slice of the columns, with a residual, and in place.
#include "cases.h"
#include "rmsnorm/kernel.h"

namespace mla::test {
namespace {

struct Shape {
  int64_t rows, width, offset, n;
};

}  // namespace

void RmsNormCases(Runner& runner) {
  const auto table = MLA_KERNEL_TABLE(RmsNorm, RmsNormArgs);
  for (const Shape s : {Shape{1, 1, 0, 1}, Shape{0, 4, 0, 4}, Shape{3, 5, 5, 0}, Shape{9, 7, 2, 5},
                        Shape{17, 64, 0, 64}, Shape{33, 131, 3, 127}}) {
    for (const DType io : kFloats) {
      for (const DType weight : kFloats) {
        for (const char* form : {"plain", "residual", "in place"}) {
          const bool residual = form[0] != 'p', in_place = form[0] == 'i' && s.n == s.width;
          const std::string name = std::string("rmsnorm ") + form + " " + Name(io) + " " +
                                   Name(weight) + " " + std::to_string(s.width);
          runner.Case<RmsNormArgs>(table, name, [=](Memory& memory) {
            const auto kind = in_place ? Memory::Kind::kInPlace : Memory::Kind::kInput;
            RmsNormArgs args = {};
            void* x = memory.Values(io, s.rows * s.width, kind);
            args.x = x;
            args.y = in_place ? x : memory.Result(io, s.rows * s.n);
            if (residual) {
              void* added = memory.Values(io, s.rows * s.n, kind);
              args.residual = added;
              args.sum = in_place ? added : memory.Result(io, s.rows * s.n);
            }
            args.weight = memory.Values(weight, s.n);
            args.io_type = io;
            args.weight_type = weight;
            args.rows = s.rows;
            args.width = s.width;
            args.offset = s.offset;
            args.n = s.n;
            args.eps = 1e-6f;
            return args;
          });
        }
      }
    }
  }
}

}  // namespace mla::test
