// LDS instructions: plain, paired, transposing and atomic.
#include "access.h"

namespace emulator {

namespace {

// The sum of register and offset wraps at 32 bits, and is not cut further: an address past the
// allocation is seen.
uint64_t address_of(const Wave& wave, const Instruction& i, int lane, int64_t offset) {
  return uint32_t(wave.v[i.source[0].index][lane] + uint32_t(offset));
}
uint64_t address_of(const Wave& wave, const Instruction& i, int lane) {
  return address_of(wave, i, lane, i.modifiers.offset);
}

template <const Transfer& kTransfer>
void read(Wave& wave, const Instruction& i) {
  const int index = i.destination[0].index;
  const uint8_t* from[kLanes];
  for_each_lane(wave, [&](int lane) {
    from[lane] = lds_at(wave, lane, address_of(wave, i, lane), kTransfer.bytes);
  });
  for_each_lane(wave, [&](int lane) { load_into(wave, kTransfer, index, lane, from[lane]); });
}

template <const Transfer& kTransfer>
void write(Wave& wave, const Instruction& i) {
  for_each_lane(wave, [&](int lane) {
    store_from(wave, kTransfer, i.source[1].index, lane,
               lds_at(wave, lane, address_of(wave, i, lane), kTransfer.bytes));
  });
}

// Two elements whose offsets count elements, or 64 of them.
template <const Transfer& kTransfer, int kStride>
void read_pair(Wave& wave, const Instruction& i) {
  const int index = i.destination[0].index, words = kTransfer.bytes / 4,
            step = kTransfer.bytes * kStride;
  const uint8_t* from[2][kLanes];
  for_each_lane(wave, [&](int lane) {
    from[0][lane] =
        lds_at(wave, lane, address_of(wave, i, lane, i.modifiers.offset0 * step), kTransfer.bytes);
    from[1][lane] =
        lds_at(wave, lane, address_of(wave, i, lane, i.modifiers.offset1 * step), kTransfer.bytes);
  });
  for_each_lane(wave, [&](int lane) {
    for (int part = 0; part < 2; ++part)
      load_into(wave, kTransfer, index + part * words, lane, from[part][lane]);
  });
}

template <const Transfer& kTransfer, int kStride>
void write_pair(Wave& wave, const Instruction& i) {
  const int step = kTransfer.bytes * kStride;
  for_each_lane(wave, [&](int lane) {
    store_from(
        wave, kTransfer, i.source[1].index, lane,
        lds_at(wave, lane, address_of(wave, i, lane, i.modifiers.offset0 * step), kTransfer.bytes));
    store_from(
        wave, kTransfer, i.source[2].index, lane,
        lds_at(wave, lane, address_of(wave, i, lane, i.modifiers.offset1 * step), kTransfer.bytes));
  });
}

// Sixteen lanes bring 64 bits each: 16 columns of as many rows as a lane has elements. Lane c of
// the sixteen leaves with column c (CDNA4 ISA, "MFMA Transpose Load from LDS").
template <int kBits>
void read_transposed(Wave& wave, const Instruction& i) {
  if (wave.exec() != ~0ull)
    throw Fault(kLaunchFailure, "a transposing LDS read needs all 64 lanes enabled");
  constexpr int kElements = 64 / kBits, kLanesPerRow = 16 / kElements;
  uint64_t in[kLanes];
  for (int lane = 0; lane < kLanes; ++lane)
    std::memcpy(&in[lane], lds_at(wave, lane, address_of(wave, i, lane), 8), 8);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane & ~15, column = lane & 15;
    uint64_t out = 0;
    for (int row = 0; row < kElements; ++row) {
      const uint64_t source = in[group + row * kLanesPerRow + column / kElements];
      out |= (source >> kBits * (column % kElements) & ((1ull << kBits) - 1)) << kBits * row;
    }
    set_wide(wave, i.destination[0].index, lane, 8, out);
  }
}

void atomic(Wave& wave, const Instruction& i) {
  const Atomic& what = *static_cast<const Atomic*>(i.detail);
  // LDS compare-and-swap takes the comparison first and the new value second.
  const int data = i.source[what.compares ? 2 : 1].index,
            second = what.compares ? int(i.source[1].index) : -1;
  for_each_lane(wave, [&](int lane) {
    apply_atomic(wave, what, lds_at(wave, lane, address_of(wave, i, lane), what.bytes), data,
                 second, i.destinations ? int(i.destination[0].index) : -1, lane);
  });
}

constexpr Transfer kU8{1, Width::unsigned_byte}, kI8{1, Width::signed_byte},
    kU16{2, Width::unsigned_short}, kI16{2, Width::signed_short}, kB32{4}, kB64{8}, kB96{12},
    kB128{16}, kU8D16{1, Width::unsigned_byte, true}, kI8D16{1, Width::signed_byte, true},
    kU16D16{2, Width::unsigned_short, true}, kU8D16Hi{1, Width::unsigned_byte, true, true},
    kI8D16Hi{1, Width::signed_byte, true, true}, kU16D16Hi{2, Width::unsigned_short, true, true};

template <const Transfer& kTransfer>
void add_read(Table& t, const std::string& name) {
  t["ds_read_" + name] = {read<kTransfer>, 1, 1, kOffset};
}
template <const Transfer& kTransfer>
void add_write(Table& t, const std::string& name) {
  t["ds_write_" + name] = {write<kTransfer>, 0, 2, kOffset};
}

// LDS names atomics by type, global memory by sign.
std::string lds_name(const Atomic& what) {
  const std::string width = what.bytes == 8 ? "64" : "32";
  static const std::unordered_map<std::string, std::string> names = {
      {"add", "add_u"},      {"sub", "sub_u"},  {"inc", "inc_u"},  {"dec", "dec_u"},
      {"umax", "max_u"},     {"umin", "min_u"}, {"smax", "max_i"}, {"smin", "min_i"},
      {"and", "and_b"},      {"or", "or_b"},    {"xor", "xor_b"},  {"swap", "wrxchg_b"},
      {"cmpswap", "cmpst_b"}};
  return names.at(what.name) + width;
}

}  // namespace

void add_lds(Table& t) {
  add_read<kU8>(t, "u8");
  add_read<kI8>(t, "i8");
  add_read<kU16>(t, "u16");
  add_read<kI16>(t, "i16");
  add_read<kB32>(t, "b32");
  add_read<kB64>(t, "b64");
  add_read<kB96>(t, "b96");
  add_read<kB128>(t, "b128");
  add_read<kU8D16>(t, "u8_d16");
  add_read<kI8D16>(t, "i8_d16");
  add_read<kU16D16>(t, "u16_d16");
  add_read<kU8D16Hi>(t, "u8_d16_hi");
  add_read<kI8D16Hi>(t, "i8_d16_hi");
  add_read<kU16D16Hi>(t, "u16_d16_hi");
  add_write<kU8>(t, "b8");
  add_write<kU8D16Hi>(t, "b8_d16_hi");
  add_write<kU16>(t, "b16");
  add_write<kU16D16Hi>(t, "b16_d16_hi");
  add_write<kB32>(t, "b32");
  add_write<kB64>(t, "b64");
  add_write<kB96>(t, "b96");
  add_write<kB128>(t, "b128");
  t["ds_read2_b32"] = {read_pair<kB32, 1>, 1, 1, kOffsetPair};
  t["ds_read2st64_b32"] = {read_pair<kB32, 64>, 1, 1, kOffsetPair};
  t["ds_read2_b64"] = {read_pair<kB64, 1>, 1, 1, kOffsetPair};
  t["ds_read2st64_b64"] = {read_pair<kB64, 64>, 1, 1, kOffsetPair};
  t["ds_write2_b32"] = {write_pair<kB32, 1>, 0, 3, kOffsetPair};
  t["ds_write2st64_b32"] = {write_pair<kB32, 64>, 0, 3, kOffsetPair};
  t["ds_write2_b64"] = {write_pair<kB64, 1>, 0, 3, kOffsetPair};
  t["ds_write2st64_b64"] = {write_pair<kB64, 64>, 0, 3, kOffsetPair};
  t["ds_read_b64_tr_b16"] = {read_transposed<16>, 1, 1, kOffset};
  t["ds_read_b64_tr_b8"] = {read_transposed<8>, 1, 1, kOffset};
  t["ds_read_b64_tr_b4"] = {read_transposed<4>, 1, 1, kOffset};
  const auto add_atomic = [&](const std::string& name, const Atomic& what) {
    // ds_add_u32 and ds_add_rtn_u32: "rtn" comes before the type. A swap always returns.
    const size_t type = name.rfind('_');
    const int sources = what.compares ? 3 : 2;
    if (what.name != "swap") t["ds_" + name] = {atomic, 0, sources, kOffset, false, false, &what};
    t["ds_" + name.substr(0, type) + "_rtn" + name.substr(type)] = {atomic, 1,     sources, kOffset,
                                                                    false,  false, &what};
  };
  for (const Atomic& what : integer_atomics()) add_atomic(lds_name(what), what);
  for (const Atomic& what : float_atomics()) add_atomic(what.name, what);
}

}  // namespace emulator
