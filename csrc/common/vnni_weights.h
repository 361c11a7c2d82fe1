// MXFP4 weights in the vnni layout, as vnni_product.h and fixed_product.h multiply them.
#ifndef MLA_COMMON_VNNI_WEIGHTS_H_
#define MLA_COMMON_VNNI_WEIGHTS_H_

#include "common/fixed_rows.h"
#include "common/matrix_tile.h"
#include "common/quantized_decode.h"

namespace mla {
namespace MLA_ISA {

// Whether bf16 activations have products with such weights as they lie.
constexpr bool kVnniProducts = kMatrixTiles<bf16> || kFixedRows;

struct VnniWeights {
  using C = std::conditional_t<kFixedRows, float, bf16>;
  const QuantizedMatrix& m;

  int64_t Blocks() const { return m.k / kVnniColumns; }
  const uint8_t* Codes(int64_t tile) const { return m.data + tile * Blocks() * kVnniBytes; }
  const uint8_t* Scales(int64_t tile) const {
    return static_cast<const uint8_t*>(m.scale) + tile * Blocks() * kVnniRows;
  }
};

constexpr int64_t kVnniElements = kVnniRows * kVnniColumns;

// How far ahead of their use codes are asked for, in blocks.
constexpr int64_t kVnniAhead = 8;

// The same for block b of a tile of `blocks` that is multiplied beside others, `together` in all:
// of the same tile or, behind its last block, of the one that follows them, if there is one.
MLA_INLINE int64_t VnniAhead(int64_t b, int64_t blocks, int64_t together, bool another) {
  if (b + kVnniAhead < blocks) return kVnniAhead;
  return another ? kVnniAhead + (together - 1) * blocks : 0;
}

// Values of a block with any scales: (16 pairs of columns, 16 rows, 2).
inline __attribute__((noinline)) void DecodeVnniBlock(const uint8_t* codes, const uint8_t* scales,
                                                      bf16* to) {
  const Mxfp4Row* table = Mxfp4Table();
  for (int i = 0; i < kVnniElements; ++i) {
    const int q = i / 128, row = i / 8 % 16, half = i / 4 % 2, j = i % 4;
    const int code = codes[i / 2] >> (4 * (i % 2)) & 15;
    to[((q * 4 + j) * 16 + row) * 2 + half].bits = table[scales[row]][code];
  }
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_VNNI_WEIGHTS_H_
