// Products with weights in every format, from one row to more than a task takes.
#include "cases.h"
#include "linear_quantized/kernel.h"
#include "quantized_weights.h"

namespace mla::test {
namespace {

struct Shape {
  int64_t m, n, k;
};
struct Types {
  DType x, y;
};

}  // namespace

void LinearQuantizedCases(Runner& runner) {
  const auto table = MLA_KERNEL_TABLE(LinearQuantized, LinearQuantizedArgs);
  constexpr DType kF32 = DType::kF32, kBF16 = DType::kBF16;
  for (const WeightFormat& format : WeightFormats()) {
    for (const Shape s :
         {Shape{1, 1, 2}, Shape{0, 3, 4}, Shape{1, 67, 160}, Shape{2, 5, 31}, Shape{3, 9, 34},
          Shape{4, 30, 64}, Shape{5, 33, 95}, Shape{6, 131, 66}, Shape{17, 6, 518},
          Shape{33, 7, 1030}, Shape{515, 5, 38}, Shape{34, 131, 96}, Shape{50, 17, 288}}) {
      if (!format.Holds(s.k)) continue;
      for (const Types t : {Types{kF32, kF32}, Types{kBF16, kF32}, Types{kBF16, kBF16}}) {
        const bool bias = s.m % 2 == 1;
        const std::string name = std::string("linear_quantized ") + format.name + " " + Name(t.x) +
                                 " " + Name(t.y) + " " + std::to_string(s.m) + "x" +
                                 std::to_string(s.n) + "x" + std::to_string(s.k);
        runner.Case<LinearQuantizedArgs>(table, name, [=](Memory& memory) {
          LinearQuantizedArgs args = {};
          args.x = memory.Values(t.x, s.m * s.k);
          args.w = format.Take(memory, s.n, s.k);
          args.bias_type = t.y;
          if (bias) args.bias = memory.Values(t.y, s.n);
          args.y = memory.Result(t.y, s.m * s.n);
          args.x_type = t.x;
          args.y_type = t.y;
          args.m = s.m;
          return args;
        });
      }
    }
  }
}

}  // namespace mla::test
