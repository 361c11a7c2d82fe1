// MXFP4: e2m1 codes in groups of 32 with one e8m0 scale, quantised by integer arithmetic alone, so
// that neither flushed subnormals nor a rounded logarithm can change a byte.
#ifndef MLA_COMMON_MXFP4_H_
#define MLA_COMMON_MXFP4_H_

#include <cstdint>

#include "common/simd.h"

namespace mla {

// How a group's exponent follows from its largest magnitude; the order is that of the attribute
// `rounding` (custom_calls/element_formats.py says what each rule means).
enum class Rounding : int64_t { kFloor = 0, kEven = 1, kCeil = 2, kRceil = 3 };

constexpr int64_t kMxfp4Group = 32;

namespace MLA_ISA {

// The e8m0 byte for a largest magnitude with these bits (sign cleared).
inline uint32_t Mxfp4Scale(uint32_t magnitude, Rounding rounding) {
  if (magnitude > 0x7f800000u) return 255;
  uint32_t exponent = magnitude >> 23;
  const uint32_t mantissa = magnitude & 0x7fffffu;
  switch (rounding) {
    case Rounding::kFloor:
      break;
    case Rounding::kEven:
      exponent = (magnitude + 0x200000u) >> 23;
      break;
    case Rounding::kCeil:
      exponent += mantissa != 0;
      break;
    case Rounding::kRceil:
      exponent += mantissa > 0x400000u || magnitude == 0x7f800000u;
      break;
  }
  return exponent < 2 ? 0 : exponent - 2;
}

// Quantises 32 values given by their f32 bits: 16 bytes to `packed`, returns the scale byte.
inline uint8_t Mxfp4Quantize(const uint32_t* bits, Rounding rounding, uint8_t* packed) {
  uint32_t largest = 0;
  for (int i = 0; i < kMxfp4Group; ++i) {
    const uint32_t magnitude = bits[i] & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  const uint32_t scale = Mxfp4Scale(largest, rounding);
  if (scale == 255) {
    for (int i = 0; i < kMxfp4Group / 2; ++i) packed[i] = 0;
    return 255;
  }
  uint32_t codes[kMxfp4Group];
  for (int i = 0; i < kMxfp4Group; ++i) {
    const uint32_t exponent = (bits[i] >> 23) & 255u;
    const uint32_t mantissa = bits[i] & 0x7fffffu;
    const uint32_t significand = exponent == 0 ? mantissa : mantissa | 0x800000u;
    // In quarters of the scale the magnitude is significand * 2^-shift; beyond 25 it is below the
    // first threshold whatever it is.
    int32_t shift =
        21 + static_cast<int32_t>(scale) - static_cast<int32_t>(exponent == 0 ? 1u : exponent);
    shift = shift < 0 ? 0 : (shift > 25 ? 25 : shift);
    // Thresholds between the codes' magnitudes; at a tie the even code wins.
    uint32_t code = significand > (1u << shift);
    code += significand >= (3u << shift);
    code += significand > (5u << shift);
    code += significand >= (7u << shift);
    code += significand > (10u << shift);
    code += significand >= (14u << shift);
    code += significand > (20u << shift);
    code = exponent == 255 ? 7u : code;
    codes[i] = code | ((bits[i] >> 31) << 3);
  }
  for (int i = 0; i < kMxfp4Group / 2; ++i) {
    packed[i] = static_cast<uint8_t>(codes[2 * i] | (codes[2 * i + 1] << 4));
  }
  return static_cast<uint8_t>(scale);
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_MXFP4_H_
