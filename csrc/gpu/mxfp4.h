// MXFP4 quantisation of single values, in the integer arithmetic of common/mxfp4.h.
#ifndef MLA_GPU_MXFP4_H_
#define MLA_GPU_MXFP4_H_

#include "common/group_format.h"
#include "gpu/convert.h"

namespace mla {
namespace gpu {

// The e8m0 byte for a largest magnitude with these bits (sign cleared).
MLA_DEVICE uint32_t Mxfp4Scale(uint32_t magnitude, Rounding rounding) {
  if (magnitude > 0x7f800000u) return 255;
  uint32_t exponent = magnitude >> 23;
  const uint32_t mantissa = magnitude & 0x7fffffu;
  if (rounding == Rounding::kEven) {
    exponent = (magnitude + 0x200000u) >> 23;
  } else if (rounding == Rounding::kCeil) {
    exponent += mantissa != 0 ? 1 : 0;
  } else if (rounding == Rounding::kRceil) {
    exponent += mantissa > 0x400000u || magnitude == 0x7f800000u ? 1 : 0;
  }
  return exponent < 2 ? 0 : exponent - 2;
}

// The e2m1 code of value / 2^(scale - 127), scale <= 254: to nearest, ties to the even code;
// saturates at 6; keeps the sign of zero.
MLA_DEVICE uint32_t EncodeE2M1(uint32_t bits, uint32_t scale) {
  const uint32_t inverse = scale < 254 ? (254 - scale) << 23 : 0x400000u;
  const float y = BitCast<float>(bits & 0x7fffffffu) * BitCast<float>(inverse);
  // Below 1 the codes are multiples of 0.5, the unit in the last place of 2^22.
  const uint32_t small = BitCast<uint32_t>(y + 4194304.0f) - 0x4a800000u;
  // From 1 on they are the top mantissa bit and the exponent.
  const uint32_t u = BitCast<uint32_t>(y);
  const uint32_t large = ((u + 0x1fffffu + ((u >> 22) & 1u)) >> 22) - 252u;
  const uint32_t code = u < 0x3f800000u ? small : (large > 7 ? 7 : large);
  return code | ((bits >> 28) & 8u);
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_MXFP4_H_
