// MXFP4: e2m1 codes in groups of 32 with one e8m0 scale.
#ifndef MLA_COMMON_MXFP4_H_
#define MLA_COMMON_MXFP4_H_

#include <cstdint>

#include "common/group_format.h"
#include "common/simd.h"

namespace mla {
namespace MLA_ISA {

typedef uint64_t vq __attribute__((vector_size(MLA_VECTOR_BYTES)));

// The e8m0 byte for a largest magnitude with these bits (sign cleared). Integer arithmetic alone:
// a rounded logarithm could change a byte.
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

// 2^(127 - scale), for scale <= 254: what takes a value to the grid of the codes.
inline float Mxfp4Inverse(uint32_t scale) {
  const uint32_t bits = scale < 254 ? (254 - scale) << 23 : 0x400000u;
  float inverse;
  __builtin_memcpy(&inverse, &bits, sizeof(inverse));
  return inverse;
}

// e2m1 codes, one a 32-bit lane, of values with these bits after the product with `inverse`, a
// power of two. To nearest, ties to the even code; saturates at 6; keeps the sign of zero.
MLA_INLINE vu EncodeE2M1(vu bits, float inverse) {
  // Exact down to the smallest magnitude that is not far below the first threshold.
  const vf y = FromBits(bits & 0x7fffffffu) * inverse;
  // Below 1 the codes are multiples of 0.5, the unit in the last place of 2^22.
  const vi small = (vi)Bits(y + 4194304.0f) - 0x4a800000;
  // From 1 on they are the top mantissa bit and the exponent.
  const vu u = Bits(y);
  const vi large = (vi)((u + 0x1fffffu + ((u >> 22) & 1u)) >> 22) - 252;
  const vi code = (vi)u < 0x3f800000 ? small : (large > 7 ? vi{} + 7 : large);
  return (vu)code | ((bits >> 28) & 8u);
}

// Quantises 32 values: 16 bytes to `packed`, the even index in the low nibble; returns the scale
// byte. Subnormals must not be flushed (KeepDenormals).
template <typename T>
inline uint8_t Mxfp4Quantize(const T* x, Rounding rounding, uint8_t* packed) {
  constexpr int kVectors = static_cast<int>(kMxfp4Group) / kLanes;
  vu bits[kVectors];
  vu largest = {};
  MLA_UNROLL
  for (int i = 0; i < kVectors; ++i) {
    bits[i] = Bits(Load(x + i * kLanes));
    largest = MaxMagnitude(largest, bits[i] & 0x7fffffffu);
  }
  const uint32_t scale = Mxfp4Scale(LaneMaxMagnitude(largest), rounding);
  if (scale == 255) {
    __builtin_memset(packed, 0, static_cast<size_t>(kMxfp4Group / 2));
    return 255;
  }
  const float inverse = Mxfp4Inverse(scale);
#if !defined(__AVX512F__)
  uint32_t codes[kMxfp4Group];
#endif
  MLA_UNROLL
  for (int i = 0; i < kVectors; ++i) {
    const vu code = EncodeE2M1(bits[i], inverse);
#if defined(__AVX512F__)
    // A pair is one 64-bit lane.
    const vq pair = (vq)code | ((vq)code >> 28);
    const __m128i bytes = _mm512_maskz_cvtepi64_epi8(0xff, (__m512i)pair);
    __builtin_memcpy(packed + i * (kLanes / 2), &bytes, kLanes / 2);
#else
    __builtin_memcpy(codes + i * kLanes, &code, sizeof(code));
#endif
  }
#if !defined(__AVX512F__)
  for (int i = 0; i < kMxfp4Group / 2; ++i) {
    packed[i] = static_cast<uint8_t>(codes[2 * i] | (codes[2 * i + 1] << 4));
  }
#endif
  return static_cast<uint8_t>(scale);
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_MXFP4_H_
