// Codes of quantised weights to bf16, eight at a time and in order.
//
// bf16 holds every e2m1 value times its scale exactly, and every e4m3 and int4 code: MXFP4 decodes
// to values, the others to codes, whose f32 scales multiply sums.
#ifndef MLA_GPU_DECODE_H_
#define MLA_GPU_DECODE_H_

#include "gpu/octet.h"

namespace mla {
namespace gpu {

// Four bytes of two words; nibble i of `selector` says which one byte i is: 0-3 of `low`, 4-7 of
// `high`.
template <uint32_t selector>
MLA_DEVICE uint32_t PickBytes(uint32_t low, uint32_t high) {
#if defined(__HIP__)
  constexpr uint32_t kSpread = (selector & 0xfu) | (selector & 0xf0u) << 4 |
                               (selector & 0xf00u) << 8 | (selector & 0xf000u) << 12;
  return __builtin_amdgcn_perm(high, low, kSpread);
#else
  return __byte_perm(low, high, selector);
#endif
}

#if defined(__HIP__)
// A pair of bf16 times 2^exponent. Exact where the result is a bf16, infinite where it is too
// large.
MLA_DEVICE uint32_t ScalePair(uint32_t pair, int exponent) {
  const float low = __builtin_ldexpf(BitCast<float>(pair << 16), exponent);
  const float high = __builtin_ldexpf(BitCast<float>(pair & 0xffff0000u), exponent);
  return PickBytes<0x7632>(BitCast<uint32_t>(low), BitCast<uint32_t>(high));
}
#else
MLA_DEVICE uint32_t MultiplyPairs(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}
MLA_DEVICE uint32_t AddPairs(uint32_t a, uint32_t b) {
  uint32_t sum;
  asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
  return sum;
}
#endif

// Pair i of a word of 4-bit codes: the codes 2i and 2i + 1 at the top of its halves.
template <int i>
MLA_DEVICE uint32_t TopNibbles(uint32_t shifted, uint32_t word) {
  return PickBytes<(static_cast<uint32_t>(i) * 0x1111u) + 0x4400u>(shifted, word);
}

// e2m1 with the scale of an MXFP4 group.
struct E2M1Scale {
#if defined(__HIP__)
  uint32_t byte;
  MLA_DEVICE explicit E2M1Scale(uint32_t e8m0) : byte(e8m0) {}
#else
  // A code's bits in bf16's place are code * 2^-126; the factor that is missing may need two steps.
  uint32_t first, second;
  MLA_DEVICE explicit E2M1Scale(uint32_t e8m0) {
    const uint32_t low = (e8m0 <= 128 ? e8m0 + 126 : 254) * 0x00800080u;
    first = e8m0 == 255 ? 0x7fc07fc0u : low;
    second = e8m0 <= 128 ? 0 : (e8m0 - 1) * 0x00800080u;
  }
#endif
};

template <int i>
MLA_DEVICE uint32_t E2M1Pair(uint32_t shifted, uint32_t word) {
  const uint32_t top = TopNibbles<i>(shifted, word);
  return (top & 0x80008000u) | ((top >> 6) & 0x01c001c0u);
}

MLA_DEVICE Octet DecodeE2M1(uint32_t word, const E2M1Scale& scale) {
  const uint32_t shifted = word << 4;
  Octet out;
#if defined(__gfx950__)
  // Where no result is subnormal or infinite there is one instruction a pair.
  if (scale.byte >= 2 && scale.byte <= 252) {
    const float power = BitCast<float>(scale.byte << 23);
    out.pairs[0] = BitCast<uint32_t>(__builtin_amdgcn_cvt_scalef32_pk_bf16_fp4(word, power, 0));
    out.pairs[1] = BitCast<uint32_t>(__builtin_amdgcn_cvt_scalef32_pk_bf16_fp4(word, power, 1));
    out.pairs[2] = BitCast<uint32_t>(__builtin_amdgcn_cvt_scalef32_pk_bf16_fp4(word, power, 2));
    out.pairs[3] = BitCast<uint32_t>(__builtin_amdgcn_cvt_scalef32_pk_bf16_fp4(word, power, 3));
    return out;
  }
#endif
  out.pairs[0] = E2M1Pair<0>(shifted, word);
  out.pairs[1] = E2M1Pair<1>(shifted, word);
  out.pairs[2] = E2M1Pair<2>(shifted, word);
  out.pairs[3] = E2M1Pair<3>(shifted, word);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#if defined(__HIP__)
    const uint32_t pair = ScalePair(out.pairs[i], static_cast<int>(scale.byte) - 1);
    out.pairs[i] = scale.byte == 255 ? 0x7fc07fc0u : pair;
#else
    out.pairs[i] = MultiplyPairs(out.pairs[i], scale.first);
#endif
  }
#if !defined(__HIP__)
  if (scale.second != 0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out.pairs[i] = MultiplyPairs(out.pairs[i], scale.second);
  }
#endif
  return out;
}

// Bytes 2i and 2i + 1 of a word of e4m3fn codes.
template <int i>
MLA_DEVICE uint32_t E4M3Pair(uint32_t word) {
  // The code's bits in bf16's place are code * 2^-120.
  const uint32_t top = PickBytes<static_cast<uint32_t>(2 * i) * 0x1010u + 0x1404u>(word, 0);
  const uint32_t pair = (top & 0x80008000u) | ((top >> 4) & 0x07f007f0u);
#if defined(__HIP__)
  return ScalePair(pair, 120);
#else
  return MultiplyPairs(pair, 0x7b807b80u);
#endif
}

MLA_DEVICE Octet DecodeE4M3(uint32_t low, uint32_t high) {
  Octet out = {{E4M3Pair<0>(low), E4M3Pair<1>(low), E4M3Pair<0>(high), E4M3Pair<1>(high)}};
  // 0x7f and 0xff are NaN and would have become 480.
  const uint32_t beyond =
      ((low & 0x7f7f7f7fu) + 0x01010101u) | ((high & 0x7f7f7f7fu) + 0x01010101u);
  if ((beyond & 0x80808080u) != 0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = (i < 2 ? low : high) >> (16 * (i & 1));
      if ((word & 0x7fu) == 0x7fu) out.pairs[i] |= 0x00007fffu;
      if ((word & 0x7f00u) == 0x7f00u) out.pairs[i] |= 0x7fff0000u;
    }
  }
  return out;
}

// Codes 2i and 2i + 1 of a word of int4, whose values are code - 8.
template <int i>
MLA_DEVICE uint32_t Int4Pair(uint32_t shifted, uint32_t word) {
  const uint32_t codes = (TopNibbles<i>(shifted, word) >> 12) & 0x000f000fu;
#if defined(__HIP__)
  const float low = static_cast<float>(static_cast<int>(codes & 15u) - 8);
  const float high = static_cast<float>(static_cast<int>(codes >> 16) - 8);
  return PickBytes<0x7632>(BitCast<uint32_t>(low), BitCast<uint32_t>(high));
#else
  // 128 + code, whose unit in the last place is 1, less 136.
  return AddPairs(codes | 0x43004300u, 0xc308c308u);
#endif
}

MLA_DEVICE Octet DecodeInt4(uint32_t word) {
  const uint32_t shifted = word << 4;
  return {{Int4Pair<0>(shifted, word), Int4Pair<1>(shifted, word), Int4Pair<2>(shifted, word),
           Int4Pair<3>(shifted, word)}};
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_DECODE_H_
