// The table of MXFP4 values.
#include "common/quantized_matrix.h"

namespace mla {
namespace {

struct Table {
  alignas(64) Mxfp4Row row[256];
  Table() {
    for (int scale = 0; scale < 256; ++scale) {
      for (int code = 0; code < 16; ++code) row[scale][code] = Value(scale, code);
    }
  }
  static uint16_t Value(int scale, int code) {
    const int magnitude = code & 7;
    const int sign = (code >> 3) << 15;
    if (scale == 255) return 0x7fc0;
    if (magnitude == 0) return static_cast<uint16_t>(sign);
    // (1 + m / 2) * 2^(magnitude / 2 - 1), but 0.5 for the first code.
    const int exponent = scale + (magnitude >> 1) - 1;
    const int significand = 0x80 | (magnitude == 1 ? 0 : (magnitude & 1) << 6);
    if (exponent >= 255) return static_cast<uint16_t>(sign | 0x7f80);
    if (exponent > 0) return static_cast<uint16_t>(sign | (exponent << 7) | (significand & 0x7f));
    return static_cast<uint16_t>(sign | (significand >> (1 - exponent)));
  }
};

}  // namespace

const Mxfp4Row* Mxfp4Table() {
  static const Table table;
  return table.row;
}

}  // namespace mla
