// OCP float8 e4m3fn: 1 sign, 4 exponent (bias 7), 3 mantissa bits, no infinity, NaN = s1111111.
// e4m3fnuz, gfx942's: bias 8; 10000000 is NaN, so that there is one zero and 240 is the largest.
#ifndef MLA_COMMON_FLOAT8_H_
#define MLA_COMMON_FLOAT8_H_

#include <type_traits>

#include "common/simd.h"

namespace mla {
namespace MLA_ISA {

// Rounds to nearest even, saturates at +-448, keeps NaN and the sign of zero.
inline uint8_t EncodeF8(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  const uint32_t sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
  if (magnitude >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);  // >= 448.
  if (magnitude < 0x3c800000u) {
    // Below 2^-6 the codes are multiples of 2^-9, the unit in the last place of 2^14.
    float f;
    __builtin_memcpy(&f, &magnitude, sizeof(f));
    f += 16384.0f;
    uint32_t sum;
    __builtin_memcpy(&sum, &f, sizeof(sum));
    return static_cast<uint8_t>(sign | (sum - 0x46800000u));
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  const uint32_t code = (rounded >> 20) - (120u << 3);
  return static_cast<uint8_t>(sign | (code > 0x7eu ? 0x7eu : code));
}

// The codes of magnitudes given by their f32 bits (sign cleared), one a 32-bit lane: the same codes
// as EncodeF8's, by integer arithmetic alone. NaN is 0x7f.
MLA_INLINE vu EncodeF8Magnitude(vu magnitude) {
  const vu rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  const vi normal = (vi)(rounded >> 20) - (120 << 3);
  // Below 2^-6 the codes are multiples of 2^-9; beyond 25 every magnitude is below half of one.
  const vi wide = 141 - (vi)(magnitude >> 23);
  const vu shift = (vu)(wide > 25 ? vi{} + 25 : (wide < 21 ? vi{} + 21 : wide));
  const vu significand = (magnitude & 0x7fffffu) | 0x800000u;
  const vu half = (vu{} + 1u) << (shift - 1u);
  const vi subnormal = (vi)((significand + (half - 1u) + ((significand >> shift) & 1u)) >> shift);
  vi code = (vi)magnitude < 0x3c800000 ? subnormal : (normal > 0x7e ? vi{} + 0x7e : normal);
  code = (vi)magnitude > 0x7f800000 ? vi{} + 0x7f : code;
  return (vu)code;
}

template <typename F8>
constexpr bool kIsFnuz = std::is_same_v<F8, f8e4m3fnuz>;
// How many exponents of bf16 the values of F8 lie below those of e4m3fn with the same bits.
template <typename F8>
constexpr int kExponentsBelow = kIsFnuz<F8> ? 1 : 0;

// Decodes kLanes codes to bf16, which holds every e4m3 value exactly. No step works on a
// subnormal, because the thread may run with those flushed to zero.
template <typename F8>
MLA_INLINE vh DecodeF8ToBf16(vb codes) {
  constexpr int kBelow = kExponentsBelow<F8> << 7;
  constexpr uint16_t kNormal = (120 << 7) - kBelow, kLow = 0x3b00 - kBelow,
                     kMid = 0x3b80 - kBelow - 2 * 0x40, kTop = 0x3c00 - kBelow - 4 * 0x20;
  const vh c = WidenBytes(codes);
  const vh magnitude = c & 0x7f;
  const vh sign = (c & 0x80) << 8;
  const vh normal = (magnitude << 4) + kNormal;
  // m * 2^-9 (e4m3fnuz: 2^-10) for m = 0..7.
  const vh low = magnitude * kLow;
  const vh mid = (magnitude << 6) + kMid;
  const vh top = (magnitude << 5) + kTop;
  const vh small = magnitude < 2 ? low : (magnitude < 4 ? mid : top);
  vh out = magnitude < 8 ? small : normal;
  out = (kIsFnuz<F8> ? c == 0x80 : magnitude == 0x7f) ? (vh{} + 0x7fc0) : out;
  return out | sign;
}

#if defined(__AVX512BW__) && defined(__AVX512VL__)
// 32 codes to bf16, in order. The codes that are not a shifted bit pattern are looked up: NaN, and
// m * 2^-9 (e4m3fnuz: 2^-10) for m = 0..7.
template <typename F8>
alignas(64) constexpr uint16_t kF8Irregular[32] = {0x7fc0, 0x0000, 0x3b00, 0x3b80, 0x3bc0,
                                                   0x3c00, 0x3c20, 0x3c40, 0x3c60};
template <>
alignas(64) constexpr uint16_t kF8Irregular<f8e4m3fnuz>[32] = {
    0x0000, 0x3a80, 0x3b00, 0x3b40, 0x3b80, 0x3ba0, 0x3bc0, 0x3be0,  //
    0x7fc0, 0x3a80, 0x3b00, 0x3b40, 0x3b80, 0x3ba0, 0x3bc0, 0x3be0};
template <typename F8>
MLA_INLINE __m512i DecodeF8x32(const uint8_t* src) {
  __m256i bytes;
  __builtin_memcpy(&bytes, src, sizeof(bytes));
  const __m512i code = _mm512_maskz_cvtepu8_epi16(~0u, bytes);
  const __m512i low = _mm512_set1_epi16(0x7f);
  const __m512i magnitude = _mm512_and_si512(code, low);
  const __m512i normal = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4),
                                          _mm512_set1_epi16((120 - kExponentsBelow<F8>) << 7));
  __m512i place;
  __mmask32 irregular;
  if constexpr (kIsFnuz<F8>) {
    // The subnormal codes' own bits, the sign moved next to them: 8 for NaN.
    place = _mm512_add_epi16(magnitude,
                             _mm512_and_si512(_mm512_srli_epi16(code, 4), _mm512_set1_epi16(8)));
    irregular = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8));
  } else {
    // 0 for NaN, 1..8 for the subnormal codes.
    place = _mm512_and_si512(_mm512_add_epi16(magnitude, _mm512_set1_epi16(1)), low);
    irregular = _mm512_cmplt_epu16_mask(place, _mm512_set1_epi16(9));
  }
  const __m512i value =
      _mm512_mask_permutexvar_epi16(normal, irregular, place, _mm512_load_si512(kF8Irregular<F8>));
  const __m512i sign =
      _mm512_and_si512(_mm512_slli_epi16(code, 8), _mm512_set1_epi16(static_cast<int16_t>(0x8000)));
  return _mm512_or_si512(value, sign);
}

// 64 codes at once, by a table for each half of the values' bits. Not for e4m3fnuz, one of whose
// codes is no number with one sign and zero with the other.
#if defined(__AVX512VBMI__)
struct F8Bytes {
  alignas(64) uint8_t low[128], high[128];
};
constexpr F8Bytes F8BytesOf() {
  F8Bytes bytes = {};
  for (int code = 0; code < 128; ++code) {
    const int place = (code + 1) & 0x7f;
    const int bits = place < 9 ? kF8Irregular<f8e4m3fn>[place]
                               : (code << 4) + ((120 - kExponentsBelow<f8e4m3fn>) << 7);
    bytes.low[code] = static_cast<uint8_t>(bits);
    bytes.high[code] = static_cast<uint8_t>(bits >> 8);
  }
  return bytes;
}
constexpr F8Bytes kF8Bytes = F8BytesOf();

MLA_INLINE void DecodeF8x64(const uint8_t* src, bf16* dst) {
  // Halves of the lanes that the interleaving puts side by side.
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  const __m512i codes = _mm512_maskz_permutexvar_epi64(0xff, order, _mm512_loadu_si512(src));
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kF8Bytes.low), codes,
                                               _mm512_load_si512(kF8Bytes.low + 64));
  const __m512i value = _mm512_permutex2var_epi8(_mm512_load_si512(kF8Bytes.high), codes,
                                                 _mm512_load_si512(kF8Bytes.high + 64));
  const __m512i sign = _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80)));
  const __m512i high = _mm512_or_si512(value, sign);
  _mm512_storeu_si512(dst, _mm512_unpacklo_epi8(low, high));
  _mm512_storeu_si512(dst + 32, _mm512_unpackhi_epi8(low, high));
}
#endif
#endif

#if defined(__AVX2__) && !defined(__AVX512F__)
// 16 codes to bf16, in order, as the numbers of fp16 with their bits, which are 2^-8 (e4m3fnuz:
// 2^-7) of their values, subnormal ones too.
template <typename F8>
MLA_INLINE __m256i DecodeF8x16(const uint8_t* src) {
  __m128i codes;
  __builtin_memcpy(&codes, src, sizeof(codes));
  const __m256i wide = _mm256_cvtepi8_epi16(codes);
  const __m256i half =
      _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
  const __m256 unit = _mm256_set1_ps(kIsFnuz<F8> ? 128.0f : 256.0f);
  const __m256 low = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(half)), unit);
  const __m256 high = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(half, 1)), unit);
  // The upper halves of both; packing works inside 128-bit lanes.
  const __m256i pairs = _mm256_packus_epi32(_mm256_srli_epi32((__m256i)low, 16),
                                            _mm256_srli_epi32((__m256i)high, 16));
  const __m256i value = _mm256_permute4x64_epi64(pairs, 0xd8);
  const __m256i nan = kIsFnuz<F8>
                          ? _mm256_cmpeq_epi16(wide, _mm256_set1_epi16(-0x80))
                          : _mm256_cmpeq_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)),
                                               _mm256_set1_epi16(0x7f));
  return _mm256_blendv_epi8(value, _mm256_or_si256(value, _mm256_set1_epi16(0x7fc0)), nan);
}
#endif

template <typename F8>
inline void DecodeF8Row(const F8* src, int64_t n, bf16* dst) {
  int64_t i = 0;
#if defined(__AVX2__) && !defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    const __m256i values = DecodeF8x16<F8>(reinterpret_cast<const uint8_t*>(src + i));
    __builtin_memcpy(dst + i, &values, sizeof(values));
  }
#endif
#if defined(__AVX512VBMI__)
  if constexpr (!kIsFnuz<F8>) {
    for (; i + 64 <= n; i += 64) DecodeF8x64(reinterpret_cast<const uint8_t*>(src + i), dst + i);
  }
#endif
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  for (; i + 32 <= n; i += 32) {
    _mm512_storeu_si512(dst + i, DecodeF8x32<F8>(reinterpret_cast<const uint8_t*>(src + i)));
  }
#endif
  for (; i < n; i += kLanes) {
    const int64_t m = n - i < kLanes ? n - i : kLanes;
    uint8_t part[kLanes] = {};
    vb codes;
    if (m == kLanes) {
      __builtin_memcpy(&codes, src + i, sizeof(codes));
      const vh h = DecodeF8ToBf16<F8>(codes);
      __builtin_memcpy(dst + i, &h, sizeof(h));
    } else {
      for (int64_t j = 0; j < m; ++j) part[j] = src[i + j].bits;
      __builtin_memcpy(&codes, part, sizeof(codes));
      const vh h = DecodeF8ToBf16<F8>(codes);
      uint16_t out[kLanes];
      __builtin_memcpy(out, &h, sizeof(h));
      for (int64_t j = 0; j < m; ++j) dst[i + j].bits = out[j];
    }
  }
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_FLOAT8_H_
