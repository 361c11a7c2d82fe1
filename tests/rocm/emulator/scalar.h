// How scalar instructions read and write the scalar register file.
#pragma once

#include "access.h"

namespace emulator {

template <class T>
inline T read_scalar(const Wave& wave, const Operand& operand) {
  if constexpr (sizeof(T) == 4) {
    return T(operand.kind == OperandKind::scalar ? wave.s[operand.index] : operand.constant32);
  } else {
    if (operand.kind == OperandKind::scalar) return T(wave.pair(operand.index));
    if (operand.literal && std::is_signed_v<T>) return T(int64_t(int32_t(operand.constant32)));
    return T(operand.constant64);
  }
}

template <class T>
inline void write_scalar(Wave& wave, int index, T value) {
  if constexpr (sizeof(T) == 4)
    wave.s[index] = uint32_t(value);
  else
    wave.set_pair(index, uint64_t(value));
}

}  // namespace emulator
