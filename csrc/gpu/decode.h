// Codes of quantised weights to bf16, eight at a time.
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

#if defined(__HIP__)
// Pair i of a word of 4-bit codes: the codes 2i and 2i + 1 at the top of its halves.
template <int i>
MLA_DEVICE uint32_t TopNibbles(uint32_t shifted, uint32_t word) {
  return PickBytes<(static_cast<uint32_t>(i) * 0x1111u) + 0x4400u>(shifted, word);
}
#endif

// The scale of an MXFP4 group.
struct GroupScale {
  uint32_t byte;

  // A code's bits in bf16's place are code * 2^-126. From this byte on the factor that is missing
  // does not fit into a bf16 and takes two steps.
  static constexpr uint32_t kTwoSteps = 129;
};

// Eight e2m1 values. `two_steps` must be true where the byte is kTwoSteps or more; only NVIDIA's
// code minds.
template <bool two_steps>
MLA_DEVICE Octet DecodeE2M1(uint32_t word, const GroupScale& scale) {
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
  constexpr uint32_t kSigns = 0x80008000u, kMagnitudes = 0x01c001c0u;
#if defined(__HIP__)
  const uint32_t shifted = word << 4;
  const uint32_t top[4] = {TopNibbles<0>(shifted, word), TopNibbles<1>(shifted, word),
                           TopNibbles<2>(shifted, word), TopNibbles<3>(shifted, word)};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t pair = (top[i] & kSigns) | ((top[i] >> 6) & kMagnitudes);
    const uint32_t scaled = ScalePair(pair, static_cast<int>(scale.byte) - 1);
    out.pairs[i] = scale.byte == 255 ? 0x7fc07fc0u : scaled;
  }
#else
  // Two copies of a nibble, one for its magnitude and one for its sign, by one multiplication:
  // fewer instructions than shifts, and half of them not the integer unit's.
  constexpr uint32_t kBoth = kSigns | kMagnitudes;
  const uint32_t high = word >> 8;
  out.pairs[0] = ((word & 0x000f000fu) * 0x1040u) & kBoth;
  out.pairs[1] = ((word & 0x00f000f0u) * 0x0104u) & kBoth;
  out.pairs[2] = ((high & 0x000f000fu) * 0x1040u) & kBoth;
  out.pairs[3] = ((high & 0x00f000f0u) * 0x0104u) & kBoth;
  const uint32_t byte = scale.byte;
  uint32_t factor = (byte + 126u) * 0x00800080u;
  if constexpr (two_steps) {
    factor = byte < GroupScale::kTwoSteps ? factor : (byte == 255 ? 0x7fc07fc0u : 0x7f007f00u);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) out.pairs[i] = MultiplyPairs(out.pairs[i], factor);
  if constexpr (two_steps) {
    const uint32_t second = byte < GroupScale::kTwoSteps ? 0x3f803f80u : (byte - 1u) * 0x00800080u;
#pragma unroll
    for (int i = 0; i < 4; ++i) out.pairs[i] = MultiplyPairs(out.pairs[i], second);
  }
#endif
  return out;
}

// OCP codes, none of them NaN, as e4m3fnuz ones of half the value, whose bits are the same but for
// minus zero, which becomes zero.
MLA_DEVICE uint32_t HalvedToFnuz(uint32_t word) {
  const uint32_t magnitude = word & 0x7f7f7f7fu;
  return magnitude | (word & (magnitude + 0x7f7f7f7fu) & 0x80808080u);
}

// Bytes 2i and 2i + 1 of a word of e4m3fn or e4m3fnuz codes, none of them NaN.
template <bool fnuz, int i>
MLA_DEVICE uint32_t E4M3Pair(uint32_t word) {
#if defined(__gfx942__)
  // It has an instruction for e4m3fnuz codes.
  const uint32_t own = fnuz ? word : HalvedToFnuz(word);
  const auto values =
      __builtin_amdgcn_cvt_pk_f32_fp8(static_cast<int>(own), i != 0) * (fnuz ? 1.0f : 2.0f);
  return PickBytes<0x7632>(BitCast<uint32_t>(values[0]), BitCast<uint32_t>(values[1]));
#else
  // The code's bits in bf16's place are code * 2^-kExponent.
  constexpr int kExponent = fnuz ? 119 : 120;
  const uint32_t top = PickBytes<static_cast<uint32_t>(2 * i) * 0x1010u + 0x1404u>(word, 0);
  const uint32_t pair = (top & 0x80008000u) | ((top >> 4) & 0x07f007f0u);
#if defined(__HIP__)
  return ScalePair(pair, kExponent);
#else
  return MultiplyPairs(pair, static_cast<uint32_t>(kExponent + 127) * 0x00800080u);
#endif
#endif
}

// Bytes of which one has its highest bit set where any code of a word is NaN: 0x7f and 0xff, or
// e4m3fnuz's 0x80.
template <bool fnuz>
MLA_DEVICE uint32_t E4M3Nans(uint32_t word) {
  if constexpr (fnuz) {
    const uint32_t zero = word ^ 0x80808080u;
    return (zero - 0x01010101u) & ~zero;
  }
  return (word & 0x7f7f7f7fu) + 0x01010101u;
}

template <bool fnuz>
MLA_DEVICE Octet DecodeE4M3(uint32_t low, uint32_t high) {
#if defined(__gfx950__)
  if constexpr (!fnuz) {
    // One instruction a pair; NaN stays NaN.
    return {{BitCast<uint32_t>(__builtin_amdgcn_cvt_scalef32_pk_bf16_fp8(low, 1.0f, false)),
             BitCast<uint32_t>(__builtin_amdgcn_cvt_scalef32_pk_bf16_fp8(low, 1.0f, true)),
             BitCast<uint32_t>(__builtin_amdgcn_cvt_scalef32_pk_bf16_fp8(high, 1.0f, false)),
             BitCast<uint32_t>(__builtin_amdgcn_cvt_scalef32_pk_bf16_fp8(high, 1.0f, true))}};
  }
#endif
  Octet out = {{E4M3Pair<fnuz, 0>(low), E4M3Pair<fnuz, 1>(low), E4M3Pair<fnuz, 0>(high),
                E4M3Pair<fnuz, 1>(high)}};
  // A NaN has become a number or, of a float whose payload is not known, the upper half.
  constexpr uint32_t kMask = fnuz ? 0xffu : 0x7fu, kNan = fnuz ? 0x80u : 0x7fu;
  if (((E4M3Nans<fnuz>(low) | E4M3Nans<fnuz>(high)) & 0x80808080u) != 0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = (i < 2 ? low : high) >> (16 * (i & 1));
      if ((word & kMask) == kNan) out.pairs[i] |= 0x00007fffu;
      if ((word & kMask << 8) == kNan << 8) out.pairs[i] |= 0x7fff0000u;
    }
  }
  return out;
}

// Eight int4 values, code - 8.
MLA_DEVICE Octet DecodeInt4(uint32_t word) {
  Octet out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#if defined(__HIP__)
    const uint32_t low = (word >> (8 * i)) & 15u, high = (word >> (8 * i + 4)) & 15u;
    out.pairs[i] =
        PickBytes<0x7632>(BitCast<uint32_t>(static_cast<float>(static_cast<int>(low) - 8)),
                          BitCast<uint32_t>(static_cast<float>(static_cast<int>(high) - 8)));
#else
    // 128 + code, whose unit in the last place is 1, less 136.
    out.pairs[i] = AddPairs(((word >> (4 * i)) & 0x000f000fu) | 0x43004300u, 0xc308c308u);
#endif
  }
  return out;
}

// The order in which codes of 4 bits come out of a word: on NVIDIA's GPUs pair i is values i and
// i + 4, which saves instructions; tokens must come in the same order.
MLA_DEVICE Octet ToNibbleOrder(const Octet& in) {
#if defined(__HIP__)
  return in;
#else
  return {{PickBytes<0x5410>(in.pairs[0], in.pairs[2]), PickBytes<0x7632>(in.pairs[0], in.pairs[2]),
           PickBytes<0x5410>(in.pairs[1], in.pairs[3]),
           PickBytes<0x7632>(in.pairs[1], in.pairs[3])}};
#endif
}
MLA_DEVICE Octet FromNibbleOrder(const Octet& in) {
#if defined(__HIP__)
  return in;
#else
  return {{PickBytes<0x5410>(in.pairs[0], in.pairs[1]), PickBytes<0x5410>(in.pairs[2], in.pairs[3]),
           PickBytes<0x7632>(in.pairs[0], in.pairs[1]),
           PickBytes<0x7632>(in.pairs[2], in.pairs[3])}};
#endif
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_DECODE_H_
