// Rows of f32 or bf16 quantised group by group: the one implementation of every op that quantises
// activations. custom_calls/group_quantize.py states the rules; the bytes are the same.
#ifndef MLA_COMMON_GROUP_QUANTIZE_H_
#define MLA_COMMON_GROUP_QUANTIZE_H_

#include "common/denormals.h"
#include "common/float8.h"
#include "common/mxfp4.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {

// The scale of an FP8 group whose largest magnitude has these bits.
inline float F8Scale(uint32_t magnitude) {
  // 2^128 / 448, which is what an infinity counts as.
  if (magnitude == 0x7f800000u) return 0x1.24924ap+119f;
  float largest;
  __builtin_memcpy(&largest, &magnitude, sizeof(largest));
  return (largest > 1e-10f ? largest : 1e-10f) / 448.0f;
}

// The low byte of each 32-bit lane.
MLA_INLINE void StoreLowBytes(uint8_t* dst, vu v) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm512_maskz_cvtepi32_epi8(static_cast<__mmask16>(~0u), (__m512i)v);
  __builtin_memcpy(dst, &bytes, kLanes);
#elif defined(__AVX2__)
  const __m256i wide = (__m256i)v;
  const __m128i words =
      _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  const __m128i bytes = _mm_packus_epi16(words, words);
  __builtin_memcpy(dst, &bytes, kLanes);
#else
  for (int i = 0; i < kLanes; ++i) dst[i] = static_cast<uint8_t>(v[i]);
#endif
}

MLA_INLINE vu F8Codes(vu bits, float inverse) {
  const vu magnitude = bits & 0x7fffffffu;
  const vu codes = EncodeF8Magnitude(Bits(FromBits(magnitude) * inverse));
  // A NaN is code 0x7f whatever its sign, which depends on how it was computed.
  return (vi)magnitude > 0x7f800000 ? codes : codes | ((bits >> 24) & 0x80u);
}

// Magnitude bits, zero for a NaN.
MLA_INLINE vu Counted(vf v) {
  const vu magnitude = Bits(v) & 0x7fffffffu;
  return (vi)magnitude > 0x7f800000 ? vu{} : magnitude;
}

// Quantises n values to n codes and returns their scale. A NaN does not count for it.
template <typename T>
inline float F8Quantize(const T* x, int64_t n, uint8_t* codes) {
  const int64_t whole = n - n % kLanes;
  vu largest[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    largest[0] = MaxMagnitude(largest[0], Counted(Load(x + i)));
    largest[1] = MaxMagnitude(largest[1], Counted(Load(x + i + kLanes)));
  }
  if (i < whole) largest[0] = MaxMagnitude(largest[0], Counted(Load(x + i)));
  if (whole < n) largest[1] = MaxMagnitude(largest[1], Counted(LoadPart(x + whole, n - whole)));
  const float scale = F8Scale(LaneMaxMagnitude(MaxMagnitude(largest[0], largest[1])));
  const float inverse = 1.0f / scale;
  for (i = 0; i < whole; i += kLanes) StoreLowBytes(codes + i, F8Codes(Bits(Load(x + i)), inverse));
  if (whole < n) {
    uint8_t part[kLanes];
    StoreLowBytes(part, F8Codes(Bits(LoadPart(x + whole, n - whole)), inverse));
    __builtin_memcpy(codes + whole, part, static_cast<size_t>(n - whole));
  }
  return scale;
}

// Quantises one row of out.k values; a last group that is not whole counts as filled up with zeros.
// Subnormals must not be flushed (KeepDenormals).
template <typename T>
void QuantizeRow(const T* x, int64_t row, const QuantizedRows& out) {
  const int64_t groups = CeilDiv(out.k, out.group);
  const int64_t first = out.column_major ? row : row * groups;
  const int64_t step = out.column_major ? out.rows : 1;
  if (out.format == GroupFormat::kFp8) {
    float* scale = static_cast<float*>(out.scale) + first;
    uint8_t* codes = out.data + row * out.k;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = g * out.group;
      scale[g * step] = F8Quantize(x + at, Min(out.group, out.k - at), codes + at);
    }
    return;
  }
  uint8_t* scale = static_cast<uint8_t*>(out.scale) + first;
  uint8_t* packed = out.data + row * (out.k / 2);
  const int64_t whole = out.k / kMxfp4Group;
  for (int64_t g = 0; g < whole; ++g) {
    scale[g * step] =
        Mxfp4Quantize(x + g * kMxfp4Group, out.rounding, packed + g * (kMxfp4Group / 2));
  }
  if (whole < groups) {
    const int64_t at = whole * kMxfp4Group;
    T last[kMxfp4Group] = {};
    uint8_t bytes[kMxfp4Group / 2];
    __builtin_memcpy(last, x + at, static_cast<size_t>(out.k - at) * sizeof(T));
    scale[whole * step] = Mxfp4Quantize(last, out.rounding, bytes);
    __builtin_memcpy(packed + at / 2, bytes, static_cast<size_t>((out.k - at) / 2));
  }
}

// Quantises the rows of x (out.rows, out.k), f32 or bf16; a block of rows a task.
inline void QuantizeRows(const void* x, DType type, const QuantizedRows& out,
                         const Executor& executor) {
  const int64_t block = Max64(1, 8192 / out.k);
  const double cost = static_cast<double>(out.rows) * static_cast<double>(out.k) * 0.25;
  ForEach(executor, CeilDiv(out.rows, block), cost, [&](int64_t task) {
    const KeepDenormals guard;
    const int64_t end = Min(out.rows, (task + 1) * block);
    for (int64_t row = task * block; row < end; ++row) {
      if (type == DType::kF32) {
        QuantizeRow(static_cast<const float*>(x) + row * out.k, row, out);
      } else {
        QuantizeRow(static_cast<const bf16*>(x) + row * out.k, row, out);
      }
    }
  });
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_GROUP_QUANTIZE_H_
