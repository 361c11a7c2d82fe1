// Packed instructions: two 16-bit or two 32-bit operations a lane, dot products, and the mixed
// precision FMA.
#include "vector.h"

namespace emulator {

namespace {

// op_sel picks the half for the low result, op_sel_hi the half for the high one; neg_lo and neg_hi
// their signs.
struct Halves {
  uint16_t low, high;
};

void fetch_halves(Wave& wave, const Instruction& instruction, int which, bool real, Halves* out) {
  uint32_t buffer[kLanes];
  const Modifiers& m = instruction.modifiers;
  const Operand& operand = instruction.source[which];
  const uint32_t* raw = raw_operand(wave, instruction, which, buffer);
  // A float constant is a half in the low 16 bits and zero above them; an integer is the 32-bit
  // number.
  const bool constant = operand.kind == OperandKind::constant;
  const uint16_t flip_low = real && m.neg_lo[which] ? 0x8000 : 0,
                 flip_high = real && m.neg_hi[which] ? 0x8000 : 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t word = constant ? (real ? operand.constant16 : operand.constant32) : raw[lane];
    out[lane] = {uint16_t(uint16_t(word >> 16 * m.op_sel[which]) ^ flip_low),
                 uint16_t(uint16_t(word >> 16 * m.op_sel_hi[which]) ^ flip_high)};
  }
}

template <class F>
struct Packed16 : Packed16<decltype(&F::operator())> {};
template <class F, class T, class... A>
struct Packed16<T (F::*)(A...) const> {
  static constexpr int sources = sizeof...(A);
  template <class Function>
  static void execute(Wave& wave, const Instruction& instruction) {
    Halves in[sources][kLanes];
    uint32_t out[kLanes];
    for (int k = 0; k < sources; ++k) fetch_halves(wave, instruction, k, is_real<T>, in[k]);
    for (int lane = 0; lane < kLanes; ++lane)
      [&]<size_t... K>(std::index_sequence<K...>) {
        const T low = Function{}(std::bit_cast<A>(in[K][lane].low)...);
        const T high = Function{}(std::bit_cast<A>(in[K][lane].high)...);
        out[lane] = uint32_t(std::bit_cast<uint16_t>(high)) << 16 | std::bit_cast<uint16_t>(low);
      }(std::make_index_sequence<sources>{});
    write_register(wave, instruction, instruction.destination[0].index, out);
  }
};
template <class F>
Meaning packed16(F) {
  return {&Packed16<F>::template execute<F>, 1, Packed16<F>::sources, kOpSel | kNegLoHi};
}

template <class F>
struct Packed32 : Packed32<decltype(&F::operator())> {};
template <class F, class T, class... A>
struct Packed32<T (F::*)(A...) const> {
  static constexpr int sources = sizeof...(A);
  template <class Function>
  static void execute(Wave& wave, const Instruction& instruction) {
    uint32_t in[sources][2][kLanes], out[2][kLanes];
    const Modifiers& m = instruction.modifiers;
    for (int k = 0; k < sources; ++k)
      for (int part = 0; part < 2; ++part) {
        const bool high = part ? m.op_sel_hi[k] : m.op_sel[k];
        const uint32_t flip =
            std::is_same_v<T, float> && (part ? m.neg_hi[k] : m.neg_lo[k]) ? 0x80000000u : 0;
        const Operand& operand = instruction.source[k];
        uint32_t buffer[kLanes];
        const uint32_t* raw = buffer;
        if (operand.kind == OperandKind::constant)
          std::fill_n(buffer, kLanes, operand.constant32);
        else
          raw = raw_half(wave, instruction, k, high, Literal::zero_extended, buffer);
        for (int lane = 0; lane < kLanes; ++lane) in[k][part][lane] = raw[lane] ^ flip;
      }
    for (int part = 0; part < 2; ++part)
      for (int lane = 0; lane < kLanes; ++lane)
        [&]<size_t... K>(std::index_sequence<K...>) {
          out[part][lane] =
              std::bit_cast<uint32_t>(Function{}(std::bit_cast<A>(in[K][part][lane])...));
        }(std::make_index_sequence<sources>{});
    for (int part = 0; part < 2; ++part)
      write_register(wave, instruction, instruction.destination[0].index + part, out[part]);
  }
};
template <class F>
Meaning packed32(F) {
  return {&Packed32<F>::template execute<F>, 1, Packed32<F>::sources, kOpSel | kNegLoHi};
}

// The low result is the word of S0 that op_sel[0] picks, the high one the word of S1 that op_sel[1]
// picks.
void pk_mov(Wave& wave, const Instruction& instruction) {
  uint32_t out[2][kLanes];
  for (int k = 0; k < 2; ++k) {
    uint32_t buffer[kLanes];
    const uint32_t* raw = raw_half(wave, instruction, k, instruction.modifiers.op_sel[k],
                                   Literal::zero_extended, buffer);
    std::memcpy(out[k], raw, sizeof out[k]);
  }
  for (int k = 0; k < 2; ++k)
    write_register(wave, instruction, instruction.destination[0].index + k, out[k]);
}

template <float (*kDecode)(uint16_t)>
void dot2(Wave& wave, const Instruction& instruction) {
  Halves a[kLanes], b[kLanes];
  float buffer[kLanes], out[kLanes];
  fetch_halves(wave, instruction, 0, true, a);
  fetch_halves(wave, instruction, 1, true, b);
  const float* c = fetch<float>(wave, instruction, 2, buffer);
  const bool negate = instruction.modifiers.neg_lo[2];
  for (int lane = 0; lane < kLanes; ++lane) {
    // Two exact products and the addend, rounded once.
    const double sum = double(kDecode(a[lane].low)) * kDecode(b[lane].low) +
                       double(kDecode(a[lane].high)) * kDecode(b[lane].high);
    out[lane] = float(sum + double(negate ? -c[lane] : c[lane]));
  }
  finish(wave, instruction, out);
}

template <bool kToHalf, bool kHigh>
void fma_mix(Wave& wave, const Instruction& instruction) {
  float in[3][kLanes];
  uint32_t out[kLanes];
  const Modifiers& m = instruction.modifiers;
  for (int k = 0; k < 3; ++k) {
    uint32_t buffer[kLanes];
    const Operand& operand = instruction.source[k];
    const uint32_t* raw = raw_operand(wave, instruction, k, buffer);
    for (int lane = 0; lane < kLanes; ++lane) {
      float value = float_of(raw[lane]);
      if (m.op_sel_hi[k])
        value = half_to_float(operand.kind == OperandKind::constant
                                  ? operand.constant16
                                  : uint16_t(raw[lane] >> 16 * m.op_sel[k]));
      if (m.neg_hi[k] || operand.absolute) value = std::fabs(value);
      in[k][lane] = m.neg_lo[k] || operand.negate ? -value : value;
    }
  }
  const int index = instruction.destination[0].index;
  for (int lane = 0; lane < kLanes; ++lane) {
    float value = __builtin_fmaf(in[0][lane], in[1][lane], in[2][lane]);
    if (m.clamp) value = value > 0 ? std::min(value, 1.0f) : 0.0f;
    const uint32_t half = kToHalf ? float_to_half(value) : 0, old = wave.v[index][lane];
    out[lane] = !kToHalf ? bits_of(value)
                : kHigh  ? half << 16 | (old & 0xffff)
                         : half | (old & 0xffff0000);
  }
  write_register(wave, instruction, index, out);
}

// A long double holds the exact product and sum of three halves, which span at most 64 bits.
Half fma_half(Half a, Half b, Half c) {
  const long double exact = (long double)(float(a)) * float(b) + float(c);
  // Rounding to odd keeps the half's own rounding correct on the way through the double.
  double value = double(exact);
  if ((long double)(value) != exact && std::isfinite(value)) {
    const uint64_t bits = std::bit_cast<uint64_t>(value);
    if (!(bits & 1)) value = std::nextafter(value, exact > value ? HUGE_VAL : -HUGE_VAL);
  }
  return Half(value);
}

// Unlike the older 16-bit instructions, which clear the other half of the register, this one keeps
// it.
void fma_f16(Wave& wave, const Instruction& instruction) {
  Half in[3][kLanes];
  uint32_t out[kLanes];
  for (int k = 0; k < 3; ++k) fetch<Half>(wave, instruction, k, in[k]);
  const int index = instruction.destination[0].index,
            shift = instruction.modifiers.op_sel[3] ? 16 : 0;
  for (int lane = 0; lane < kLanes; ++lane)
    out[lane] = uint32_t(fma_half(in[0][lane], in[1][lane], in[2][lane]).bits) << shift |
                (wave.v[index][lane] & 0xffff0000u >> shift);
  write_register(wave, instruction, index, out);
}

float decode_bf16(uint16_t bits) { return bf16_to_float(bits); }
float decode_half(uint16_t bits) { return half_to_float(bits); }

}  // namespace

void add_vector_packed(Table& t) {
  t["v_pk_add_f16"] = packed16([](Half a, Half b) { return Half(float(a) + float(b)); });
  t["v_pk_mul_f16"] = packed16([](Half a, Half b) { return Half(float(a) * float(b)); });
  t["v_pk_fma_f16"] = packed16([](Half a, Half b, Half c) { return fma_half(a, b, c); });
  t["v_pk_min_f16"] =
      packed16([](Half a, Half b) { return Half(minimum_number(float(a), float(b))); });
  t["v_pk_max_f16"] =
      packed16([](Half a, Half b) { return Half(maximum_number(float(a), float(b))); });
  t["v_pk_add_u16"] = packed16([](U16 a, U16 b) { return U16{uint16_t(a.bits + b.bits)}; });
  t["v_pk_sub_u16"] = packed16([](U16 a, U16 b) { return U16{uint16_t(a.bits - b.bits)}; });
  t["v_pk_sub_i16"] = t["v_pk_sub_u16"];
  t["v_pk_add_i16"] = t["v_pk_add_u16"];
  t["v_pk_mul_lo_u16"] =
      packed16([](U16 a, U16 b) { return U16{uint16_t(uint32_t(a.bits) * b.bits)}; });
  t["v_pk_mad_u16"] = packed16(
      [](U16 a, U16 b, U16 c) { return U16{uint16_t(uint32_t(a.bits) * b.bits + c.bits)}; });
  t["v_pk_mad_i16"] = t["v_pk_mad_u16"];
  t["v_pk_lshlrev_b16"] =
      packed16([](U16 a, U16 b) { return U16{uint16_t(b.bits << (a.bits & 15))}; });
  t["v_pk_lshrrev_b16"] =
      packed16([](U16 a, U16 b) { return U16{uint16_t(b.bits >> (a.bits & 15))}; });
  t["v_pk_ashrrev_i16"] =
      packed16([](I16 a, I16 b) { return I16{int16_t(b.bits >> (a.bits & 15))}; });
  t["v_pk_min_u16"] = packed16([](U16 a, U16 b) { return U16{std::min(a.bits, b.bits)}; });
  t["v_pk_max_u16"] = packed16([](U16 a, U16 b) { return U16{std::max(a.bits, b.bits)}; });
  t["v_pk_min_i16"] = packed16([](I16 a, I16 b) { return I16{std::min(a.bits, b.bits)}; });
  t["v_pk_max_i16"] = packed16([](I16 a, I16 b) { return I16{std::max(a.bits, b.bits)}; });
  t["v_fma_f16"] = {fma_f16, 1, 3, kOpSel | kNegate};
  t["v_pk_add_f32"] = packed32([](float a, float b) { return a + b; });
  t["v_pk_mul_f32"] = packed32([](float a, float b) { return a * b; });
  t["v_pk_fma_f32"] = packed32([](float a, float b, float c) { return __builtin_fmaf(a, b, c); });
  t["v_pk_mov_b32"] = {pk_mov, 1, 2, kOpSel};
  t["v_dot2_f32_f16"] = {dot2<decode_half>, 1, 3, kOpSel | kNegLoHi | kClamp};
  t["v_dot2_f32_bf16"] = {dot2<decode_bf16>, 1, 3, kOpSel | kNegLoHi | kClamp};
  t["v_dot2c_f32_f16"] = {dot2<decode_half>, 1, 2, 0, true};
  t["v_dot2c_f32_bf16"] = {dot2<decode_bf16>, 1, 2, 0, true};
  t["v_fma_mix_f32"] = {fma_mix<false, false>, 1, 3, kOpSel | kNegLoHi | kNegate | kClamp};
  t["v_fma_mixlo_f16"] = {fma_mix<true, false>, 1, 3, kOpSel | kNegLoHi | kNegate | kClamp};
  t["v_fma_mixhi_f16"] = {fma_mix<true, true>, 1, 3, kOpSel | kNegLoHi | kNegate | kClamp};
}

}  // namespace emulator
