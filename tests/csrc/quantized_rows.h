// Where the ops that quantise activations put their rows, in every format.
#ifndef MLA_TESTS_CSRC_QUANTIZED_ROWS_H_
#define MLA_TESTS_CSRC_QUANTIZED_ROWS_H_

#include <functional>
#include <string>

#include "cases.h"
#include "common/group_format.h"

namespace mla::test {

// A format and a shape. `Take` gives it memory.
struct RowsCase {
  GroupFormat format;
  Rounding rounding;
  bool column_major;
  int64_t rows, k, group;

  bool mxfp4() const { return format == GroupFormat::kMxfp4; }
  std::string name() const {
    return std::string(mxfp4() ? "mxfp4 " : "fp8 ") + std::to_string(static_cast<int>(rounding)) +
           (column_major ? " columns " : " rows ") + std::to_string(rows) + "x" +
           std::to_string(k) + "/" + std::to_string(group);
  }
  QuantizedRows Take(Memory& memory) const {
    const int64_t groups = (k + group - 1) / group;
    QuantizedRows out = {};
    out.data = static_cast<uint8_t*>(memory.Result(DType::kU8, rows * (mxfp4() ? k / 2 : k)));
    out.scale = memory.Result(mxfp4() ? DType::kU8 : DType::kF32, rows * groups);
    out.format = format;
    out.rounding = rounding;
    out.column_major = column_major;
    out.rows = rows;
    out.k = k;
    out.group = group;
    return out;
  }
};

inline void EachRowsCase(const std::function<void(const RowsCase&)>& take) {
  struct Shape {
    int64_t rows, k, group;
  };
  for (const bool column_major : {false, true}) {
    for (const Shape s : {Shape{1, 2, 32}, Shape{0, 64, 32}, Shape{3, 34, 32}, Shape{5, 94, 32},
                          Shape{17, 512, 32}, Shape{300, 62, 32}}) {
      for (const Rounding rounding :
           {Rounding::kFloor, Rounding::kEven, Rounding::kCeil, Rounding::kRceil}) {
        if (column_major && rounding != Rounding::kEven) continue;  // They do not meet.
        take({GroupFormat::kMxfp4, rounding, column_major, s.rows, s.k, s.group});
      }
    }
    for (const Shape s : {Shape{1, 1, 1}, Shape{0, 3, 7}, Shape{3, 7, 3}, Shape{5, 129, 128},
                          Shape{19, 31, 64}, Shape{300, 130, 128}}) {
      take({GroupFormat::kFp8, Rounding::kFloor, column_major, s.rows, s.k, s.group});
    }
  }
}

}  // namespace mla::test

#endif  // MLA_TESTS_CSRC_QUANTIZED_ROWS_H_
