// The number formats of the instructions: conversions by bits, round to nearest even unless a name
// says otherwise.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace emulator {

inline uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
inline float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }

// A small binary float: `bias`, exponent and mantissa widths, and which codes are special.
struct SmallFloat {
  int exponent_bits, mantissa_bits, bias;
  enum class Special { ieee, nan_all_ones, nan_minus_zero, none } special;
  float largest;

  int width() const { return 1 + exponent_bits + mantissa_bits; }
};

// OCP e4m3 and e5m2 (gfx950), their FNUZ forms (gfx942), e2m1, and the IEEE half.
inline constexpr SmallFloat kE4m3{4, 3, 7, SmallFloat::Special::nan_all_ones, 448.0f};
inline constexpr SmallFloat kE5m2{5, 2, 15, SmallFloat::Special::ieee, 57344.0f};
inline constexpr SmallFloat kE4m3Fnuz{4, 3, 8, SmallFloat::Special::nan_minus_zero, 240.0f};
inline constexpr SmallFloat kE5m2Fnuz{5, 2, 16, SmallFloat::Special::nan_minus_zero, 57344.0f};
inline constexpr SmallFloat kE2m1{2, 1, 1, SmallFloat::Special::none, 6.0f};
inline constexpr SmallFloat kHalf{5, 10, 15, SmallFloat::Special::ieee, 65504.0f};

// Every finite code of these formats is a normal float32, so the decoding is exact.
inline float decode(const SmallFloat& format, uint32_t code) {
  const uint32_t sign = code >> (format.width() - 1) & 1;
  const uint32_t magnitude = code & ((1u << (format.width() - 1)) - 1);
  const uint32_t top = (1u << format.exponent_bits) - 1;
  const uint32_t exponent = magnitude >> format.mantissa_bits;
  const uint32_t mantissa = magnitude & ((1u << format.mantissa_bits) - 1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  switch (format.special) {
    case SmallFloat::Special::ieee:
      if (exponent == top)
        return float_of(sign << 31 | 0x7f800000u | mantissa << (23 - format.mantissa_bits));
      break;
    case SmallFloat::Special::nan_all_ones:
      if (magnitude == (1u << (format.width() - 1)) - 1) return nan;
      break;
    case SmallFloat::Special::nan_minus_zero:
      if (sign && !magnitude) return nan;
      break;
    case SmallFloat::Special::none:
      break;
  }
  const float fraction = exponent ? 1.0f + float(mantissa) / float(1u << format.mantissa_bits)
                                  : float(mantissa) / float(1u << format.mantissa_bits);
  const float value = std::ldexp(fraction, int(exponent ? exponent : 1) - format.bias);
  return sign ? -value : value;
}

enum class Overflow { special, saturate };

// The nearest code of a finite or special double. A double holds every exact intermediate that
// reaches here.
inline uint32_t encode(const SmallFloat& format, double value, Overflow overflow) {
  const uint32_t sign_bit = 1u << (format.width() - 1);
  uint32_t sign = std::signbit(value) ? sign_bit : 0;
  const bool unsigned_zero = format.special == SmallFloat::Special::nan_minus_zero;
  uint32_t nan = sign_bit - 1, infinity = nan;
  switch (format.special) {
    case SmallFloat::Special::ieee:
      infinity = ((1u << format.exponent_bits) - 1) << format.mantissa_bits;
      nan = infinity | 1u << (format.mantissa_bits - 1);
      break;
    case SmallFloat::Special::nan_all_ones:
      break;
    case SmallFloat::Special::nan_minus_zero:
      nan = infinity = sign_bit, sign = sign && value != 0 ? sign : 0;
      break;
    case SmallFloat::Special::none:
      overflow = Overflow::saturate;
      break;
  }
  if (std::isnan(value)) return unsigned_zero ? nan : sign | nan;
  const double magnitude = std::fabs(value);
  const int exponent =
      magnitude == 0 ? 1 - format.bias : std::max(std::ilogb(magnitude), 1 - format.bias);
  const double quantum = std::ldexp(1.0, std::min(exponent, 1024) - format.mantissa_bits);
  const double rounded =
      std::isinf(magnitude) ? magnitude : std::nearbyint(magnitude / quantum) * quantum;
  if (rounded > format.largest) {
    if (std::isinf(magnitude) && format.special == SmallFloat::Special::ieee)
      return sign | infinity;
    if (overflow == Overflow::special) return unsigned_zero ? nan : sign | infinity;
    return encode(format, std::copysign(double(format.largest), value), overflow);
  }
  if (rounded == 0) return unsigned_zero ? 0 : sign;
  const int final_exponent = std::max(std::ilogb(rounded), 1 - format.bias);
  const uint32_t steps = uint32_t(std::ldexp(rounded, format.mantissa_bits - final_exponent));
  const uint32_t hidden = 1u << format.mantissa_bits;
  const uint32_t biased = steps >= hidden ? uint32_t(final_exponent + format.bias) : 0;
  return sign | biased << format.mantissa_bits | (steps & (hidden - 1));
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x0400) return float_of(sign | ((magnitude << 13) + 0x38000000u));
  const float value = float(magnitude) * 0x1p-24f;
  return sign ? -value : value;
}

inline uint16_t float_to_half(float value) {
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (magnitude >= 0x38800000) {
    const uint32_t rebased = magnitude - 0x38000000u;
    return uint16_t(sign | (rebased + 0xfff + (rebased >> 13 & 1)) >> 13);
  }
  if (magnitude < 0x33000000) return uint16_t(sign);
  // Adding 0.5 leaves the rounded half-denormal in the low mantissa bits of the sum.
  return uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
}

inline uint16_t float_to_half_toward_zero(float value) {
  const uint16_t nearest = float_to_half(value);
  if ((nearest & 0x7fff) > 0x7c00) return nearest;
  if ((nearest & 0x7fff) == 0x7c00) return std::isinf(value) ? nearest : uint16_t(nearest - 1);
  return std::fabs(half_to_float(nearest)) > std::fabs(value) ? uint16_t(nearest - 1) : nearest;
}

inline float bf16_to_float(uint16_t value) { return float_of(uint32_t(value) << 16); }

inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// IEEE minimum and maximum of the ISA documents' V_MIN_F32 and V_MAX_F32 with MODE.IEEE set: a
// signalling NaN is returned quiet, a quiet NaN gives way to the number, and -0 is below +0.
template <class T>
inline bool is_signalling(T value) {
  if constexpr (sizeof(T) == 4) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    return (bits & 0x7fffffff) > 0x7f800000 && !(bits & 0x00400000);
  } else {
    const uint64_t bits = std::bit_cast<uint64_t>(value);
    return (bits & ~(1ull << 63)) > 0x7ff0000000000000 && !(bits & 0x0008000000000000);
  }
}

template <class T>
inline T minimum_number(T a, T b) {
  if (is_signalling(a)) return a + a;
  if (is_signalling(b)) return b + b;
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}

template <class T>
inline T maximum_number(T a, T b) {
  if (is_signalling(a)) return a + a;
  if (is_signalling(b)) return b + b;
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}

template <class T>
inline T median_number(T a, T b, T c) {
  if (a != a || b != b || c != c) return minimum_number(minimum_number(a, b), c);
  const T top = maximum_number(maximum_number(a, b), c);
  if (top == a) return maximum_number(b, c);
  if (top == b) return maximum_number(a, c);
  return maximum_number(a, b);
}

// V_MINIMUM3_F32 and V_MAXIMUM3_F32: a NaN wins.
inline float minimum(float a, float b) {
  return a != a ? a + a : b != b ? b + b : minimum_number(a, b);
}
inline float maximum(float a, float b) {
  return a != a ? a + a : b != b ? b + b : maximum_number(a, b);
}

// Conversions to integers truncate, saturate, and send NaN to zero.
template <class Integer, class Float>
inline Integer to_integer(Float value) {
  if (value != value) return 0;
  const Float truncated = std::trunc(value);
  const double lowest = double(std::numeric_limits<Integer>::min()),
               above = std::ldexp(1.0, std::numeric_limits<Integer>::digits);
  if (double(truncated) < lowest) return std::numeric_limits<Integer>::min();
  if (double(truncated) >= above) return std::numeric_limits<Integer>::max();
  return Integer(truncated);
}

}  // namespace emulator
