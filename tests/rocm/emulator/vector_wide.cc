// 64-bit integer vector instructions, multiply-adds into 64 bits among them.
#include "vector.h"

namespace emulator {

namespace {

// D = S0 * S1 + S2 with the carry out of bit 63 in a scalar pair.
template <class Narrow, class Wide>
void mad_wide(Wave& wave, const Instruction& instruction) {
  Narrow first[kLanes], second[kLanes];
  uint64_t third[kLanes], out[kLanes];
  const Narrow* a = fetch<Narrow>(wave, instruction, 0, first);
  const Narrow* b = fetch<Narrow>(wave, instruction, 1, second);
  const uint64_t* c = fetch<uint64_t>(wave, instruction, 2, third);
  uint64_t carries = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const __int128 sum = __int128(Wide(a[lane]) * Wide(b[lane])) + __int128(Wide(c[lane]));
    out[lane] = uint64_t(sum);
    carries |= uint64_t(sum >> 64 & 1) << lane;
  }
  finish(wave, instruction, out);
  wave.set_pair(instruction.destination[1].index, carries & wave.exec());
}

}  // namespace

void add_vector_wide(Table& t) {
  t["v_mov_b64"] = vector_op([](uint64_t a) { return a; });
  t["v_lshl_add_u64"] =
      vector_op([](uint64_t a, uint32_t b, uint64_t c) { return (a << (b & 7)) + c; });
  t["v_lshlrev_b64"] = vector_op([](uint32_t a, uint64_t b) { return b << (a & 63); });
  t["v_lshrrev_b64"] = vector_op([](uint32_t a, uint64_t b) { return b >> (a & 63); });
  t["v_ashrrev_i64"] = vector_op([](uint32_t a, int64_t b) { return b >> (a & 63); });
  t["v_mad_u64_u32"] = {mad_wide<uint32_t, uint64_t>, 2, 3, 0};
  t["v_mad_i64_i32"] = {mad_wide<int32_t, int64_t>, 2, 3, 0};
}

}  // namespace emulator
