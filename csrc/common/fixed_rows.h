// Activations as whole numbers of 24 bits, for processors that multiply bytes but not pairs of
// bf16.
//
// Of 32 columns of a row the largest magnitude lies in [2^e, 2^(e+1)); they are multiples of
// 2^(e-21). So bf16 values down to 2^-14 of it are what they were, and smaller ones are rounded
// to 2^-22 of it, which is what a sum of f32 keeps of them. A number is three signed bytes.
#ifndef MLA_COMMON_FIXED_ROWS_H_
#define MLA_COMMON_FIXED_ROWS_H_

#include <cstdint>

#include "common/bfloat16.h"
#include "common/simd.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {

// Whether activations of bf16 become such numbers to meet weights in the vnni layout.
#if defined(__AVX512VNNI__) && !defined(__AVX512BF16__)
constexpr bool kFixedRows = true;
#else
constexpr bool kFixedRows = false;
#endif

constexpr int64_t kFixedColumns = 32;
constexpr int kDigits = 3;

// What weights are decoded to: twice a value of e2m1, and this more.
constexpr int kWeightOffset = 12;

// Columns [32 b, 32 b + 32) of one row.
struct FixedBlock {
  // The number is digits[0] * 2^16 + digits[1] * 2^8 + digits[2]. The order of the columns in one
  // is that of the bytes of codes in the vnni layout: 0 4 1 5 2 6 3 7, eight by eight.
  int8_t digits[kDigits][kFixedColumns];
  int32_t offset;  // -kWeightOffset times the sum of the numbers.
  float unit;      // Half of what a number's unit stands for, as weights are twice what they are.
};
// Of a row that such numbers do not hold: `unit` is NaN, and these are its values.
struct RawBlock {
  bf16 values[kFixedColumns];
};
static_assert(sizeof(RawBlock) <= sizeof(FixedBlock::digits), "values take the place of digits");

constexpr int64_t kFixedElements = sizeof(FixedBlock) / sizeof(float);

#if defined(__AVX512VNNI__) && !defined(__AVX512BF16__)

MLA_INLINE bool IsRaw(const FixedBlock& block) { return block.unit != block.unit; }

MLA_INLINE int32_t SumOfLanes(vi v) {
  int32_t sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}
MLA_INLINE int32_t LargestLane(vi v) {
  int32_t largest = v[0];
  for (int i = 1; i < kLanes; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

// Returns whether numbers hold them: they are finite, the largest is zero or far from the least
// normal number, and if any is rounded, that is by less than 2^-10 of the mean of all but the
// largest, which may meet a weight of zero: bf16 has rounded them by more.
inline bool ToFixed(const bf16* src, FixedBlock* to) {
  constexpr uint32_t kLeast = 27;     // Of exponents, so that units and sums are normal numbers.
  constexpr int32_t kRest = 31 << 9;  // Units.
  const vu bits[2] = {Bits(Load(src)), Bits(Load(src + kLanes))};
  const vi magnitudes = (vi)MaxMagnitude(bits[0] & 0x7fffffffu, bits[1] & 0x7fffffffu);
  const int32_t largest = LargestLane(magnitudes);
  const uint32_t exponent = static_cast<uint32_t>(largest) >> 23;
  const bool zero = largest == 0;
  if (exponent == 255 || (exponent < kLeast && !zero)) return false;
  const uint32_t unit = zero ? 0 : exponent - 22, inverse = zero ? 0 : 275 - exponent;
  const vf scale = FromBits(vu{} + (inverse << 23));
  vi sum = {}, rest = {}, highest = {};
  bool exact = true;
  const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  MLA_UNROLL
  for (int i = 0; i < 2; ++i) {
    const vf value = FromBits(bits[i]) * scale;
    vi number = (vi)_mm512_maskz_cvtps_epi32(0xffff, (__m512)value);
    exact = exact && _mm512_cmp_ps_mask((__m512) __builtin_convertvector(number, vf), (__m512)value,
                                        _CMP_NEQ_OQ) == 0;
    const vi magnitude = (vi)_mm512_maskz_abs_epi32(0xffff, (__m512i)number);
    rest += magnitude;
    highest = magnitude > highest ? magnitude : highest;
    sum += number;
    MLA_UNROLL
    for (int digit = kDigits - 1; digit >= 0; --digit) {
      const __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)number);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to->digits[digit] + i * kLanes),
                       _mm_shuffle_epi8(bytes, order));
      number = (number + 128) >> 8;
    }
  }
  if (!exact && SumOfLanes(rest) - LargestLane(highest) < kRest) return false;
  to->offset = -kWeightOffset * SumOfLanes(sum);
  const uint32_t half_unit = unit << 23;
  __builtin_memcpy(&to->unit, &half_unit, sizeof(half_unit));
  return true;
}

// The values again.
inline void ToFloats(const FixedBlock& block, float* columns) {
  if (IsRaw(block)) {
    RawBlock raw;
    __builtin_memcpy(&raw, block.digits, sizeof(raw));
    for (int i = 0; i < kFixedColumns; ++i) columns[i] = ToFloat(raw.values[i]);
    return;
  }
  for (int i = 0; i < kFixedColumns; ++i) {
    const int at = i / 8 * 8 + i % 4 / 2 * 4 + i % 2 * 2 + i / 4 % 2;
    int32_t number = 0;
    for (int digit = 0; digit < kDigits; ++digit) number = number * 256 + block.digits[digit][at];
    columns[i] = static_cast<float>(number) * 2.0f * block.unit;
  }
}

// One row of k columns into blocks `pitch` apart, zeros behind the last column.
inline void PackFixedRow(const bf16* src, int64_t k, int64_t pitch, FixedBlock* first) {
  const int64_t blocks = CeilDiv(Max64(k, 1), kFixedColumns);
  const auto each = [&](const auto& take) {
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t left = Min(kFixedColumns, k - b * kFixedColumns);
      const bf16* from = src + b * kFixedColumns;
      bf16 part[kFixedColumns] = {};
      if (left < kFixedColumns) {
        for (int64_t i = 0; i < left; ++i) part[i] = from[i];
        from = part;
      }
      if (!take(from, first + b * pitch)) return false;
    }
    return true;
  };
  if (each(ToFixed)) return;
  each([](const bf16* from, FixedBlock* to) {
    __builtin_memcpy(to->digits, from, sizeof(RawBlock));
    to->offset = 0;
    to->unit = __builtin_nanf("");
    return true;
  });
}

#endif

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_FIXED_ROWS_H_
