// Vectors of the width that suits the instruction set this file is compiled for, and the few
// operations on them that the kernels share. Everything lives in the namespace of that set, so that
// the linker cannot merge an AVX-512 copy of a function with the baseline's.
#ifndef MLA_COMMON_SIMD_H_
#define MLA_COMMON_SIMD_H_

#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define MLA_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define MLA_VECTOR_BYTES 32
#else
#define MLA_VECTOR_BYTES 16
#endif

#define MLA_INLINE inline __attribute__((always_inline))

// Before a loop over registers: it must be unrolled in full, or the registers become memory.
#if defined(__clang__)
#define MLA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MLA_UNROLL _Pragma("GCC unroll 32")
#endif

namespace mla {
namespace MLA_ISA {

constexpr int kLanes = MLA_VECTOR_BYTES / 4;

typedef float vf __attribute__((vector_size(MLA_VECTOR_BYTES)));
typedef int32_t vi __attribute__((vector_size(MLA_VECTOR_BYTES)));
typedef uint32_t vu __attribute__((vector_size(MLA_VECTOR_BYTES)));
typedef uint16_t vh __attribute__((vector_size(MLA_VECTOR_BYTES / 2)));
typedef uint8_t vb __attribute__((vector_size(MLA_VECTOR_BYTES / 4)));

MLA_INLINE vf Splat(float x) { return x - vf{}; }

// a * b + c, rounded once wherever the processor can. No product and sum fuses but here
// (-ffp-contract=off): a compiler would decide otherwise from one place to the next.
MLA_INLINE vf MulAdd(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// The same value, in a register from here on: GCC else reads a vector of f32 from memory again for
// every product that takes it, and a core has room for fewer reads than products.
template <typename V>
MLA_INLINE V Held(V v) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(v));
#elif defined(__AVX__)
  __asm__("" : "+x"(v));
#endif
  return v;
}

MLA_INLINE vu Bits(vf x) { return (vu)x; }
MLA_INLINE vf FromBits(vu x) { return (vf)x; }

// --- Loads: kLanes elements, converted to f32 exactly ---

MLA_INLINE vf Load(const float* p) {
  vf v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

// To wider lanes. Spelled out where the compiler would take them apart, one by one or in halves.
MLA_INLINE vh WidenBytes(vb b) {
#if defined(__AVX512F__)
  return (vh)_mm256_cvtepu8_epi16((__m128i)b);
#elif defined(__AVX2__)
  __m128i bytes = _mm_setzero_si128();
  __builtin_memcpy(&bytes, &b, sizeof(b));
  return (vh)_mm_cvtepu8_epi16(bytes);
#else
  return __builtin_convertvector(b, vh);
#endif
}
#if defined(__AVX512F__)
MLA_INLINE vu WidenBytesTo32(vb b) {
  return (vu)_mm512_maskz_cvtepu8_epi32(static_cast<__mmask16>(~0u), (__m128i)b);
}
#endif

MLA_INLINE vu WidenTo32(vh h) {
#if defined(__AVX512F__)
  return (vu)_mm512_maskz_cvtepu16_epi32(static_cast<__mmask16>(~0u), (__m256i)h);
#elif defined(__AVX2__)
  return (vu)_mm256_cvtepu16_epi32((__m128i)h);
#else
  return __builtin_convertvector(h, vu);
#endif
}

MLA_INLINE vf Widen(vh h) { return FromBits(WidenTo32(h) << 16); }

MLA_INLINE vf Load(const bf16* p) {
  vh h;
  __builtin_memcpy(&h, p, sizeof(h));
  return Widen(h);
}

// The first n < kLanes elements and zeros behind them; reads nothing past them.
MLA_INLINE vf LoadPart(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  float part[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = p[i];
  return Load(part);
#endif
}

MLA_INLINE vf LoadPart(const bf16* p, int64_t n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  return Widen((vh)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p));
#else
  bf16 part[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = p[i];
  return Load(part);
#endif
}

// --- Two vectors at once: 2 * kLanes elements of bf16, a pair a 32-bit lane, and what takes them
// apart and puts them in order again ---

MLA_INLINE vu LoadPairs(const bf16* p) {
  vu pairs;
  __builtin_memcpy(&pairs, p, sizeof(pairs));
  return pairs;
}
// The first n < 2 * kLanes elements and zeros behind them; reads nothing past them.
MLA_INLINE vu LoadPairsPart(const bf16* p, int64_t n) {
#if defined(__AVX512BW__)
  return (vu)_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p);
#else
  bf16 part[2 * kLanes] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = p[i];
  return LoadPairs(part);
#endif
}
MLA_INLINE vf EvenOf(vu pairs) { return FromBits(pairs << 16); }
MLA_INLINE vf OddOf(vu pairs) { return FromBits(pairs & 0xffff0000u); }

#if MLA_VECTOR_BYTES == 64
MLA_INLINE vf Evens(vf a, vf b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
MLA_INLINE vf Odds(vf a, vf b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
MLA_INLINE vf ZipFirst(vf even, vf odd) {
  return __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
MLA_INLINE vf ZipSecond(vf even, vf odd) {
  return __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30,
                                 15, 31);
}
#elif MLA_VECTOR_BYTES == 32
MLA_INLINE vf Evens(vf a, vf b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
MLA_INLINE vf Odds(vf a, vf b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15); }
MLA_INLINE vf ZipFirst(vf even, vf odd) {
  return __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
}
MLA_INLINE vf ZipSecond(vf even, vf odd) {
  return __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
}
#else
MLA_INLINE vf Evens(vf a, vf b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6); }
MLA_INLINE vf Odds(vf a, vf b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7); }
MLA_INLINE vf ZipFirst(vf even, vf odd) { return __builtin_shufflevector(even, odd, 0, 4, 1, 5); }
MLA_INLINE vf ZipSecond(vf even, vf odd) { return __builtin_shufflevector(even, odd, 2, 6, 3, 7); }
#endif

// --- Stores: f32 lanes rounded once (to nearest even; a NaN stays a NaN) ---

MLA_INLINE void Store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof(v)); }

MLA_INLINE vh RoundBf16(vf v) {
  const vu bits = Bits(v);
  const vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const vu quiet = (bits >> 16) | 0x40u;
  const vu out = ((bits & 0x7fffffffu) > 0x7f800000u) ? quiet : rounded;
  return __builtin_convertvector(out, vh);
}

MLA_INLINE void Store(bf16* p, vf v) {
  const vh h = RoundBf16(v);
  __builtin_memcpy(p, &h, sizeof(h));
}

template <typename T>
MLA_INLINE void StorePart(T* p, vf v, int64_t n) {
  T part[kLanes];
  Store(part, v);
  for (int64_t i = 0; i < n; ++i) p[i] = part[i];
}

// --- Single elements ---

MLA_INLINE float ToFloat(float x) { return x; }
MLA_INLINE float ToFloat(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  __builtin_memcpy(&f, &bits, sizeof(f));
  return f;
}

MLA_INLINE void StoreOne(float* p, float x) { *p = x; }
MLA_INLINE void StoreOne(bf16* p, float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  p->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

// --- Sums over lanes, always by the same tree: lane i with lane i + width/2, halving ---

#if MLA_VECTOR_BYTES == 64
MLA_INLINE vf Fold8(vf a, vf b) {  // Halves of a, halves of b -> [a: 8 lanes | b: 8 lanes].
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30,
                                 31);
}
MLA_INLINE vf Fold4(vf a, vf b) {
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
MLA_INLINE vf Fold2(vf a, vf b) {
  return __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
         __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
}
MLA_INLINE vf Fold1(vf a, vf b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
MLA_INLINE vf SumsOf16(const vf* a) {
  vf b[8], c[4];
  MLA_UNROLL
  for (int i = 0; i < 8; ++i) b[i] = Fold8(a[2 * i], a[2 * i + 1]);
  MLA_UNROLL
  for (int i = 0; i < 4; ++i) c[i] = Fold4(b[2 * i], b[2 * i + 1]);
  return Fold1(Fold2(c[0], c[1]), Fold2(c[2], c[3]));
}
// Sums of a[0..4) in lanes 0..3.
MLA_INLINE vf SumsOf4(const vf* a) {
  const vf c = Fold4(Fold8(a[0], a[1]), Fold8(a[2], a[3]));
  const vf d = Fold2(c, c);
  return Fold1(d, d);
}
#elif MLA_VECTOR_BYTES == 32
MLA_INLINE vf Fold4(vf a, vf b) {
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}
MLA_INLINE vf Fold2(vf a, vf b) {
  return __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13) +
         __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15);
}
MLA_INLINE vf Fold1(vf a, vf b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}
MLA_INLINE vf SumsOf8(const vf* a) {
  const vf c0 = Fold2(Fold4(a[0], a[1]), Fold4(a[2], a[3]));
  const vf c1 = Fold2(Fold4(a[4], a[5]), Fold4(a[6], a[7]));
  return Fold1(c0, c1);
}
MLA_INLINE vf SumsOf4(const vf* a) {
  const vf c = Fold2(Fold4(a[0], a[1]), Fold4(a[2], a[3]));
  return Fold1(c, c);
}
#else
MLA_INLINE vf Fold2(vf a, vf b) {
  return __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
}
MLA_INLINE vf Fold1(vf a, vf b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
}
MLA_INLINE vf SumsOf4(const vf* a) { return Fold1(Fold2(a[0], a[1]), Fold2(a[2], a[3])); }
#endif

// Writes the lane sums of a[0..n) to out[0..n); n is a multiple of 4.
template <int n>
MLA_INLINE void LaneSums(const vf* a, float* out) {
  int i = 0;
#if MLA_VECTOR_BYTES == 64
  for (; i + 16 <= n; i += 16) Store(out + i, SumsOf16(a + i));
#elif MLA_VECTOR_BYTES == 32
  for (; i + 8 <= n; i += 8) Store(out + i, SumsOf8(a + i));
#endif
  for (; i + 4 <= n; i += 4) {
    const vf v = SumsOf4(a + i);
    __builtin_memcpy(out + i, &v, 4 * sizeof(float));
  }
}

MLA_INLINE float LaneSum(vf v) {
  const vf a[4] = {v, vf{}, vf{}, vf{}};
  return SumsOf4(a)[0];
}

MLA_INLINE float LaneMax(vf v) {
  float m = v[0];
  for (int i = 1; i < kLanes; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

MLA_INLINE vf Max(vf a, vf b) { return a > b ? a : b; }

// Of float bits with the sign cleared, whose order is that of the numbers; NaN is above infinity.
MLA_INLINE vu MaxMagnitude(vu a, vu b) { return (vi)a > (vi)b ? a : b; }

MLA_INLINE uint32_t LaneMaxMagnitude(vu v) {
#if MLA_VECTOR_BYTES == 64
  v = MaxMagnitude(
      v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = MaxMagnitude(
      v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
#elif MLA_VECTOR_BYTES == 32
  v = MaxMagnitude(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
#endif
  uint32_t largest = v[0];
  for (int i = 1; i < 4; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

// e^x for x in [-87.33, 88.72], to about one unit in the last place.
MLA_INLINE vf ExpInRange(vf x) {
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const vf magic = Splat(12582912.0f);
  const vf t = MulAdd(x, Splat(1.44269504088896341f), magic);
  const vf n = t - magic;
  // ln 2 in two parts, of which the product of the first is exact.
  const vf r = MulAdd(n, Splat(2.12194440e-4f), MulAdd(n, Splat(-0.693359375f), x));
  vf p = Splat(1.9875691500e-4f);
  p = MulAdd(p, r, Splat(1.3981999507e-3f));
  p = MulAdd(p, r, Splat(8.3334519073e-3f));
  p = MulAdd(p, r, Splat(4.1665795894e-2f));
  p = MulAdd(p, r, Splat(1.6666665459e-1f));
  p = MulAdd(p, r, Splat(5.0000001201e-1f));
  p = MulAdd(p * r, r, r) + 1.0f;
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_scalef_ps(static_cast<__mmask16>(~0u), (__m512)p, (__m512)n);
#else
  // 2^n by its exponent field, in two factors because n may be 128.
  const vi k = (vi)Bits(t) - (vi)Bits(magic);
  const vi half = k >> 1;
  const vf s0 = FromBits((vu)((half + 127) << 23));
  const vf s1 = FromBits((vu)((k - half + 127) << 23));
  return p * s0 * s1;
#endif
}

// 2^x for x <= 0 or NaN, to two units in the last place; 0 below -126, NaN for NaN.
MLA_INLINE vf Exp2NotPositive(vf x) {
  const vf magic = Splat(12582912.0f);
  const vf n = (x + magic) - magic;
  const vf r = x - n;
  // 1 + r q(r), with q fitted to [-0.5, 0.5] for the least relative error of the whole: 1.1e-7.
  vf p = Splat(0.001326472731307149f);
  p = MulAdd(p, r, Splat(0.009671512991189957f));
  p = MulAdd(p, r, Splat(0.05550733581185341f));
  p = MulAdd(p, r, Splat(0.24022242426872253f));
  p = MulAdd(p, r, Splat(0.6931470036506653f));
  p = MulAdd(p, r, Splat(1.0f));
#if defined(__AVX512F__)
  const __mmask16 seen = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  return (vf)_mm512_maskz_scalef_ps(seen, (__m512)p, (__m512)n);
#else
  // 2^n by its exponent field; n is below it only where the result is 0.
  const vi k = (vi)Bits(x + magic) - (vi)Bits(magic);
  const vf e = p * FromBits((vu)((k + 127) << 23));
  return x < -126.0f ? vf{} : e;
#endif
}

// e^x for x <= 88.72 or NaN; 0 below -87.3, NaN for NaN.
MLA_INLINE vf ExpNotLarge(vf x) {
  const vf y = x < -87.33f ? Splat(-87.33f) : x;
  const vf e = ExpInRange(y);
  return x < -87.33f ? vf{} : e;
}

// e^x; 0 below -87.3, infinity above 88.7, NaN for NaN.
MLA_INLINE vf Exp(vf x) {
  const vf y = x > 88.72f ? Splat(88.72f) : x;
  return x > 88.72f ? Splat(__builtin_inff()) : ExpNotLarge(y);
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_SIMD_H_
