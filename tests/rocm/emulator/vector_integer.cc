// Integer and bitwise vector instructions of 16 and 32 bits (ISA documents, VOP1, VOP2 and VOP3
// opcodes).
#include "vector.h"

namespace emulator {

namespace {

using u32 = uint32_t;
using i32 = int32_t;

int32_t sign_extend(uint32_t value, int bits) {
  return int32_t(value << (32 - bits)) >> (32 - bits);
}

template <class T>
T median(T a, T b, T c) {
  return std::max(std::min(a, b), std::min(std::max(a, b), c));
}

uint32_t permuted_byte(uint64_t data, uint32_t selector) {
  if (selector >= 13) return 0xff;
  if (selector == 12) return 0;
  if (selector >= 8) return data >> (16 * (selector - 8) + 15) & 1 ? 0xff : 0;
  return data >> 8 * selector & 0xff;
}

uint32_t byte_distance(uint32_t a, uint32_t b, bool skip_zero) {
  uint32_t sum = 0;
  for (int i = 0; i < 4; ++i) {
    const int x = a >> 8 * i & 0xff, y = b >> 8 * i & 0xff;
    if (!skip_zero || y) sum += u32(std::abs(x - y));
  }
  return sum;
}

// The 16-bit form clears the upper half of its destination.
template <u32 kBits>
void bitop3(Wave& wave, const Instruction& instruction) {
  u32 buffers[3][kLanes], out[kLanes];
  const u32* in[3];
  for (int k = 0; k < 3; ++k) in[k] = fetch<u32>(wave, instruction, k, buffers[k]);
  const int table = instruction.modifiers.truth_table;
  for (int lane = 0; lane < kLanes; ++lane) {
    u32 result = 0;
    for (int row = 0; row < 8; ++row)
      if (table >> row & 1)
        result |= (row & 4 ? in[0][lane] : ~in[0][lane]) & (row & 2 ? in[1][lane] : ~in[1][lane]) &
                  (row & 1 ? in[2][lane] : ~in[2][lane]);
    out[lane] = result & kBits;
  }
  finish(wave, instruction, out);
}

// Carries leave in a scalar pair: bits of disabled lanes are zero.
template <bool kSubtract, bool kReverse, bool kCarryIn>
void add_carry(Wave& wave, const Instruction& instruction) {
  u32 first[kLanes], second[kLanes], out[kLanes];
  const u32* a = fetch<u32>(wave, instruction, 0, first);
  const u32* b = fetch<u32>(wave, instruction, 1, second);
  if (kReverse) std::swap(a, b);
  const uint64_t in = kCarryIn ? wave.pair(instruction.source[2].index) : 0, exec = wave.exec();
  uint64_t carries = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint64_t carry = in >> lane & 1;
    const uint64_t wide =
        kSubtract ? uint64_t(a[lane]) - b[lane] - carry : uint64_t(a[lane]) + b[lane] + carry;
    out[lane] = u32(wide);
    carries |= (wide >> 32 & 1) << lane;
  }
  finish(wave, instruction, out);
  wave.set_pair(instruction.destination[1].index, carries & exec);
}

void cndmask(Wave& wave, const Instruction& instruction) {
  // Source negation is a float's: the operands are read as floats and moved unchanged otherwise.
  float first[kLanes], second[kLanes];
  u32 out[kLanes];
  const float* a = fetch<float>(wave, instruction, 0, first);
  const float* b = fetch<float>(wave, instruction, 1, second);
  const uint64_t condition = wave.pair(instruction.source[2].index);
  for (int lane = 0; lane < kLanes; ++lane)
    out[lane] = bits_of(condition >> lane & 1 ? b[lane] : a[lane]);
  finish(wave, instruction, out);
}

// 32-bit sums that the clamp bit saturates.
template <class Integer, bool kSubtract>
void saturating_add(Wave& wave, const Instruction& instruction) {
  u32 first[kLanes], second[kLanes], out[kLanes];
  const u32* a = fetch<u32>(wave, instruction, 0, first);
  const u32* b = fetch<u32>(wave, instruction, 1, second);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int64_t x = int64_t(Integer(a[lane])), y = int64_t(Integer(b[lane])),
                  sum = kSubtract ? x - y : x + y;
    out[lane] = u32(instruction.modifiers.clamp
                        ? std::clamp(sum, int64_t(std::numeric_limits<Integer>::min()),
                                     int64_t(std::numeric_limits<Integer>::max()))
                        : sum);
  }
  finish(wave, instruction, out);
}

}  // namespace

void add_vector_integer(Table& t) {
  constexpr uint32_t kPlain = kDpp | kSdwa;
  t["v_mov_b32"] = vector_op([](u32 a) { return a; });
  t["v_not_b32"] = vector_op([](u32 a) { return ~a; });
  t["v_and_b32"] = vector_op([](u32 a, u32 b) { return a & b; });
  t["v_or_b32"] = vector_op([](u32 a, u32 b) { return a | b; });
  t["v_xor_b32"] = vector_op([](u32 a, u32 b) { return a ^ b; });
  t["v_xnor_b32"] = vector_op([](u32 a, u32 b) { return ~(a ^ b); });
  t["v_or3_b32"] = vector_op([](u32 a, u32 b, u32 c) { return a | b | c; });
  t["v_and_or_b32"] = vector_op([](u32 a, u32 b, u32 c) { return (a & b) | c; });
  t["v_xad_u32"] = vector_op([](u32 a, u32 b, u32 c) { return (a ^ b) + c; });
  t["v_bfi_b32"] = vector_op([](u32 a, u32 b, u32 c) { return (a & b) | (~a & c); });
  t["v_bfm_b32"] = vector_op([](u32 a, u32 b) { return ((1u << (a & 31)) - 1) << (b & 31); });
  t["v_bfe_u32"] =
      vector_op([](u32 a, u32 b, u32 c) { return a >> (b & 31) & ((1u << (c & 31)) - 1); });
  t["v_bfe_i32"] = vector_op([](i32 a, u32 b, u32 c) {
    const int width = int(c & 31);
    return width ? sign_extend(u32(a >> (b & 31)), width) : 0;
  });
  t["v_bfrev_b32"] = vector_op([](u32 a) {
    u32 out = 0;
    for (int i = 0; i < 32; ++i) out |= (a >> i & 1) << (31 - i);
    return out;
  });
  t["v_ffbh_u32"] = vector_op([](u32 a) { return a ? u32(std::countl_zero(a)) : ~0u; });
  t["v_ffbl_b32"] = vector_op([](u32 a) { return a ? u32(std::countr_zero(a)) : ~0u; });
  t["v_ffbh_i32"] = vector_op([](i32 a) {
    const u32 flipped = u32(a ^ (a >> 31));
    return flipped ? u32(std::countl_zero(flipped)) : ~0u;
  });
  t["v_bcnt_u32_b32"] = vector_op([](u32 a, u32 b) { return u32(std::popcount(a)) + b; });
  t["v_lshlrev_b32"] = vector_op([](u32 a, u32 b) { return b << (a & 31); });
  t["v_lshrrev_b32"] = vector_op([](u32 a, u32 b) { return b >> (a & 31); });
  t["v_ashrrev_i32"] = vector_op([](u32 a, i32 b) { return b >> (a & 31); });
  t["v_lshl_add_u32"] = vector_op([](u32 a, u32 b, u32 c) { return (a << (b & 31)) + c; });
  t["v_add_lshl_u32"] = vector_op([](u32 a, u32 b, u32 c) { return (a + b) << (c & 31); });
  t["v_lshl_or_b32"] = vector_op([](u32 a, u32 b, u32 c) { return a << (b & 31) | c; });
  t["v_add3_u32"] = vector_op([](u32 a, u32 b, u32 c) { return a + b + c; });
  t["v_add_u32"] = {saturating_add<u32, false>, 1, 2, kPlain | kClamp};
  t["v_sub_u32"] = {saturating_add<u32, true>, 1, 2, kPlain | kClamp};
  t["v_add_i32"] = {saturating_add<i32, false>, 1, 2, kPlain | kClamp};
  t["v_sub_i32"] = {saturating_add<i32, true>, 1, 2, kPlain | kClamp};
  t["v_subrev_u32"] = vector_op([](u32 a, u32 b) { return b - a; });
  t["v_add_co_u32"] = {add_carry<false, false, false>, 2, 2, kPlain};
  t["v_sub_co_u32"] = {add_carry<true, false, false>, 2, 2, kPlain};
  t["v_subrev_co_u32"] = {add_carry<true, true, false>, 2, 2, kPlain};
  t["v_addc_co_u32"] = {add_carry<false, false, true>, 2, 3, kPlain};
  t["v_subb_co_u32"] = {add_carry<true, false, true>, 2, 3, kPlain};
  t["v_subbrev_co_u32"] = {add_carry<true, true, true>, 2, 3, kPlain};
  t["v_cndmask_b32"] = {cndmask, 1, 3, kPlain | kNegate};
  t["v_mul_lo_u32"] = vector_op([](u32 a, u32 b) { return a * b; });
  t["v_mul_hi_u32"] = vector_op([](u32 a, u32 b) { return u32(uint64_t(a) * b >> 32); });
  t["v_mul_hi_i32"] = vector_op([](i32 a, i32 b) { return i32(int64_t(a) * b >> 32); });
  t["v_mul_u32_u24"] = vector_op([](u32 a, u32 b) { return (a & 0xffffff) * (b & 0xffffff); });
  t["v_mul_hi_u32_u24"] =
      vector_op([](u32 a, u32 b) { return u32(uint64_t(a & 0xffffff) * (b & 0xffffff) >> 32); });
  t["v_mul_i32_i24"] =
      vector_op([](u32 a, u32 b) { return u32(sign_extend(a, 24)) * u32(sign_extend(b, 24)); });
  t["v_mul_hi_i32_i24"] = vector_op(
      [](u32 a, u32 b) { return i32(int64_t(sign_extend(a, 24)) * sign_extend(b, 24) >> 32); });
  t["v_mad_u32_u24"] =
      vector_op([](u32 a, u32 b, u32 c) { return (a & 0xffffff) * (b & 0xffffff) + c; });
  t["v_mad_i32_i24"] = vector_op(
      [](u32 a, u32 b, u32 c) { return u32(sign_extend(a, 24)) * u32(sign_extend(b, 24)) + c; });
  t["v_mad_u32_u16"] = vector_op([](U16 a, U16 b, u32 c) { return u32(a.bits) * b.bits + c; });
  t["v_mad_i32_i16"] =
      vector_op([](I16 a, I16 b, i32 c) { return i32(u32(a.bits * b.bits) + u32(c)); });
  t["v_min_i32"] = vector_op([](i32 a, i32 b) { return std::min(a, b); });
  t["v_max_i32"] = vector_op([](i32 a, i32 b) { return std::max(a, b); });
  t["v_min_u32"] = vector_op([](u32 a, u32 b) { return std::min(a, b); });
  t["v_max_u32"] = vector_op([](u32 a, u32 b) { return std::max(a, b); });
  t["v_min3_i32"] = vector_op([](i32 a, i32 b, i32 c) { return std::min({a, b, c}); });
  t["v_max3_i32"] = vector_op([](i32 a, i32 b, i32 c) { return std::max({a, b, c}); });
  t["v_min3_u32"] = vector_op([](u32 a, u32 b, u32 c) { return std::min({a, b, c}); });
  t["v_max3_u32"] = vector_op([](u32 a, u32 b, u32 c) { return std::max({a, b, c}); });
  t["v_med3_i32"] = vector_op([](i32 a, i32 b, i32 c) { return median(a, b, c); });
  t["v_med3_u32"] = vector_op([](u32 a, u32 b, u32 c) { return median(a, b, c); });
  t["v_alignbit_b32"] =
      vector_op([](u32 a, u32 b, u32 c) { return u32((uint64_t(a) << 32 | b) >> (c & 31)); });
  t["v_alignbyte_b32"] =
      vector_op([](u32 a, u32 b, u32 c) { return u32((uint64_t(a) << 32 | b) >> 8 * (c & 3)); });
  t["v_perm_b32"] = vector_op([](u32 a, u32 b, u32 c) {
    const uint64_t data = uint64_t(a) << 32 | b;
    u32 out = 0;
    for (int i = 0; i < 4; ++i) out |= permuted_byte(data, c >> 8 * i & 0xff) << 8 * i;
    return out;
  });
  t["v_sad_u8"] = vector_op([](u32 a, u32 b, u32 c) { return byte_distance(a, b, false) + c; });
  t["v_msad_u8"] = vector_op([](u32 a, u32 b, u32 c) { return byte_distance(a, b, true) + c; });
  t["v_sad_u32"] = vector_op([](u32 a, u32 b, u32 c) { return (a > b ? a - b : b - a) + c; });
  t["v_bitop3_b32"] = {bitop3<~0u>, 1, 3, kTruthTable};
  t["v_bitop3_b16"] = {bitop3<0xffff>, 1, 3, kTruthTable};

  t["v_add_u16"] = vector_op([](U16 a, U16 b) { return U16{uint16_t(a.bits + b.bits)}; });
  t["v_sub_u16"] = vector_op([](U16 a, U16 b) { return U16{uint16_t(a.bits - b.bits)}; });
  t["v_subrev_u16"] = vector_op([](U16 a, U16 b) { return U16{uint16_t(b.bits - a.bits)}; });
  t["v_mul_lo_u16"] = vector_op([](U16 a, U16 b) { return U16{uint16_t(u32(a.bits) * b.bits)}; });
  t["v_lshlrev_b16"] =
      vector_op([](U16 a, U16 b) { return U16{uint16_t(b.bits << (a.bits & 15))}; });
  t["v_lshrrev_b16"] =
      vector_op([](U16 a, U16 b) { return U16{uint16_t(b.bits >> (a.bits & 15))}; });
  t["v_ashrrev_i16"] =
      vector_op([](U16 a, I16 b) { return I16{int16_t(b.bits >> (a.bits & 15))}; });
  t["v_min_u16"] = vector_op([](U16 a, U16 b) { return U16{std::min(a.bits, b.bits)}; });
  t["v_max_u16"] = vector_op([](U16 a, U16 b) { return U16{std::max(a.bits, b.bits)}; });
  t["v_min_i16"] = vector_op([](I16 a, I16 b) { return I16{std::min(a.bits, b.bits)}; });
  t["v_max_i16"] = vector_op([](I16 a, I16 b) { return I16{std::max(a.bits, b.bits)}; });
}

}  // namespace emulator
