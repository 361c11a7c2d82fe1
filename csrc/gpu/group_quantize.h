// Values quantised in groups, the bytes of common/group_quantize.h: by the lanes that hold a group
// or, for groups of any size, by a wave that reads it.
#ifndef MLA_GPU_GROUP_QUANTIZE_H_
#define MLA_GPU_GROUP_QUANTIZE_H_

#include "gpu/group_shape.h"
#include "gpu/mxfp4.h"
#include "gpu/row_shape.h"

namespace mla {
namespace gpu {

// The scale of an FP8 group whose largest magnitude has these bits.
MLA_DEVICE float F8Scale(uint32_t magnitude) {
  // 2^128 / 448, which is what an infinity counts as.
  if (magnitude == 0x7f800000u) return 0x1.24924ap+119f;
  const float largest = BitCast<float>(magnitude);
  return (largest > 1e-10f ? largest : 1e-10f) / 448.0f;
}

// A NaN is code 0x7f whatever its sign, which depends on how it was computed.
MLA_DEVICE uint32_t F8Code(uint32_t bits, float inverse) {
  const uint32_t magnitude = bits & 0x7fffffffu;
  const float scaled = RoundedProduct(BitCast<float>(magnitude), inverse);
  const uint32_t sign = magnitude > 0x7f800000u ? 0 : (bits >> 24) & 0x80u;
  return FromFloat<f8e4m3fn>(scaled).bits | sign;
}

// What a value with these bits counts for in its group: its magnitude; for FP8 a NaN is nothing.
MLA_DEVICE uint32_t Counted(uint32_t bits, GroupFormat format) {
  const uint32_t magnitude = bits & 0x7fffffffu;
  return format == GroupFormat::kFp8 && magnitude > 0x7f800000u ? 0 : magnitude;
}

MLA_DEVICE int64_t ScaleAt(const QuantizedRows& out, int64_t row, int64_t group, int64_t groups) {
  return out.column_major ? group * out.rows + row : row * groups + group;
}

// Codes of one group.
struct GroupCode {
  GroupFormat format;
  uint32_t byte;  // Of kMxfp4
  float scale, inverse;

  MLA_DEVICE GroupCode(const QuantizedRows& out, uint32_t largest)
      : format(out.format), byte(0), scale(0), inverse(0) {
    if (format == GroupFormat::kFp8) {
      scale = F8Scale(largest);
      inverse = 1.0f / scale;
    } else {
      byte = Mxfp4Scale(largest, out.rounding);
    }
  }

  MLA_DEVICE void StoreScale(const QuantizedRows& out, int64_t at) const {
    if (format == GroupFormat::kFp8) {
      static_cast<float*>(out.scale)[at] = scale;
    } else {
      static_cast<uint8_t*>(out.scale)[at] = static_cast<uint8_t>(byte);
    }
  }

  MLA_DEVICE uint32_t E2M1(float value) const {
    return byte == 255 ? 0 : EncodeE2M1(BitCast<uint32_t>(value), byte);
  }
  MLA_DEVICE uint32_t F8(float value) const { return F8Code(BitCast<uint32_t>(value), inverse); }
};

// Quantises a run of 8 values of a row, whose groups are 2^shift values, at least 8 and in one
// wave. Every lane of a group comes here, also where its run does not exist.
MLA_DEVICE void QuantizeRun(const QuantizedRows& out, int shift, int64_t row, int64_t at,
                            const float (&values)[kRunValues], bool exists) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kRunValues; ++i) {
    const uint32_t counted = Counted(BitCast<uint32_t>(values[i]), out.format);
    largest = exists && counted > largest ? counted : largest;
  }
  largest = LanesMaxBits(largest, (1 << shift) / kRunValues);
  if (!exists) return;
  const GroupCode code(out, largest);
  if (at % (int64_t{1} << shift) == 0) {
    const int64_t groups = (out.k + (int64_t{1} << shift) - 1) >> shift;
    code.StoreScale(out, ScaleAt(out, row, at >> shift, groups));
  }
  if (out.format == GroupFormat::kFp8) {
    Pack<uint8_t, kRunValues> codes;
#pragma unroll
    for (int i = 0; i < kRunValues; ++i) codes.at[i] = static_cast<uint8_t>(code.F8(values[i]));
    StorePack(out.data + row * out.k + at, codes);
  } else {
    Pack<uint8_t, kRunValues / 2> codes;
#pragma unroll
    for (int i = 0; i < kRunValues / 2; ++i) {
      codes.at[i] =
          static_cast<uint8_t>(code.E2M1(values[2 * i]) | (code.E2M1(values[2 * i + 1]) << 4));
    }
    StorePack(out.data + (row * out.k + at) / 2, codes);
  }
}

// A wave quantises group `group` of a row, whatever its size; value(at) is the row's value, the
// same each time it is asked for.
template <typename Value>
MLA_DEVICE void QuantizeGroup(const QuantizedRows& out, int64_t row, int64_t group, int64_t groups,
                              const Value& value) {
  const int64_t begin = group * out.group;
  const int64_t end = out.k - begin < out.group ? out.k : begin + out.group;
  uint32_t largest = 0;
  for (int64_t at = begin + Lane(); at < end; at += kWave) {
    const uint32_t counted = Counted(BitCast<uint32_t>(value(at)), out.format);
    largest = counted > largest ? counted : largest;
  }
  const GroupCode code(out, LanesMaxBits(largest, kWave));
  if (Lane() == 0) code.StoreScale(out, ScaleAt(out, row, group, groups));
  if (out.format == GroupFormat::kFp8) {
    for (int64_t at = begin + Lane(); at < end; at += kWave) {
      out.data[row * out.k + at] = static_cast<uint8_t>(code.F8(value(at)));
    }
    return;
  }
  for (int64_t at = begin + 2 * Lane(); at < end; at += 2 * kWave) {
    const uint32_t codes = code.E2M1(value(at)) | (code.E2M1(value(at + 1)) << 4);
    out.data[(row * out.k + at) / 2] = static_cast<uint8_t>(codes);
  }
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_GROUP_QUANTIZE_H_
