// Conversions between number formats. fp8 is OCP on gfx950 and FNUZ on gfx942.
#include "vector.h"

namespace emulator {

namespace {

using u32 = uint32_t;
using i32 = int32_t;

const SmallFloat& fp8(const Wave& wave) { return wave.ocp() ? kE4m3 : kE4m3Fnuz; }
const SmallFloat& bf8(const Wave& wave) { return wave.ocp() ? kE5m2 : kE5m2Fnuz; }
const SmallFloat& fp4(const Wave&) { return kE2m1; }
using Format = const SmallFloat& (*)(const Wave&);

Overflow overflow_of(const Wave& wave) {
  return wave.saturates() ? Overflow::saturate : Overflow::special;
}

u32 byte_selected(const Modifiers& m) { return m.op_sel[0] + 2u * m.op_sel[1]; }

// Places a field into the destination and keeps the register's other bits.
void write_field(Wave& wave, const Instruction& instruction, const u32* values, int shift,
                 u32 field) {
  const int index = instruction.destination[0].index;
  u32 out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane)
    out[lane] =
        (values[lane] << shift & field << shift) | (wave.v[index][lane] & ~(field << shift));
  write_register(wave, instruction, index, out);
}

template <Format kFormat>
void narrow_to_float(Wave& wave, const Instruction& instruction) {
  u32 buffer[kLanes];
  float out[kLanes];
  const u32* in = fetch<u32>(wave, instruction, 0, buffer);
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = decode(kFormat(wave), in[lane] & 0xff);
  write_register(wave, instruction, instruction.destination[0].index, reinterpret_cast<u32*>(out));
}

template <Format kFormat>
void narrow_pair_to_float(Wave& wave, const Instruction& instruction) {
  u32 buffer[kLanes], out[2][kLanes];
  const u32* in = fetch<u32>(wave, instruction, 0, buffer);
  const int shift = instruction.modifiers.op_sel[0] ? 16 : 0;
  for (int lane = 0; lane < kLanes; ++lane)
    for (int part = 0; part < 2; ++part)
      out[part][lane] = bits_of(decode(kFormat(wave), in[lane] >> (shift + 8 * part) & 0xff));
  for (int part = 0; part < 2; ++part)
    write_register(wave, instruction, instruction.destination[0].index + part, out[part]);
}

template <Format kFormat>
void float_pair_to_narrow(Wave& wave, const Instruction& instruction) {
  float first[kLanes], second[kLanes];
  u32 out[kLanes];
  const float* a = fetch<float>(wave, instruction, 0, first);
  const float* b = fetch<float>(wave, instruction, 1, second);
  for (int lane = 0; lane < kLanes; ++lane)
    out[lane] = encode(kFormat(wave), a[lane], overflow_of(wave)) |
                encode(kFormat(wave), b[lane], overflow_of(wave)) << 8;
  write_field(wave, instruction, out, instruction.modifiers.op_sel[3] ? 16 : 0, 0xffff);
}

// The scaled conversions of gfx950 use the exponent field of a float32 as an e8m0 scale.
double scale_of(float scale) {
  const u32 exponent = bits_of(scale) >> 23 & 0xff;
  return exponent == 0xff ? std::numeric_limits<double>::quiet_NaN()
                          : std::ldexp(1.0, int(exponent) - 127);
}

enum class Wide { f32, f16, bf16 };

u32 encode_wide(Wide wide, double value) {
  // Every product of a narrow code and a power of two is exact in double; float32 rounds its
  // denormals only.
  if (wide == Wide::f16) return encode(kHalf, value, Overflow::special);
  const float single = float(value);
  return wide == Wide::f32 ? bits_of(single) : float_to_bf16(single);
}

template <Format kFormat, int kBits, Wide kWide>
void widen_scaled_pair(Wave& wave, const Instruction& instruction) {
  u32 buffer[kLanes], out[2][kLanes];
  float scales[kLanes];
  const u32* in = fetch<u32>(wave, instruction, 0, buffer);
  const float* scale = fetch<float>(wave, instruction, 1, scales);
  const Modifiers& m = instruction.modifiers;
  const int shift = kBits == 4 ? 8 * int(byte_selected(m)) : 16 * m.op_sel[0];
  for (int lane = 0; lane < kLanes; ++lane)
    for (int part = 0; part < 2; ++part) {
      const u32 code = in[lane] >> (shift + kBits * part) & ((1u << kBits) - 1);
      out[part][lane] =
          encode_wide(kWide, double(decode(kFormat(wave), code)) * scale_of(scale[lane]));
    }
  const int index = instruction.destination[0].index;
  if (kWide == Wide::f32) {
    for (int part = 0; part < 2; ++part) write_register(wave, instruction, index + part, out[part]);
    return;
  }
  for (int lane = 0; lane < kLanes; ++lane) out[0][lane] |= out[1][lane] << 16;
  write_register(wave, instruction, index, out[0]);
}

template <Format kFormat>
void widen_scaled(Wave& wave, const Instruction& instruction) {
  u32 buffer[kLanes], out[kLanes];
  float scales[kLanes];
  const u32* in = fetch<u32>(wave, instruction, 0, buffer);
  const float* scale = fetch<float>(wave, instruction, 1, scales);
  const u32 shift = 8 * byte_selected(instruction.modifiers);
  for (int lane = 0; lane < kLanes; ++lane)
    out[lane] = encode_wide(
        Wide::f32, double(decode(kFormat(wave), in[lane] >> shift & 0xff)) * scale_of(scale[lane]));
  write_register(wave, instruction, instruction.destination[0].index, out);
}

// The value is divided by the scale, then rounded; e2m1 has no special codes and always saturates.
template <Format kFormat, int kBits, Wide kWide>
void narrow_scaled_pair(Wave& wave, const Instruction& instruction) {
  double values[2][kLanes];
  if constexpr (kWide == Wide::f32) {
    for (int part = 0; part < 2; ++part) {
      float buffer[kLanes];
      const float* in = fetch<float>(wave, instruction, part, buffer);
      for (int lane = 0; lane < kLanes; ++lane) values[part][lane] = in[lane];
    }
  } else {
    u32 buffer[kLanes];
    const u32* in = fetch<u32>(wave, instruction, 0, buffer);
    for (int part = 0; part < 2; ++part)
      for (int lane = 0; lane < kLanes; ++lane) {
        const uint16_t bits = uint16_t(in[lane] >> 16 * part);
        values[part][lane] = kWide == Wide::f16 ? half_to_float(bits) : bf16_to_float(bits);
      }
  }
  float scales[kLanes];
  const float* scale = fetch<float>(wave, instruction, kWide == Wide::f32 ? 2 : 1, scales);
  u32 out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    out[lane] = 0;
    for (int part = 0; part < 2; ++part)
      out[lane] |=
          encode(kFormat(wave), values[part][lane] / scale_of(scale[lane]), overflow_of(wave))
          << kBits * part;
  }
  const Modifiers& m = instruction.modifiers;
  if (kBits == 4)
    write_field(wave, instruction, out, 8 * (m.op_sel[2] + 2 * m.op_sel[3]), 0xff);
  else
    write_field(wave, instruction, out, 16 * m.op_sel[3], 0xffff);
}

template <Format kFormat, int kBits>
void add_scaled(Table& t, const std::string& name) {
  constexpr uint32_t kAllowed = kOpSel | kNegate;
  t["v_cvt_scalef32_pk_f32_" + name] = {widen_scaled_pair<kFormat, kBits, Wide::f32>, 1, 2,
                                        kAllowed};
  t["v_cvt_scalef32_pk_f16_" + name] = {widen_scaled_pair<kFormat, kBits, Wide::f16>, 1, 2,
                                        kAllowed};
  t["v_cvt_scalef32_pk_bf16_" + name] = {widen_scaled_pair<kFormat, kBits, Wide::bf16>, 1, 2,
                                         kAllowed};
  t["v_cvt_scalef32_pk_" + name + "_f32"] = {narrow_scaled_pair<kFormat, kBits, Wide::f32>, 1, 3,
                                             kAllowed};
  t["v_cvt_scalef32_pk_" + name + "_f16"] = {narrow_scaled_pair<kFormat, kBits, Wide::f16>, 1, 2,
                                             kOpSel};
  t["v_cvt_scalef32_pk_" + name + "_bf16"] = {narrow_scaled_pair<kFormat, kBits, Wide::bf16>, 1, 2,
                                              kOpSel};
}

// Two floats into the halves of one register.
template <uint16_t (*kConvert)(float)>
u32 packed_halves(float a, float b) {
  return u32(kConvert(b)) << 16 | kConvert(a);
}

template <class Integer>
Integer saturated(int64_t value) {
  return Integer(std::clamp<int64_t>(value, std::numeric_limits<Integer>::min(),
                                     std::numeric_limits<Integer>::max()));
}

}  // namespace

void add_convert(Table& t) {
  t["v_cvt_f32_i32"] = vector_op([](i32 a) { return float(a); });
  t["v_cvt_f32_u32"] = vector_op([](u32 a) { return float(a); });
  t["v_cvt_i32_f32"] = vector_op([](float a) { return to_integer<i32>(a); });
  t["v_cvt_u32_f32"] = vector_op([](float a) { return to_integer<u32>(a); });
  t["v_cvt_rpi_i32_f32"] =
      vector_op([](float a) { return to_integer<i32>(std::floor(double(a) + 0.5)); });
  t["v_cvt_flr_i32_f32"] = vector_op([](float a) { return to_integer<i32>(std::floor(a)); });
  t["v_cvt_f32_ubyte0"] = vector_op([](u32 a) { return float(a & 0xff); });
  t["v_cvt_f32_ubyte1"] = vector_op([](u32 a) { return float(a >> 8 & 0xff); });
  t["v_cvt_f32_ubyte2"] = vector_op([](u32 a) { return float(a >> 16 & 0xff); });
  t["v_cvt_f32_ubyte3"] = vector_op([](u32 a) { return float(a >> 24); });
  t["v_cvt_f64_f32"] = vector_op([](float a) { return double(a); });
  t["v_cvt_f32_f64"] = vector_op([](double a) { return float(a); });
  t["v_cvt_f64_i32"] = vector_op([](i32 a) { return double(a); });
  t["v_cvt_f64_u32"] = vector_op([](u32 a) { return double(a); });
  t["v_cvt_i32_f64"] = vector_op([](double a) { return to_integer<i32>(a); });
  t["v_cvt_u32_f64"] = vector_op([](double a) { return to_integer<u32>(a); });
  t["v_cvt_f16_f32"] = vector_op([](float a) { return Half(a); });
  t["v_cvt_f32_f16"] = vector_op([](Half a) { return float(a); });
  t["v_cvt_f16_u16"] = vector_op([](U16 a) { return Half(float(a.bits)); });
  t["v_cvt_f16_i16"] = vector_op([](I16 a) { return Half(float(a.bits)); });
  t["v_cvt_u16_f16"] = vector_op([](Half a) { return U16{to_integer<uint16_t>(float(a))}; });
  t["v_cvt_i16_f16"] = vector_op([](Half a) { return I16{to_integer<int16_t>(float(a))}; });
  t["v_cvt_f32_bf16"] = vector_op([](U16 a) { return bf16_to_float(a.bits); });
  t["v_cvt_pk_bf16_f32"] =
      vector_op([](float a, float b) { return packed_halves<float_to_bf16>(a, b); });
  t["v_cvt_pk_f16_f32"] =
      vector_op([](float a, float b) { return packed_halves<float_to_half>(a, b); });
  t["v_cvt_pkrtz_f16_f32"] =
      vector_op([](float a, float b) { return packed_halves<float_to_half_toward_zero>(a, b); });
  t["v_pack_b32_f16"] = vector_op([](Half a, Half b) { return u32(b.bits) << 16 | a.bits; });
  t["v_cvt_pk_i16_i32"] = vector_op([](i32 a, i32 b) {
    return u32(uint16_t(saturated<int16_t>(b))) << 16 | uint16_t(saturated<int16_t>(a));
  });
  t["v_cvt_pk_u16_u32"] = vector_op(
      [](u32 a, u32 b) { return u32(saturated<uint16_t>(b)) << 16 | saturated<uint16_t>(a); });
  t["v_cvt_pk_u8_f32"] = vector_op([](float a, u32 b, u32 c) {
    const int shift = 8 * int(b & 3);
    return (c & ~(0xffu << shift)) | u32(to_integer<uint8_t>(a)) << shift;
  });

  t["v_cvt_f32_fp8"] = {narrow_to_float<fp8>, 1, 1, kSdwa | kDpp};
  t["v_cvt_f32_bf8"] = {narrow_to_float<bf8>, 1, 1, kSdwa | kDpp};
  t["v_cvt_pk_f32_fp8"] = {narrow_pair_to_float<fp8>, 1, 1, kSdwa | kDpp | kOpSel};
  t["v_cvt_pk_f32_bf8"] = {narrow_pair_to_float<bf8>, 1, 1, kSdwa | kDpp | kOpSel};
  t["v_cvt_pk_fp8_f32"] = {float_pair_to_narrow<fp8>, 1, 2, kNegate | kOpSel};
  t["v_cvt_pk_bf8_f32"] = {float_pair_to_narrow<bf8>, 1, 2, kNegate | kOpSel};
  t["v_cvt_scalef32_f32_fp8"] = {widen_scaled<fp8>, 1, 2, kOpSel | kNegate};
  t["v_cvt_scalef32_f32_bf8"] = {widen_scaled<bf8>, 1, 2, kOpSel | kNegate};
  add_scaled<fp8, 8>(t, "fp8");
  add_scaled<bf8, 8>(t, "bf8");
  add_scaled<fp4, 4>(t, "fp4");
}

}  // namespace emulator
