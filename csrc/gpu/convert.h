// Element types of device code and their conversions; each rounds to nearest, ties to even.
#ifndef MLA_GPU_CONVERT_H_
#define MLA_GPU_CONVERT_H_

#include "gpu/device.h"

namespace mla {
namespace gpu {

MLA_DEVICE float ToFloat(float value) { return value; }
MLA_DEVICE float ToFloat(bf16 value) {
  return BitCast<float>(static_cast<uint32_t>(value.bits) << 16);
}

template <typename T>
MLA_DEVICE T FromFloat(float value);

template <>
MLA_DEVICE float FromFloat<float>(float value) {
  return value;
}
// NaN stays NaN.
template <>
MLA_DEVICE bf16 FromFloat<bf16>(float value) {
#if defined(__HIP__)
  return BitCast<bf16>(static_cast<__bf16>(value));
#else
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bf16{bits};
#endif
}

// Saturates at +-448; NaN stays NaN. In integer arithmetic where the machine has no instruction for
// OCP codes (gfx942's are FNUZ).
template <>
MLA_DEVICE f8e4m3fn FromFloat<f8e4m3fn>(float value) {
#if defined(__CUDACC__)
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(value));
  return f8e4m3fn{static_cast<uint8_t>(pair)};
#else
  const uint32_t bits = BitCast<uint32_t>(value);
  const uint32_t sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
  // Below 2^-6 the codes are multiples of 2^-9, the unit in the last place of 2^14.
  const uint32_t small = BitCast<uint32_t>(BitCast<float>(magnitude) + 16384.0f) - 0x46800000u;
  uint32_t code = magnitude < 0x3c800000u ? small : normal - (120u << 3);
  code = magnitude >= 0x43e00000u ? 0x7eu : (code > 0x7eu ? 0x7eu : code);
  code = magnitude > 0x7f800000u ? 0x7fu : code;
  return f8e4m3fn{static_cast<uint8_t>(sign | code)};
#endif
}

// The codes of two values, the first in the low byte. A NaN is 0x7f, whatever its sign.
MLA_DEVICE uint16_t F8Pair(float low, float high) {
#if defined(__CUDACC__)
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
#else
  const auto code = [](float value) -> uint32_t {
    return value != value ? 0x7fu : FromFloat<f8e4m3fn>(value).bits;
  };
  return static_cast<uint16_t>(code(low) | code(high) << 8);
#endif
}

MLA_DEVICE float ToFloat(f8e4m3fn value) {
  // The code's exponent and mantissa in a float's place; its bias is 7 instead of 127.
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x80u) << 24;
  const uint32_t magnitude = value.bits & 0x7fu;
  const float scaled = BitCast<float>(magnitude << 20) * 0x1p120f;
  const uint32_t bits = magnitude == 0x7fu ? 0x7fc00000u : BitCast<uint32_t>(scaled);
  return BitCast<float>(bits | sign);
}

MLA_DEVICE float ToFloat(f8e4m3fnuz value) {
#if defined(__gfx942__)
  return __builtin_amdgcn_cvt_f32_fp8(value.bits, 0);
#else
  // The same with a bias of 8; minus zero's place is NaN's.
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x80u) << 24;
  const float scaled = BitCast<float>((value.bits & 0x7fu) << 20) * 0x1p119f;
  const uint32_t bits = value.bits == 0x80u ? 0x7fc00000u : BitCast<uint32_t>(scaled);
  return BitCast<float>(bits | sign);
#endif
}

// Element `at` of a buffer of f32 or bf16.
MLA_DEVICE float ReadOne(const void* base, DType type, int64_t at) {
  return type == DType::kF32 ? static_cast<const float*>(base)[at]
                             : ToFloat(static_cast<const bf16*>(base)[at]);
}

// Elements `at` to at + n of the same; `wide`: they are aligned as a whole.
template <bool wide, int n>
MLA_DEVICE void ReadRun(const void* base, DType type, int64_t at, float (&out)[n]) {
  if (type == DType::kF32) {
    const auto run = LoadRun<wide, n>(static_cast<const float*>(base) + at);
#pragma unroll
    for (int i = 0; i < n; ++i) out[i] = run.at[i];
  } else {
    const auto run = LoadRun<wide, n>(static_cast<const bf16*>(base) + at);
#pragma unroll
    for (int i = 0; i < n; ++i) out[i] = ToFloat(run.at[i]);
  }
}

MLA_DEVICE void WriteOne(void* base, DType type, int64_t at, float value) {
  if (type == DType::kF32) {
    static_cast<float*>(base)[at] = value;
  } else {
    static_cast<bf16*>(base)[at] = FromFloat<bf16>(value);
  }
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_CONVERT_H_
