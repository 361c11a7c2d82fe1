// How a vector instruction reads its operands, lane by lane, and writes its result: DPP, SDWA,
// op_sel, source negation, output scaling, clamping and the EXEC mask. An instruction itself is a
// function of one lane's values.
#pragma once

#include <algorithm>
#include <cmath>
#include <tuple>
#include <type_traits>
#include <utility>

#include "machine.h"
#include "numerics.h"
#include "table.h"

namespace emulator {

// 16-bit operands are the half of a register that op_sel or SDWA picks.
struct Half {
  uint16_t bits;
  Half() = default;
  explicit Half(float value) : bits(float_to_half(value)) {}
  explicit Half(double value) : bits(uint16_t(encode(kHalf, value, Overflow::special))) {}
  static Half raw(uint32_t bits) {
    Half half;
    half.bits = uint16_t(bits);
    return half;
  }
  operator float() const { return half_to_float(bits); }
};
struct U16 {
  uint16_t bits;
};
struct I16 {
  int16_t bits;
};

template <class T>
inline constexpr bool is_short =
    std::is_same_v<T, Half> || std::is_same_v<T, U16> || std::is_same_v<T, I16>;
template <class T>
inline constexpr bool is_real =
    std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, Half>;

// Where each lane of a DPP operand comes from (CDNA3 ISA, "Data Parallel Processing"); -1: nowhere.
int dpp_source(const Modifiers& modifiers, int lane);
// Which lanes a DPP instruction writes, as words of ones and zeros.
void dpp_mask(Wave& wave, const Modifiers& modifiers, uint32_t* mask);
// A source operand's 32 bits for all lanes, DPP and SDWA applied.
const uint32_t* raw_operand(Wave& wave, const Instruction& instruction, int which,
                            uint32_t* buffer);
// One half of a 64-bit operand. A literal is the low half, or a double's high one.
enum class Literal { zero_extended, sign_extended, high_half };
const uint32_t* raw_half(Wave& wave, const Instruction& instruction, int which, int part, Literal,
                         uint32_t* buffer);
// Writes one register under the EXEC mask and, with DPP, under its own.
void write_register(Wave& wave, const Instruction& instruction, int index, const uint32_t* values);
void write_selected(Wave& wave, const Instruction& instruction, int index, uint32_t* values);

template <class T>
inline const T* fetch(Wave& wave, const Instruction& instruction, int which, T* buffer) {
  const Operand& operand = instruction.source[which];
  if constexpr (sizeof(T) == 4) {
    const uint32_t* raw =
        raw_operand(wave, instruction, which, reinterpret_cast<uint32_t*>(buffer));
    if constexpr (std::is_same_v<T, float>) {
      if (operand.negate || operand.absolute) {
        const uint32_t keep = operand.absolute ? 0x7fffffffu : ~0u,
                       flip = operand.negate ? 0x80000000u : 0;
        uint32_t* out = reinterpret_cast<uint32_t*>(buffer);
        for (int lane = 0; lane < kLanes; ++lane) out[lane] = (raw[lane] & keep) ^ flip;
        raw = out;
      }
    }
    return reinterpret_cast<const T*>(raw);
  } else if constexpr (sizeof(T) == 2) {
    uint32_t words[kLanes];
    const uint32_t* raw = raw_operand(wave, instruction, which, words);
    const bool high = instruction.modifiers.op_sel[which < 3 ? which : 0] && which < 3;
    const int shift = operand.kind != OperandKind::constant && high ? 16 : 0;
    uint16_t keep = 0xffff, flip = 0;
    if constexpr (std::is_same_v<T, Half>)
      keep = operand.absolute ? 0x7fff : 0xffff, flip = operand.negate ? 0x8000 : 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint16_t value =
          operand.kind == OperandKind::constant ? operand.constant16 : uint16_t(raw[lane] >> shift);
      buffer[lane] = std::bit_cast<T>(uint16_t((value & keep) ^ flip));
    }
    return buffer;
  } else {
    uint32_t low_words[kLanes], high_words[kLanes];
    constexpr Literal kind = std::is_same_v<T, double>    ? Literal::high_half
                             : std::is_same_v<T, int64_t> ? Literal::sign_extended
                                                          : Literal::zero_extended;
    const uint32_t* low = raw_half(wave, instruction, which, 0, kind, low_words);
    const uint32_t* high = raw_half(wave, instruction, which, 1, kind, high_words);
    uint64_t keep = ~0ull, flip = 0;
    if constexpr (std::is_same_v<T, double>)
      keep = operand.absolute ? ~0ull >> 1 : ~0ull, flip = operand.negate ? 1ull << 63 : 0;
    for (int lane = 0; lane < kLanes; ++lane)
      buffer[lane] = std::bit_cast<T>(((uint64_t(high[lane]) << 32 | low[lane]) & keep) ^ flip);
    return buffer;
  }
}

template <class R>
inline void finish(Wave& wave, const Instruction& instruction, R* values) {
  const Modifiers& modifiers = instruction.modifiers;
  const int index = instruction.destination[0].index;
  if constexpr (is_real<R>) {
    if (modifiers.present & (kOutputScale | kClamp))
      for (int lane = 0; lane < kLanes; ++lane) {
        double value = double(values[lane]) * modifiers.output_scale;
        // A clamped NaN is zero: MODE.DX10_CLAMP is set for compute kernels.
        if (modifiers.clamp) value = value > 0 ? std::min(value, 1.0) : 0.0;
        values[lane] = R(value);
      }
  }
  if constexpr (sizeof(R) == 4) {
    if (modifiers.present & kSdwa)
      write_selected(wave, instruction, index, reinterpret_cast<uint32_t*>(values));
    else
      write_register(wave, instruction, index, reinterpret_cast<const uint32_t*>(values));
  } else if constexpr (sizeof(R) == 8) {
    uint32_t words[kLanes];
    for (int part = 0; part < 2; ++part) {
      for (int lane = 0; lane < kLanes; ++lane)
        words[lane] = uint32_t(std::bit_cast<uint64_t>(values[lane]) >> 32 * part);
      write_register(wave, instruction, index + part, words);
    }
  } else {
    uint32_t words[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) words[lane] = std::bit_cast<uint16_t>(values[lane]);
    if (modifiers.present & kSdwa) {
      write_selected(wave, instruction, index, words);
      return;
    }
    if (modifiers.op_sel[3])
      for (int lane = 0; lane < kLanes; ++lane)
        words[lane] = words[lane] << 16 | (wave.v[index][lane] & 0xffff);
    write_register(wave, instruction, index, words);
  }
}

template <class F>
struct Lanes : Lanes<decltype(&F::operator())> {};
template <class F, class R, class... A>
struct Lanes<R (F::*)(A...) const> {
  static constexpr int sources = sizeof...(A);
  static constexpr bool any_real = (is_real<A> || ...) || is_real<R>;
  static constexpr bool any_short = (is_short<A> || ...) || is_short<R>;

  template <class Function>
  static void execute(Wave& wave, const Instruction& instruction) {
    alignas(64) R result[kLanes];
    std::tuple<std::array<A, kLanes>...> buffers;
    [&]<size_t... K>(std::index_sequence<K...>) {
      const std::tuple<const A*...> in{
          fetch<A>(wave, instruction, int(K), std::get<K>(buffers).data())...};
      for (int lane = 0; lane < kLanes; ++lane) result[lane] = Function{}(std::get<K>(in)[lane]...);
    }(std::index_sequence_for<A...>{});
    finish<R>(wave, instruction, result);
  }

  static constexpr uint32_t allowed() {
    uint32_t bits = kDpp | kSdwa;
    if ((is_real<A> || ...)) bits |= kNegate;
    if (is_real<R>) bits |= kClamp | kOutputScale;
    if (any_short) bits |= kOpSel;
    return bits;
  }
};

// A vector instruction made of a function of one lane's values; the types say how operands are
// read.
template <class F>
inline Meaning vector_op(F) {
  return {&Lanes<F>::template execute<F>, 1, Lanes<F>::sources, Lanes<F>::allowed(), false, false};
}

// As above, where the destination is also the last source.
template <class F>
inline Meaning accumulating_op(F f) {
  Meaning meaning = vector_op(f);
  meaning.sources -= 1;
  meaning.accumulates = true;
  return meaning;
}

}  // namespace emulator
