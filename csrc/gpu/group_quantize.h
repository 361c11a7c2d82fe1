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

// What a value with these bits counts for in its group: its magnitude; for FP8 a NaN is nothing.
template <GroupFormat format>
MLA_DEVICE uint32_t Counted(uint32_t bits) {
  const uint32_t magnitude = bits & 0x7fffffffu;
  return format == GroupFormat::kFp8 && magnitude > 0x7f800000u ? 0 : magnitude;
}

MLA_DEVICE int64_t ScaleAt(const QuantizedRows& out, int64_t row, int64_t group, int64_t groups) {
  return out.column_major ? group * out.rows + row : row * groups + group;
}

// Scale and codes of one group.
template <GroupFormat format>
struct GroupCode;

template <>
struct GroupCode<GroupFormat::kFp8> {
  static constexpr int kShift = kF8Shift;
  float scale, inverse;

  MLA_DEVICE GroupCode(const QuantizedRows&, uint32_t largest)
      : scale(F8Scale(largest)), inverse(1.0f / scale) {}

  MLA_DEVICE void StoreScale(const QuantizedRows& out, int64_t at) const {
    static_cast<float*>(out.scale)[at] = scale;
  }
  // A NaN is code 0x7f whatever its sign, which depends on how it was computed.
  MLA_DEVICE uint16_t Pair(float low, float high) const {
    return F8Pair(RoundedProduct(low, inverse), RoundedProduct(high, inverse));
  }
  MLA_DEVICE static void StorePair(const QuantizedRows& out, int64_t at, uint16_t codes, bool two) {
    out.data[at] = static_cast<uint8_t>(codes);
    if (two) out.data[at + 1] = static_cast<uint8_t>(codes >> 8);
  }
  MLA_DEVICE void StoreRun(const QuantizedRows& out, int64_t at,
                           const float (&values)[kRunValues]) const {
    Pack<uint16_t, kRunValues / 2> codes;
#pragma unroll
    for (int i = 0; i < kRunValues / 2; ++i) codes.at[i] = Pair(values[2 * i], values[2 * i + 1]);
    *reinterpret_cast<Pack<uint16_t, kRunValues / 2>*>(out.data + at) = codes;
  }
};

template <>
struct GroupCode<GroupFormat::kMxfp4> {
  static constexpr int kShift = kMxfp4Shift;
  uint32_t byte;

  MLA_DEVICE GroupCode(const QuantizedRows& out, uint32_t largest)
      : byte(Mxfp4Scale(largest, out.rounding)) {}

  MLA_DEVICE void StoreScale(const QuantizedRows& out, int64_t at) const {
    static_cast<uint8_t*>(out.scale)[at] = static_cast<uint8_t>(byte);
  }
  MLA_DEVICE uint32_t Code(float value) const { return EncodeE2M1(BitCast<uint32_t>(value), byte); }
  MLA_DEVICE uint16_t Pair(float low, float high) const {
    return static_cast<uint16_t>(byte == 255 ? 0 : Code(low) | Code(high) << 4);
  }
  // The row has an even number of values.
  MLA_DEVICE static void StorePair(const QuantizedRows& out, int64_t at, uint16_t codes, bool) {
    out.data[at / 2] = static_cast<uint8_t>(codes);
  }
  MLA_DEVICE void StoreRun(const QuantizedRows& out, int64_t at,
                           const float (&values)[kRunValues]) const {
    uint32_t codes = 0;
#pragma unroll
    for (int i = 0; i < kRunValues; ++i) codes |= Code(values[i]) << (4 * i);
    *reinterpret_cast<uint32_t*>(out.data + at / 2) = byte == 255 ? 0 : codes;
  }
};

// Quantises a run of a row whose groups are those of IsLaneGroup(). Every lane of a group comes
// here, also where its run does not exist.
template <GroupFormat format>
MLA_DEVICE void QuantizeRun(const QuantizedRows& out, int64_t row, int at,
                            const float (&values)[kRunValues], bool exists) {
  constexpr int kShift = GroupCode<format>::kShift;
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kRunValues; ++i) {
    const uint32_t counted = Counted<format>(BitCast<uint32_t>(values[i]));
    largest = counted > largest ? counted : largest;
  }
  largest = LanesMax<(1 << kShift) / kRunValues>(exists ? largest : 0);
  if (!exists) return;
  const GroupCode<format> code(out, largest);
  if (at % (1 << kShift) == 0) {
    const int groups = (static_cast<int>(out.k) + (1 << kShift) - 1) >> kShift;
    code.StoreScale(out, ScaleAt(out, row, at >> kShift, groups));
  }
  code.StoreRun(out, row * out.k + at, values);
}

// `lanes` neighbouring threads quantise group `group` of a row, whatever its size; value(at) is the
// row's value, the same each time it is asked for.
template <GroupFormat format, int lanes, typename Value>
MLA_DEVICE void QuantizeGroup(const QuantizedRows& out, int64_t row, int64_t group, int64_t groups,
                              const Value& value) {
  const int lane = ThreadX() % lanes;
  const int64_t begin = group * out.group;
  const int64_t end = out.k - begin < out.group ? out.k : begin + out.group;
  uint32_t largest = 0;
  for (int64_t at = begin + lane; at < end; at += lanes) {
    const uint32_t counted = Counted<format>(BitCast<uint32_t>(value(at)));
    largest = counted > largest ? counted : largest;
  }
  const GroupCode<format> code(out, LanesMax<lanes>(largest));
  if (lane == 0) code.StoreScale(out, ScaleAt(out, row, group, groups));
  for (int64_t at = begin + 2 * lane; at < end; at += 2 * lanes) {
    const bool two = at + 1 < end;
    code.StorePair(out, row * out.k + at, code.Pair(value(at), two ? value(at + 1) : 0), two);
  }
}

// A row's groups in turns of its threads.
template <int threads, typename Value>
MLA_DEVICE void QuantizeGroups(const QuantizedRows& out, int64_t row, int64_t first, int64_t step,
                               const Value& value) {
  constexpr int kLanes = threads < kWave ? threads : kWave;
  const int64_t groups = (out.k + out.group - 1) / out.group;
  for (int64_t group = first + ThreadX() % threads / kLanes; group < groups; group += step) {
    if (out.format == GroupFormat::kFp8) {
      QuantizeGroup<GroupFormat::kFp8, kLanes>(out, row, group, groups, value);
    } else {
      QuantizeGroup<GroupFormat::kMxfp4, kLanes>(out, row, group, groups, value);
    }
  }
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_GROUP_QUANTIZE_H_
