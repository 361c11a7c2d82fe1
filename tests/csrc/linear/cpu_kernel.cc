// Products of every pair of types, from one row to more than a task takes.
#include "linear/cpu_kernel.h"

#include "cases.h"

namespace mla::test {
namespace {

struct Shape {
  int64_t m, n, k;
};
struct Types {
  DType x, w, y;
};

}  // namespace

void LinearCases(Runner& runner) {
  const auto table = MLA_KERNEL_TABLE(Linear, LinearArgs);
  constexpr DType kF32 = DType::kF32, kBF16 = DType::kBF16;
  for (const Shape s :
       {Shape{1, 1, 1}, Shape{0, 3, 5}, Shape{2, 3, 0}, Shape{1, 67, 130}, Shape{2, 5, 31},
        Shape{3, 9, 33}, Shape{4, 30, 64}, Shape{5, 33, 95}, Shape{7, 131, 65}, Shape{16, 6, 513},
        Shape{33, 10, 1030}, Shape{17, 7, 2081}, Shape{131, 13, 37}}) {
    for (const Types t : {Types{kF32, kF32, kF32}, Types{kF32, kBF16, kF32},
                          Types{kBF16, kBF16, kF32}, Types{kBF16, kBF16, kBF16}}) {
      for (const int bias : {-1, 0, 1}) {
        const std::string name = std::string("linear ") + Name(t.x) + " " + Name(t.w) + " " +
                                 Name(t.y) + " bias " + std::to_string(bias) + " " +
                                 std::to_string(s.m) + "x" + std::to_string(s.n) + "x" +
                                 std::to_string(s.k);
        runner.Case<LinearArgs>(table, name, [=](Memory& memory) {
          LinearArgs args = {};
          args.x = memory.Values(t.x, s.m * s.k);
          args.w = memory.Values(t.w, s.n * s.k);
          args.bias_type = bias == 1 ? kBF16 : kF32;
          if (bias >= 0) args.bias = memory.Values(args.bias_type, s.n);
          args.y = memory.Result(t.y, s.m * s.n);
          args.x_type = t.x;
          args.w_type = t.w;
          args.y_type = t.y;
          args.m = s.m;
          args.n = s.n;
          args.k = s.k;
          return args;
        });
      }
    }
  }
}

}  // namespace mla::test
