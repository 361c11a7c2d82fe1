// Weight matrices in every storage format.
#ifndef MLA_TESTS_CSRC_QUANTIZED_WEIGHTS_H_
#define MLA_TESTS_CSRC_QUANTIZED_WEIGHTS_H_

#include <string>
#include <vector>

#include "cases.h"
#include "common/quantized_matrix.h"

namespace mla::test {

// A block of 0 is all rows or columns.
struct WeightFormat {
  const char* name;
  Code code;
  DType scale_type;
  int64_t block_n, block_k;

  bool Vnni() const { return code == Code::kE2M1Vnni; }
  // Whether rows of k values can be stored.
  bool Holds(int64_t k) const {
    if (Vnni()) return k % kVnniColumns == 0;
    return ByteType() != DType::kU8 || k % 2 == 0;
  }
  // Whether matrices of n rows can be stacked and halved.
  bool Stacks(int64_t n) const { return !Vnni() || n % (2 * kVnniRows) == 0; }

  DType ByteType() const {
    if (code == Code::kE4M3Fnuz) return DType::kF8E4M3FNUZ;
    return code == Code::kE4M3 ? DType::kF8E4M3FN : DType::kU8;
  }

  // `stack` matrices of (n, k), one after the other.
  QuantizedMatrix Take(Memory& memory, int64_t n, int64_t k, int64_t stack = 1) const {
    QuantizedMatrix m = {};
    m.code = code;
    m.scale_type = scale_type;
    m.n = n;
    m.k = k;
    m.block_n = block_n == 0 ? n : block_n;
    m.block_k = block_k == 0 ? k : block_k;
    const int64_t rows = Vnni() ? (n + kVnniRows - 1) / kVnniRows * kVnniRows : n;
    m.data = static_cast<uint8_t*>(memory.Values(ByteType(), stack * rows * m.RowBytes()));
    const int64_t scales = stack * (Vnni() ? rows : m.ScaleRows()) * m.ScaleCols();
    // Exponents around one, so that sums are numbers.
    m.scale = scale_type == DType::kU8 ? memory.Range(scales, 120, 130)
                                       : memory.Values(scale_type, scales);
    return m;
  }
};

inline const std::vector<WeightFormat>& WeightFormats() {
  static const std::vector<WeightFormat> formats = {
      {"mxfp4", Code::kE2M1, DType::kU8, 1, 32},
      {"mxfp4 by 6", Code::kE2M1, DType::kU8, 1, 6},
      {"fp8 block", Code::kE4M3, DType::kF32, 5, 32},
      {"fp8 odd block", Code::kE4M3, DType::kBF16, 3, 7},
      {"fnuz odd block", Code::kE4M3Fnuz, DType::kF32, 3, 7},
      {"fp8 channel", Code::kE4M3, DType::kF32, 1, 0},
      {"fp8 tensor", Code::kE4M3, DType::kBF16, 0, 0},
      {"int4 group", Code::kInt4, DType::kBF16, 1, 32},
      {"int4 odd group", Code::kInt4, DType::kF32, 2, 10},
      {"int4 channel", Code::kInt4, DType::kF32, 1, 0},
      {"mxfp4 vnni", Code::kE2M1Vnni, DType::kU8, 1, 32},
  };
  return formats;
}

}  // namespace mla::test

#endif  // MLA_TESTS_CSRC_QUANTIZED_WEIGHTS_H_
