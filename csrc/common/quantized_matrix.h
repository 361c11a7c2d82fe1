// A quantised weight matrix as a kernel sees it: codes, scales, and which values share a scale.
#ifndef MLA_COMMON_QUANTIZED_MATRIX_H_
#define MLA_COMMON_QUANTIZED_MATRIX_H_

#include <cstdint>

#include "common/dtype.h"

namespace mla {

// The order is that of the attribute `code`.
enum class Code : int64_t { kE2M1 = 0, kE4M3 = 1, kInt4 = 2, kE4M3Fnuz = 3, kE2M1Vnni = 4 };

// A tile of the vnni layout of custom_calls/quantized_tensor.py has 16 rows, cut into blocks of 32
// columns. A 32-bit word holds eight columns of one row, those of even number in its lower half,
// and the words of a tile's rows lie side by side.
constexpr int64_t kVnniRows = 16, kVnniColumns = 32;
constexpr int64_t kVnniBytes = kVnniRows * kVnniColumns / 2;  // Of a block's codes.

// value[n, k] = code[n, k] * scale[n / block_n, k / block_k]; last blocks may be ragged.
struct QuantizedMatrix {
  const uint8_t* data;  // (n, k / 2) for 4-bit codes, even k in the low nibble; else (n, k)
  const void* scale;    // (ceil(n / block_n), ceil(k / block_k))
  // Of kE2M1Vnni data: (tiles, k / 32, 4, 16 words), scale: (tiles, k / 32, 16).
  Code code;
  DType scale_type;  // kU8: e8m0
  int64_t n, k, block_n, block_k;

  bool ByteCodes() const { return code == Code::kE4M3 || code == Code::kE4M3Fnuz; }
  bool Vnni() const { return code == Code::kE2M1Vnni; }
  bool Mxfp4() const { return code == Code::kE2M1 || Vnni(); }
  int64_t RowBytes() const { return ByteCodes() ? k : k / 2; }
  int64_t ScaleRows() const { return (n + block_n - 1) / block_n; }
  int64_t ScaleCols() const { return (k + block_k - 1) / block_k; }
  int64_t ScaleBytes() const {
    return scale_type == DType::kU8 ? 1 : (scale_type == DType::kBF16 ? 2 : 4);
  }
  // Matrix `index` of a stack that starts with this one; in the vnni layout all its tiles are
  // whole.
  QuantizedMatrix At(int64_t index) const {
    QuantizedMatrix m = *this;
    m.data += index * n * RowBytes();
    m.scale = static_cast<const char*>(scale) + index * ScaleRows() * ScaleCols() * ScaleBytes();
    return m;
  }
};

// bf16 bits of code * 2^(scale - 127) for every e8m0 byte and e2m1 code. Every product is exact.
using Mxfp4Row = uint16_t[16];
const Mxfp4Row* Mxfp4Table();

}  // namespace mla

#endif  // MLA_COMMON_QUANTIZED_MATRIX_H_
