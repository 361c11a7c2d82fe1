// Checks of quantised results.
#include "common/group_format_ffi.h"

namespace mla {

QuantizedRows QuantizedResult(Checker* check, const GroupAttributes& attributes, int64_t rows,
                              int64_t k, const ffi::AnyBuffer& data, const ffi::AnyBuffer& scale) {
  QuantizedRows out = {};
  check->Require(attributes.format == 0 || attributes.format == 1, "format", "0 or 1",
                 std::to_string(attributes.format));
  const bool mxfp4 = attributes.format == 0;
  const int64_t group = attributes.group_size;
  if (mxfp4) {
    check->Require(group == kMxfp4Group, "group_size", "32", std::to_string(group));
    check->Require(k > 0 && k % 2 == 0, "x", "rows of an even, positive number of values",
                   std::to_string(k));
  } else {
    check->Require(group > 0, "group_size", "a positive number", std::to_string(group));
    check->Require(k > 0, "x", "rows of a positive number of values", std::to_string(k));
  }
  check->Require(attributes.rounding >= 0 && attributes.rounding <= 3, "rounding", "0 to 3",
                 std::to_string(attributes.rounding));
  if (!check->ok()) return out;
  const int64_t groups = k / group + (k % group != 0);
  check->Type("data", data, {mxfp4 ? DType::kU8 : DType::kF8E4M3FN});
  check->Type("scale", scale, {mxfp4 ? DType::kU8 : DType::kF32});
  check->Shape("data", data, {rows, mxfp4 ? k / 2 : k});
  if (attributes.column_major != 0) {
    check->Shape("scale", scale, {groups, rows});
  } else {
    check->Shape("scale", scale, {rows, groups});
  }
  out.data = static_cast<uint8_t*>(data.untyped_data());
  out.scale = scale.untyped_data();
  out.format = static_cast<GroupFormat>(attributes.format);
  out.rounding = static_cast<Rounding>(attributes.rounding);
  out.column_major = attributes.column_major != 0;
  out.rows = rows;
  out.k = k;
  out.group = group;
  return out;
}

}  // namespace mla
