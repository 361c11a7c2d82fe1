// Global, flat, private and raw buffer memory instructions, and the loads that go straight to LDS.
#include "access.h"

namespace emulator {

namespace {

enum class Space { global, flat, scratch, buffer };

// The operands of each space's address follow the data in a load and come around it in a store.
struct Address {
  const Operand* vector;
  const Operand* scalar;
  const Operand* resource = nullptr;
};

uint64_t scalar_word(const Wave& wave, const Operand& operand) {
  if (operand.kind == OperandKind::off || operand.kind == OperandKind::none) return 0;
  return operand.kind == OperandKind::scalar ? wave.s[operand.index] : operand.constant32;
}

uint64_t vector_word(const Wave& wave, const Operand& operand, int lane) {
  return operand.kind == OperandKind::vector ? wave.v[operand.index][lane] : 0;
}

uint64_t flat_address(const Wave& wave, const Instruction& i, const Address& address, int lane) {
  const uint64_t offset = uint64_t(i.modifiers.offset);
  if (address.scalar && address.scalar->kind == OperandKind::scalar)
    return wave.pair(address.scalar->index) + vector_word(wave, *address.vector, lane) + offset;
  return wide_value(wave, address.vector->index, lane, 8) + offset;
}

// A raw buffer (stride 0, no swizzle) checks offset against num_records, in bytes.
struct RawBuffer {
  uint64_t base;
  uint32_t records;
};

RawBuffer raw_buffer(const Wave& wave, const Operand& resource) {
  const uint32_t* words = &wave.s[resource.index];
  if (words[1] >> 16 & 0x3fff || words[1] >> 31)
    throw Fault(kLaunchFailure,
                "a buffer resource with a stride or swizzle is not emulated, only raw buffers");
  return {uint64_t(words[1] & 0xffff) << 32 | words[0], words[2]};
}

// Calls f(lane, memory): memory is null where a raw buffer's bounds drop the access of `bytes` at
// `skip`.
template <Space kSpace, class F>
void each_address(Wave& wave, const Instruction& i, const Address& address, int bytes, bool write,
                  F f) {
  if constexpr (kSpace == Space::buffer) {
    const RawBuffer buffer = raw_buffer(wave, *address.resource);
    const uint64_t scalar = scalar_word(wave, *address.scalar);
    for_each_lane(wave, [&](int lane) {
      const uint64_t offset =
          uint64_t(i.modifiers.offset) +
          (i.modifiers.offset_enable ? vector_word(wave, *address.vector, lane) : 0);
      const bool inside = offset + scalar + uint64_t(bytes) <= buffer.records;
      f(lane,
        inside ? global_at(wave, lane, buffer.base + scalar + offset, bytes, write) : nullptr);
    });
  } else if constexpr (kSpace == Space::scratch) {
    for_each_lane(wave, [&](int lane) {
      const uint64_t at = scalar_word(wave, *address.scalar) +
                          vector_word(wave, *address.vector, lane) + uint64_t(i.modifiers.offset);
      f(lane, private_at(wave, lane, at & 0xffffffff, bytes));
    });
  } else {
    for_each_lane(wave, [&](int lane) {
      const uint64_t at = flat_address(wave, i, address, lane);
      f(lane, kSpace == Space::flat ? flat_at(wave, lane, at, bytes, write)
                                    : global_at(wave, lane, at, bytes, write));
    });
  }
}

template <Space kSpace>
Address load_address(const Instruction& i, int first) {
  if (kSpace == Space::buffer)
    return {&i.source[first], &i.source[first + 2], &i.source[first + 1]};
  if (kSpace == Space::flat) return {&i.source[first], nullptr};
  return {&i.source[first], &i.source[first + 1]};
}

template <Space kSpace, const Transfer& kTransfer>
void load(Wave& wave, const Instruction& i) {
  static constexpr uint8_t kZeros[16] = {};
  const int index = i.destination[0].index;
  // Words of a raw buffer are bounds-checked one by one; elsewhere the whole access is.
  if (kSpace == Space::buffer && kTransfer.bytes > 4) {
    const Transfer word{4};
    for (int part = 0; part < kTransfer.bytes / 4; ++part) {
      Instruction piece = i;
      piece.modifiers.offset += 4 * part;
      each_address<kSpace>(wave, piece, load_address<kSpace>(piece, 0), 4, false,
                           [&](int lane, const uint8_t* from) {
                             load_into(wave, word, index + part, lane, from ? from : kZeros);
                           });
    }
    return;
  }
  // The address register may be overwritten: all addresses are read before any lane is written.
  const uint8_t* from[kLanes];
  each_address<kSpace>(
      wave, i, load_address<kSpace>(i, 0), kTransfer.bytes, false,
      [&](int lane, const uint8_t* memory) { from[lane] = memory ? memory : kZeros; });
  for_each_lane(wave, [&](int lane) { load_into(wave, kTransfer, index, lane, from[lane]); });
}

template <Space kSpace, const Transfer& kTransfer>
void store(Wave& wave, const Instruction& i) {
  // global: address, data, base. flat: address, data. scratch: address, data, base. buffer: data,
  // address, ...
  const bool buffer = kSpace == Space::buffer;
  const int data = i.source[buffer ? 0 : 1].index;
  const Address address = buffer                  ? load_address<kSpace>(i, 1)
                          : kSpace == Space::flat ? Address{&i.source[0], nullptr}
                                                  : Address{&i.source[0], &i.source[2]};
  if (buffer && kTransfer.bytes > 4) {
    for (int part = 0; part < kTransfer.bytes / 4; ++part) {
      Instruction piece = i;
      piece.modifiers.offset += 4 * part;
      each_address<kSpace>(wave, piece, load_address<kSpace>(piece, 1), 4, true,
                           [&](int lane, uint8_t* to) {
                             if (to) store_from(wave, Transfer{4}, data + part, lane, to);
                           });
    }
    return;
  }
  each_address<kSpace>(wave, i, address, kTransfer.bytes, true, [&](int lane, uint8_t* to) {
    if (to) store_from(wave, kTransfer, data, lane, to);
  });
}

// LDS receives consecutive elements of the enabled lanes' numbers from M0 and the instruction's
// offset on, once the wave waits for them.
template <Space kSpace, const Transfer& kTransfer>
void load_to_lds(Wave& wave, const Instruction& i) {
  const uint64_t base = wave.s[kM0] + uint64_t(i.modifiers.offset);
  each_address<kSpace>(wave, i, load_address<kSpace>(i, 0), kTransfer.bytes, false,
                       [&](int lane, const uint8_t* from) {
                         // Narrow elements still take a whole word each.
                         const int step = std::max(kTransfer.bytes, 4);
                         uint8_t data[16] = {};
                         if (from) std::memcpy(data, from, size_t(kTransfer.bytes));
                         uint32_t narrow;
                         std::memcpy(&narrow, data, 4);
                         if (kTransfer.width == Width::signed_byte)
                           narrow = uint32_t(int32_t(int8_t(narrow)));
                         if (kTransfer.width == Width::signed_short)
                           narrow = uint32_t(int32_t(int16_t(narrow)));
                         std::memcpy(data, &narrow, 4);
                         send_to_lds(wave, lane, base + uint64_t(lane * step), data, step);
                       });
}

// With sc0 an atomic returns the old value: the destination comes first in the text.
template <Space kSpace>
void atomic(Wave& wave, const Instruction& i) {
  const Atomic& what = *static_cast<const Atomic*>(i.detail);
  const int data = i.source[kSpace == Space::buffer ? 0 : 1].index;
  const Address address = kSpace == Space::buffer ? load_address<kSpace>(i, 1)
                          : kSpace == Space::flat ? Address{&i.source[0], nullptr}
                                                  : Address{&i.source[0], &i.source[2]};
  // A compare-and-swap's data registers hold the new value, then the one to compare with. A raw
  // buffer returns into the data register: there the destination is the first source.
  const int second = what.compares ? data + what.bytes / 4 : -1;
  int result = i.destinations ? int(i.destination[0].index) : -1;
  if (kSpace == Space::buffer && i.modifiers.sc0) result = data;
  uint8_t* memory[kLanes];
  each_address<kSpace>(wave, i, address, what.bytes, true,
                       [&](int lane, uint8_t* at) { memory[lane] = at; });
  for_each_lane(wave, [&](int lane) {
    if (memory[lane]) apply_atomic(wave, what, memory[lane], data, second, result, lane);
  });
}

constexpr Transfer kUbyte{1, Width::unsigned_byte}, kSbyte{1, Width::signed_byte},
    kUshort{2, Width::unsigned_short}, kSshort{2, Width::signed_short}, kDword{4}, kDwordx2{8},
    kDwordx3{12}, kDwordx4{16}, kUbyteD16{1, Width::unsigned_byte, true},
    kSbyteD16{1, Width::signed_byte, true}, kShortD16{2, Width::unsigned_short, true},
    kUbyteD16Hi{1, Width::unsigned_byte, true, true},
    kSbyteD16Hi{1, Width::signed_byte, true, true},
    kShortD16Hi{2, Width::unsigned_short, true, true};

template <Space kSpace>
uint32_t address_modifiers() {
  return kOffset | kCacheBits | (kSpace == Space::buffer ? uint32_t(kIndexing) : 0);
}
template <Space kSpace>
int address_operands() {
  return kSpace == Space::buffer ? 3 : kSpace == Space::flat ? 1 : 2;
}

template <Space kSpace, const Transfer& kTransfer>
void add_load(Table& t, const std::string& name) {
  t[name] = {load<kSpace, kTransfer>, 1, address_operands<kSpace>(), address_modifiers<kSpace>()};
}
template <Space kSpace, const Transfer& kTransfer>
void add_store(Table& t, const std::string& name) {
  t[name] = {store<kSpace, kTransfer>, 0, address_operands<kSpace>() + 1,
             address_modifiers<kSpace>()};
}
template <Space kSpace, const Transfer& kTransfer>
void add_to_lds(Table& t, const std::string& name) {
  t[name] = {load_to_lds<kSpace, kTransfer>, 0, address_operands<kSpace>(),
             address_modifiers<kSpace>() | kLds};
}

template <Space kSpace>
void add_space(Table& t, const std::string& prefix) {
  add_load<kSpace, kUbyte>(t, prefix + "_load_ubyte");
  add_load<kSpace, kSbyte>(t, prefix + "_load_sbyte");
  add_load<kSpace, kUshort>(t, prefix + "_load_ushort");
  add_load<kSpace, kSshort>(t, prefix + "_load_sshort");
  add_load<kSpace, kDword>(t, prefix + "_load_dword");
  add_load<kSpace, kDwordx2>(t, prefix + "_load_dwordx2");
  add_load<kSpace, kDwordx3>(t, prefix + "_load_dwordx3");
  add_load<kSpace, kDwordx4>(t, prefix + "_load_dwordx4");
  add_load<kSpace, kUbyteD16>(t, prefix + "_load_ubyte_d16");
  add_load<kSpace, kSbyteD16>(t, prefix + "_load_sbyte_d16");
  add_load<kSpace, kShortD16>(t, prefix + "_load_short_d16");
  add_load<kSpace, kUbyteD16Hi>(t, prefix + "_load_ubyte_d16_hi");
  add_load<kSpace, kSbyteD16Hi>(t, prefix + "_load_sbyte_d16_hi");
  add_load<kSpace, kShortD16Hi>(t, prefix + "_load_short_d16_hi");
  add_store<kSpace, kUbyte>(t, prefix + "_store_byte");
  add_store<kSpace, kUbyteD16Hi>(t, prefix + "_store_byte_d16_hi");
  add_store<kSpace, kUshort>(t, prefix + "_store_short");
  add_store<kSpace, kShortD16Hi>(t, prefix + "_store_short_d16_hi");
  add_store<kSpace, kDword>(t, prefix + "_store_dword");
  add_store<kSpace, kDwordx2>(t, prefix + "_store_dwordx2");
  add_store<kSpace, kDwordx3>(t, prefix + "_store_dwordx3");
  add_store<kSpace, kDwordx4>(t, prefix + "_store_dwordx4");
}

template <Space kSpace>
void add_atomics(Table& t, const std::string& prefix) {
  const uint32_t allowed =
      address_modifiers<kSpace>() | (kSpace == Space::buffer ? 0 : uint32_t(kReturn));
  const auto add = [&](const Atomic& what, const std::string& suffix) {
    t[prefix + "_atomic_" + what.name + suffix] = {
        atomic<kSpace>, 0, address_operands<kSpace>() + 1, allowed, false, false, &what};
  };
  for (const Atomic& what : integer_atomics()) add(what, what.bytes == 8 ? "_x2" : "");
  // LDS alone has minimum and maximum of float32.
  for (const Atomic& what : float_atomics())
    if (what.name != "min_f32" && what.name != "max_f32") add(what, "");
}

}  // namespace

void add_global(Table& t) {
  add_space<Space::global>(t, "global");
  add_space<Space::flat>(t, "flat");
  add_space<Space::scratch>(t, "scratch");
  add_space<Space::buffer>(t, "buffer");
  add_atomics<Space::global>(t, "global");
  add_atomics<Space::flat>(t, "flat");
  add_atomics<Space::buffer>(t, "buffer");
  add_to_lds<Space::global, kUbyte>(t, "global_load_lds_ubyte");
  add_to_lds<Space::global, kSbyte>(t, "global_load_lds_sbyte");
  add_to_lds<Space::global, kUshort>(t, "global_load_lds_ushort");
  add_to_lds<Space::global, kSshort>(t, "global_load_lds_sshort");
  add_to_lds<Space::global, kDword>(t, "global_load_lds_dword");
  add_to_lds<Space::global, kDwordx3>(t, "global_load_lds_dwordx3");
  add_to_lds<Space::global, kDwordx4>(t, "global_load_lds_dwordx4");
  // The text of a buffer load to LDS is the ordinary mnemonic with the modifier `lds`; the decoder
  // renames it.
  add_to_lds<Space::buffer, kUbyte>(t, "buffer_load_lds_ubyte");
  add_to_lds<Space::buffer, kUshort>(t, "buffer_load_lds_ushort");
  add_to_lds<Space::buffer, kDword>(t, "buffer_load_lds_dword");
  add_to_lds<Space::buffer, kDwordx3>(t, "buffer_load_lds_dwordx3");
  add_to_lds<Space::buffer, kDwordx4>(t, "buffer_load_lds_dwordx4");
}

}  // namespace emulator
