// Rows of a quantised matrix to bf16 or f32.
//
// bf16 holds every e2m1 value times its scale exactly, and every e4m3 and int4 code: MXFP4 decodes
// to values, the others to codes, whose f32 scales are applied later.
#ifndef MLA_COMMON_QUANTIZED_DECODE_H_
#define MLA_COMMON_QUANTIZED_DECODE_H_

#include "common/float8.h"
#include "common/quantized_matrix.h"
#include "common/simd.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {

// code - 8 as bf16 bits.
alignas(32) constexpr uint16_t kInt4Values[16] = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
                                                  0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040,
                                                  0x4080, 0x40a0, 0x40c0, 0x40e0};

#if defined(__AVX512BW__) && defined(__AVX512VL__)
// 32 nibbles, in order, through a table of 16.
MLA_INLINE __m512i Lookup32(const uint8_t* src, __m512i table) {
  vb bytes;
  __builtin_memcpy(&bytes, src, sizeof(bytes));
  const vu wide = WidenBytesTo32(bytes);
  // The low nibble of a byte indexes the lower half of its 32 bits, the high one the upper half.
  const vu index = (wide | (wide << 12)) & 0x000f000fu;
  return _mm512_maskz_permutexvar_epi16(~0u, (__m512i)index, table);
}
// The lower half of a register; no nibble indexes the upper one.
MLA_INLINE __m512i Table16(const uint16_t* table) {
  __m256i row;
  __builtin_memcpy(&row, table, sizeof(row));
  return _mm512_maskz_inserti64x4(~0, _mm512_setzero_si512(), row, 0);
}
#endif

// n nibbles (n even) through a table.
inline void LookupRow(const uint8_t* src, int64_t n, const uint16_t* table, bf16* dst) {
  int64_t i = 0;
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const __m512i t = Table16(table);
  for (; i + 32 <= n; i += 32) _mm512_storeu_si512(dst + i, Lookup32(src + i / 2, t));
#elif defined(__AVX2__)
  // A byte of the table's elements at a time, in both halves of a register.
  const __m256i t = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table));
  const __m256i split = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,  //
                                         0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  const __m256i halves = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(t, split), 0xd8);
  const __m256i low = _mm256_permute2x128_si256(halves, halves, 0x00);
  const __m256i high = _mm256_permute2x128_si256(halves, halves, 0x11);
  for (; i + 32 <= n; i += 32) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i / 2));
    const __m128i nibble = _mm_set1_epi8(15);
    const __m128i even = _mm_and_si128(bytes, nibble);
    const __m128i odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble);
    const __m256i codes =
        _mm256_set_m128i(_mm_unpackhi_epi8(even, odd), _mm_unpacklo_epi8(even, odd));
    const __m256i lows = _mm256_shuffle_epi8(low, codes), highs = _mm256_shuffle_epi8(high, codes);
    // Interleaving works inside 128-bit lanes.
    const __m256i first = _mm256_unpacklo_epi8(lows, highs);
    const __m256i second = _mm256_unpackhi_epi8(lows, highs);
    auto* to = reinterpret_cast<__m256i*>(dst + i);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(first, second, 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(first, second, 0x31));
  }
#endif
  for (; i < n; i += 2) {
    dst[i].bits = table[src[i / 2] & 15];
    dst[i + 1].bits = table[src[i / 2] >> 4];
  }
}

// The f32 scales of one row's blocks.
struct RowScales {
  const char* at;
  bool f32;

  RowScales() = default;
  RowScales(const QuantizedMatrix& m, int64_t row)
      : at(static_cast<const char*>(m.scale) + row / m.block_n * m.ScaleCols() * m.ScaleBytes()),
        f32(m.scale_type == DType::kF32) {}
  float operator[](int64_t block) const {
    return f32 ? reinterpret_cast<const float*>(at)[block]
               : ToFloat(reinterpret_cast<const bf16*>(at)[block]);
  }
  // Of kLanes blocks.
  vf Vector(int64_t block) const {
    return f32 ? Load(reinterpret_cast<const float*>(at) + block)
               : Load(reinterpret_cast<const bf16*>(at) + block);
  }
};

// Four nibbles to the lower halves of four bytes.
inline uint32_t SpreadNibbles(uint32_t nibbles) {
  nibbles = (nibbles | nibbles << 8) & 0x00ff00ffu;
  return (nibbles | nibbles << 4) & 0x0f0f0f0fu;
}

#if defined(__AVX512BW__)
// Scales of MXFP4 whose every product is a normal number of f32 and bf16.
constexpr uint8_t kMxfp4LeastScale = 2, kMxfp4MostScale = 252;

// Whether all of `count` scales are such. Without a branch a step, so that those which are still on
// their way from memory are waited for together.
inline bool RegularScales(const uint8_t* scales, int64_t count) {
  const __m512i least = _mm512_set1_epi8(static_cast<char>(kMxfp4LeastScale));
  __m512i most = _mm512_setzero_si512();  // Above the least; below it the difference is large.
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    most = _mm512_max_epu8(most, _mm512_sub_epi8(_mm512_loadu_si512(scales + i), least));
  }
  if (i < count) {
    const __mmask64 mask = (uint64_t{1} << (count - i)) - 1;
    const __m512i rest = _mm512_maskz_loadu_epi8(mask, scales + i);
    most = _mm512_mask_max_epu8(most, mask, most, _mm512_sub_epi8(rest, least));
  }
  constexpr auto kRange = static_cast<char>(kMxfp4MostScale - kMxfp4LeastScale);
  return _mm512_cmpgt_epu8_mask(most, _mm512_set1_epi8(kRange)) == 0;
}
#endif

// Columns [k0, k0 + n) of a row in the vnni layout, whole blocks of them: values.
inline void DecodeVnniRow(const QuantizedMatrix& m, int64_t row, int64_t k0, int64_t n, bf16* dst) {
  const Mxfp4Row* table = Mxfp4Table();
  const int64_t first = row / kVnniRows * m.ScaleCols() + k0 / kVnniColumns, lane = row % kVnniRows;
  for (int64_t b = 0; b < n / kVnniColumns; ++b) {
    const uint8_t* words = m.data + (first + b) * kVnniBytes + lane * 4;
    const uint8_t scale = static_cast<const uint8_t*>(m.scale)[(first + b) * kVnniRows + lane];
    uint32_t codes[4];
    for (int q = 0; q < 4; ++q) {
      uint32_t word;
      __builtin_memcpy(&word, words + q * 64, sizeof(word));
      codes[q] = SpreadNibbles(word & 0xffffu) | SpreadNibbles(word >> 16) << 4;
    }
    uint8_t bytes[16];
    __builtin_memcpy(bytes, codes, sizeof(bytes));
    LookupRow(bytes, kVnniColumns, table[scale], dst + b * kVnniColumns);
  }
}

// Columns [k0, k0 + n) of a row, k0 even: values of MXFP4, codes of the others.
inline void DecodeRow(const QuantizedMatrix& m, int64_t row, int64_t k0, int64_t n, bf16* dst) {
  if (m.Vnni()) return DecodeVnniRow(m, row, k0, n, dst);
  const uint8_t* src = m.data + row * m.RowBytes();
  if (m.code == Code::kE4M3) {
    DecodeF8Row(reinterpret_cast<const f8e4m3fn*>(src + k0), n, dst);
  } else if (m.code == Code::kE4M3Fnuz) {
    DecodeF8Row(reinterpret_cast<const f8e4m3fnuz*>(src + k0), n, dst);
  } else if (m.code == Code::kInt4) {
    LookupRow(src + k0 / 2, n, kInt4Values, dst);
  } else {
    const uint8_t* scale = static_cast<const uint8_t*>(m.scale) + row * m.ScaleCols();
    const Mxfp4Row* table = Mxfp4Table();
    int64_t block = k0 / m.block_k;
    for (int64_t i = k0; i < k0 + n; ++block) {
      const int64_t end = Min(k0 + n, (block + 1) * m.block_k);
      LookupRow(src + i / 2, end - i, table[scale[block]], dst + i - k0);
      i = end;
    }
  }
}

// Values, rounded once to f32. `work`: n elements.
inline void DecodeRow(const QuantizedMatrix& m, int64_t row, int64_t k0, int64_t n, bf16* work,
                      float* dst) {
  DecodeRow(m, row, k0, n, work);
  const RowScales scales(m, row);
  int64_t block = k0 / m.block_k;
  for (int64_t from = k0; from < k0 + n; ++block) {
    const int64_t end = Min(k0 + n, (block + 1) * m.block_k) - k0;
    const float scale = m.Mxfp4() ? 1.0f : scales[block];
    int64_t i = from - k0;
    for (; i + kLanes <= end; i += kLanes) Store(dst + i, Load(work + i) * scale);
    for (; i < end; ++i) dst[i] = ToFloat(work[i]) * scale;
    from = k0 + end;
  }
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_QUANTIZED_DECODE_H_
