#include "vector.h"

namespace emulator {

int dpp_source(const Modifiers& modifiers, int lane) {
  const int row = lane & ~15, in_row = lane & 15, amount = modifiers.dpp_amount;
  const auto within = [&](int other) { return other < 0 || other > 15 ? -1 : row + other; };
  switch (modifiers.dpp) {
    case DppControl::none:
      return lane;
    case DppControl::quad_perm:
      return (lane & ~3) + modifiers.quad[lane & 3];
    case DppControl::row_shl:
      return within(in_row + amount);
    case DppControl::row_shr:
      return within(in_row - amount);
    case DppControl::row_ror:
      return row + ((in_row - amount) & 15);
    case DppControl::wave_shl:
      return lane + 1 < kLanes ? lane + 1 : -1;
    case DppControl::wave_rol:
      return (lane + 1) % kLanes;
    case DppControl::wave_shr:
      return lane - 1;
    case DppControl::wave_ror:
      return (lane + kLanes - 1) % kLanes;
    case DppControl::row_mirror:
      return row + 15 - in_row;
    case DppControl::row_half_mirror:
      return (lane & ~7) + 7 - (lane & 7);
    case DppControl::row_bcast:
      return amount == 15 ? row - 1 : lane >= 32 ? 31 : -1;
    case DppControl::row_newbcast:
      return row + amount;
  }
  return -1;
}

namespace {

bool dpp_valid(Wave& wave, int source) { return source >= 0 && wave.exec() >> source & 1; }

uint32_t select(uint32_t value, Select which, bool sign_extend) {
  switch (which) {
    case Select::dword:
      return value;
    case Select::byte0:
    case Select::byte1:
    case Select::byte2:
    case Select::byte3: {
      const uint32_t byte = value >> 8 * (int(which) - int(Select::byte0)) & 0xff;
      return sign_extend ? uint32_t(int32_t(int8_t(byte))) : byte;
    }
    case Select::word0:
    case Select::word1: {
      const uint32_t word = which == Select::word1 ? value >> 16 : value & 0xffff;
      return sign_extend ? uint32_t(int32_t(int16_t(word))) : word;
    }
  }
  return value;
}

}  // namespace

void dpp_mask(Wave& wave, const Modifiers& modifiers, uint32_t* mask) {
  const uint64_t exec = wave.exec();
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool chosen =
        modifiers.row_mask >> lane / 16 & 1 && modifiers.bank_mask >> lane % 16 / 4 & 1;
    const bool written = modifiers.bound_control || dpp_valid(wave, dpp_source(modifiers, lane));
    mask[lane] = (exec >> lane & 1) && chosen && written ? ~0u : 0u;
  }
}

namespace {

const uint32_t* moved_by_dpp(Wave& wave, const Modifiers& modifiers, const uint32_t* raw,
                             uint32_t* buffer) {
  uint32_t moved[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int source = dpp_source(modifiers, lane);
    moved[lane] = dpp_valid(wave, source) ? raw[source] : 0;
  }
  std::memcpy(buffer, moved, sizeof moved);
  return buffer;
}

}  // namespace

const uint32_t* raw_operand(Wave& wave, const Instruction& instruction, int which,
                            uint32_t* buffer) {
  const Operand& operand = instruction.source[which];
  const Modifiers& modifiers = instruction.modifiers;
  const uint32_t* raw = buffer;
  if (operand.kind == OperandKind::vector)
    raw = wave.v[operand.index];
  else
    std::fill_n(buffer, kLanes,
                operand.kind == OperandKind::scalar ? wave.s[operand.index] : operand.constant32);
  if (which == 0 && modifiers.present & kDpp) raw = moved_by_dpp(wave, modifiers, raw, buffer);
  if (which < 2 && modifiers.present & kSdwa) {
    for (int lane = 0; lane < kLanes; ++lane)
      buffer[lane] = select(raw[lane], modifiers.source_select[which], operand.sign_extend);
    raw = buffer;
  }
  return raw;
}

const uint32_t* raw_half(Wave& wave, const Instruction& instruction, int which, int part,
                         Literal literal, uint32_t* buffer) {
  const Operand& operand = instruction.source[which];
  if (operand.kind == OperandKind::vector) {
    const uint32_t* raw = wave.v[operand.index + part];
    return which == 0 && instruction.modifiers.present & kDpp
               ? moved_by_dpp(wave, instruction.modifiers, raw, buffer)
               : raw;
  }
  uint64_t value = operand.constant64;
  if (operand.kind == OperandKind::scalar)
    value = wave.pair(operand.index);
  else if (operand.literal && literal == Literal::high_half)
    value = uint64_t(operand.constant32) << 32;
  else if (operand.literal && literal == Literal::sign_extended)
    value = uint64_t(int64_t(int32_t(operand.constant32)));
  std::fill_n(buffer, kLanes, uint32_t(value >> 32 * part));
  return buffer;
}

void write_register(Wave& wave, const Instruction& instruction, int index, const uint32_t* values) {
  uint32_t* out = wave.v[index];
  if (instruction.modifiers.present & kDpp) {
    uint32_t mask[kLanes];
    dpp_mask(wave, instruction.modifiers, mask);
    for (int lane = 0; lane < kLanes; ++lane)
      out[lane] = (values[lane] & mask[lane]) | (out[lane] & ~mask[lane]);
  } else if (wave.exec() == ~0ull) {
    std::memcpy(out, values, kLanes * sizeof(uint32_t));
  } else {
    const uint32_t* mask = wave.mask();
    for (int lane = 0; lane < kLanes; ++lane)
      out[lane] = (values[lane] & mask[lane]) | (out[lane] & ~mask[lane]);
  }
}

void write_selected(Wave& wave, const Instruction& instruction, int index, uint32_t* values) {
  const Select which = instruction.modifiers.destination_select;
  if (which != Select::dword) {
    const bool word = which >= Select::word0;
    const int bits = word ? 16 : 8;
    const int shift =
        word ? 16 * (int(which) - int(Select::word0)) : 8 * (int(which) - int(Select::byte0));
    const uint32_t field = (word ? 0xffffu : 0xffu) << shift;
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t placed = values[lane] << shift & field, old = wave.v[index][lane];
      switch (instruction.modifiers.destination_unused) {
        case Unused::pad:
          values[lane] = placed;
          break;
        case Unused::preserve:
          values[lane] = placed | (old & ~field);
          break;
        case Unused::sign_extend:
          values[lane] = uint32_t(int32_t(placed << (32 - bits - shift)) >> (32 - bits - shift));
          break;
      }
    }
  }
  write_register(wave, instruction, index, values);
}

}  // namespace emulator
