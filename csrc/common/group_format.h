// Rows quantised in groups, as plain data: where they go and by which rules. No function lives
// here: this header is shared by translation units compiled for different instruction sets.
#ifndef MLA_COMMON_GROUP_FORMAT_H_
#define MLA_COMMON_GROUP_FORMAT_H_

#include <cstdint>

namespace mla {

// Element format and kind of scale; the order is that of the attribute `format`.
enum class GroupFormat : int64_t { kMxfp4 = 0, kFp8 = 1 };

// How an MXFP4 group's exponent follows from its largest magnitude; the order is that of the
// attribute `rounding` (custom_calls/element_formats.py says what each rule means).
enum class Rounding : int64_t { kFloor = 0, kEven = 1, kCeil = 2, kRceil = 3 };

constexpr int64_t kMxfp4Group = 32;

struct QuantizedRows {
  uint8_t* data;  // (rows, k / 2) e2m1 pairs or (rows, k) e4m3fn
  void* scale;    // (rows, groups) or, column_major, (groups, rows); u8 (e8m0) or f32
  GroupFormat format;
  Rounding rounding;  // of kMxfp4
  bool column_major;
  int64_t rows, k, group;
};

}  // namespace mla

#endif  // MLA_COMMON_GROUP_FORMAT_H_
