// Instructions that move values between lanes, or between lanes and scalar or accumulation
// registers.
#include "vector.h"

namespace emulator {

namespace {

using u32 = uint32_t;

u32 scalar_value(const Wave& wave, const Operand& operand) {
  return operand.kind == OperandKind::scalar ? wave.s[operand.index] : operand.constant32;
}

u32 lane_value(const Wave& wave, const Operand& operand, int lane) {
  return operand.kind == OperandKind::vector ? wave.v[operand.index][lane]
                                             : scalar_value(wave, operand);
}

void readfirstlane(Wave& wave, const Instruction& instruction) {
  // With no enabled lane the hardware reads lane 0.
  const int lane = wave.exec() ? std::countr_zero(wave.exec()) : 0;
  wave.s[instruction.destination[0].index] = lane_value(wave, instruction.source[0], lane);
}

void readlane(Wave& wave, const Instruction& instruction) {
  const int lane = int(scalar_value(wave, instruction.source[1]) & 63);
  wave.s[instruction.destination[0].index] = lane_value(wave, instruction.source[0], lane);
}

void writelane(Wave& wave, const Instruction& instruction) {
  const int lane = int(scalar_value(wave, instruction.source[1]) & 63);
  wave.v[instruction.destination[0].index][lane] = scalar_value(wave, instruction.source[0]);
}

template <bool kHigh>
void mbcnt(Wave& wave, const Instruction& instruction) {
  u32 first[kLanes], second[kLanes], out[kLanes];
  const u32* bits = fetch<u32>(wave, instruction, 0, first);
  const u32* base = fetch<u32>(wave, instruction, 1, second);
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint64_t below = (1ull << lane) - 1;
    out[lane] = u32(std::popcount(bits[lane] & u32(kHigh ? below >> 32 : below))) + base[lane];
  }
  finish(wave, instruction, out);
}

void swap_registers(Wave& wave, const Instruction& instruction) {
  u32* a = wave.v[instruction.destination[0].index];
  u32* b = wave.v[instruction.source[0].index];
  for_each_lane(wave, [&](int lane) { std::swap(a[lane], b[lane]); });
}

// The odd rows (halves) of the first register change places with the even rows (halves) of the
// second.
template <int kRow>
void permlane_swap(Wave& wave, const Instruction& instruction) {
  if (wave.exec() != ~0ull)
    throw Fault(kLaunchFailure, "a permlane swap with disabled lanes is not emulated");
  u32* a = wave.v[instruction.destination[0].index];
  u32* b = wave.v[instruction.source[0].index];
  for (int lane = 0; lane < kLanes; ++lane)
    if (lane / kRow % 2 == 0) std::swap(a[lane + kRow], b[lane]);
}

void bpermute(Wave& wave, const Instruction& instruction) {
  const u32* address = wave.v[instruction.source[0].index];
  const u32* data = wave.v[instruction.source[1].index];
  u32 out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int from = int((address[lane] + u32(instruction.modifiers.offset)) / 4 % kLanes);
    out[lane] = wave.exec() >> from & 1 ? data[from] : 0;
  }
  write_register(wave, instruction, instruction.destination[0].index, out);
}

void permute(Wave& wave, const Instruction& instruction) {
  const u32* address = wave.v[instruction.source[0].index];
  const u32* data = wave.v[instruction.source[1].index];
  u32 out[kLanes] = {};
  // The highest source lane wins, whatever order the stores of this run take.
  for (int lane = 0; lane < kLanes; ++lane)
    if (wave.exec() >> lane & 1)
      out[(address[lane] + u32(instruction.modifiers.offset)) / 4 % kLanes] = data[lane];
  write_register(wave, instruction, instruction.destination[0].index, out);
}

int swizzle_source(int64_t offset, int lane) {
  if (offset & 0x8000) return (lane & ~3) + int(offset >> 2 * (lane & 3) & 3);
  const int and_mask = int(offset & 31), or_mask = int(offset >> 5 & 31),
            xor_mask = int(offset >> 10 & 31);
  return (lane & 32) | ((((lane & 31) & and_mask) | or_mask) ^ xor_mask);
}

void swizzle(Wave& wave, const Instruction& instruction) {
  if (instruction.modifiers.offset >= 0xc000)
    throw Fault(kLaunchFailure, "ds_swizzle_b32 in its rotate and FFT modes is not emulated");
  const u32* data = wave.v[instruction.source[0].index];
  u32 out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int from = swizzle_source(instruction.modifiers.offset, lane);
    out[lane] = wave.exec() >> from & 1 ? data[from] : 0;
  }
  write_register(wave, instruction, instruction.destination[0].index, out);
}

void accumulator_move(Wave& wave, const Instruction& instruction) {
  u32 buffer[kLanes];
  const u32* in = fetch<u32>(wave, instruction, 0, buffer);
  write_register(wave, instruction, instruction.destination[0].index, in);
}

}  // namespace

void add_cross_lane(Table& t) {
  t["v_readfirstlane_b32"] = {readfirstlane, 1, 1};
  t["v_readlane_b32"] = {readlane, 1, 2};
  t["v_writelane_b32"] = {writelane, 1, 2};
  t["v_mbcnt_lo_u32_b32"] = {mbcnt<false>, 1, 2};
  t["v_mbcnt_hi_u32_b32"] = {mbcnt<true>, 1, 2};
  t["v_swap_b32"] = {swap_registers, 1, 1};
  t["v_permlane16_swap_b32"] = {permlane_swap<16>, 1, 1};
  t["v_permlane32_swap_b32"] = {permlane_swap<32>, 1, 1};
  t["ds_bpermute_b32"] = {bpermute, 1, 2, kOffset};
  t["ds_permute_b32"] = {permute, 1, 2, kOffset};
  t["ds_swizzle_b32"] = {swizzle, 1, 1, kOffset};
  t["v_accvgpr_read_b32"] = {accumulator_move, 1, 1};
  t["v_accvgpr_write_b32"] = {accumulator_move, 1, 1};
  t["v_accvgpr_mov_b32"] = {accumulator_move, 1, 1};
}

}  // namespace emulator
