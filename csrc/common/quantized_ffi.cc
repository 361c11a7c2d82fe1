// Checks of quantised arguments.
#include "common/quantized_ffi.h"

namespace mla {

QuantizedMatrix QuantizedArgument(Checker* check, const char* name, const ffi::AnyBuffer& data,
                                  const ffi::AnyBuffer& scale, int64_t code, int64_t block_n,
                                  int64_t block_k, int64_t* stack, bool vnni) {
  QuantizedMatrix m = {};
  m.code = static_cast<Code>(code);
  check->Require(code >= 0 && (m.Vnni() ? vnni : code <= 3), "code",
                 std::string("0 (e2m1), 1 (e4m3), 2 (int4)") +
                     (vnni ? ", 3 (e4m3fnuz) or 4 (e2m1, vnni)" : " or 3 (e4m3fnuz)"),
                 std::to_string(code));
  check->Type(name, data,
              {m.code == Code::kE4M3       ? DType::kF8E4M3FN
               : m.code == Code::kE4M3Fnuz ? DType::kF8E4M3FNUZ
                                           : DType::kU8});
  if (m.Mxfp4()) {
    m.scale_type = check->Type("scale", scale, {DType::kU8});
  } else {
    m.scale_type = check->Type("scale", scale, {DType::kF32, DType::kBF16});
  }
  const auto dims = data.dimensions();
  const size_t rank = m.Vnni() ? 4 : 2;  // Of one matrix.
  check->Require(dims.size() >= rank, name, "at least rank " + std::to_string(rank),
                 "shape " + ShapeText(dims));
  check->Require(block_n >= 0 && block_k >= 0, "block", "no negative sizes",
                 std::to_string(block_n) + " x " + std::to_string(block_k));
  // Two codes a byte: a block that begins inside one cannot be addressed.
  check->Require(m.ByteCodes() || block_k % 2 == 0, "block", "an even number of columns",
                 std::to_string(block_k));
  if (!check->ok()) return m;
  if (m.Vnni()) {
    const size_t first = dims.size() - rank;
    check->Require(
        dims[first + 2] == 4 && dims[first + 3] == 64 && block_n == 1 && block_k == kVnniColumns,
        name, "(..., tiles, groups, 4, 64) in blocks of 1 x 32", "shape " + ShapeText(dims));
    m.n = dims[first] * kVnniRows;
    m.k = dims[first + 1] * kVnniColumns;
  } else {
    m.n = dims[dims.size() - 2];
    m.k = dims.back() * (m.ByteCodes() ? 1 : 2);
  }
  m.block_n = block_n == 0 ? (m.n == 0 ? 1 : m.n) : block_n;
  m.block_k = block_k == 0 ? (m.k == 0 ? 1 : m.k) : block_k;
  *stack = 1;
  for (size_t i = 0; i + rank < dims.size(); ++i) *stack *= dims[i];
  const int64_t expected = *stack * m.ScaleRows() * m.ScaleCols();
  check->Require(static_cast<int64_t>(scale.element_count()) == expected, "scale",
                 std::to_string(expected) + " elements", "shape " + ShapeText(scale.dimensions()));
  m.data = static_cast<const uint8_t*>(data.untyped_data());
  m.scale = scale.untyped_data();
  return m;
}

}  // namespace mla
