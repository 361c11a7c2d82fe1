#include "access.h"

#include <cstdio>

namespace emulator {

namespace {

std::string hexadecimal(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

[[noreturn]] void out_of_bounds(const char* space, int lane, uint64_t address, int bytes,
                                const std::string& limit) {
  throw Fault(kIllegalAddress, std::string(space) + " access of " + std::to_string(bytes) +
                                   " bytes by lane " + std::to_string(lane) + " at address " +
                                   hexadecimal(address) + " " + limit);
}

template <class T, auto kFunction>
uint64_t on_floats(uint64_t a, uint64_t b, uint64_t) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  return std::bit_cast<Bits>(kFunction(std::bit_cast<T>(Bits(a)), std::bit_cast<T>(Bits(b))));
}

template <float (*kDecode)(uint16_t), uint16_t (*kEncode)(float)>
uint64_t packed_sum(uint64_t a, uint64_t b, uint64_t) {
  const auto sum = [](uint64_t x, uint64_t y) {
    return uint64_t(kEncode(kDecode(uint16_t(x)) + kDecode(uint16_t(y))));
  };
  return sum(a >> 16, b >> 16) << 16 | sum(a, b);
}

template <class T>
uint64_t larger(uint64_t a, uint64_t b, uint64_t) {
  return uint64_t(std::make_unsigned_t<T>(std::max(T(a), T(b))));
}
template <class T>
uint64_t smaller(uint64_t a, uint64_t b, uint64_t) {
  return uint64_t(std::make_unsigned_t<T>(std::min(T(a), T(b))));
}
template <class T>
uint64_t compare_swap(uint64_t old, uint64_t data, uint64_t compare) {
  return T(old) == T(compare) ? data : old;
}
template <class T>
uint64_t increment(uint64_t old, uint64_t limit, uint64_t) {
  return T(old) >= T(limit) ? 0 : T(old + 1);
}
template <class T>
uint64_t decrement(uint64_t old, uint64_t limit, uint64_t) {
  return T(old) == 0 || T(old) > T(limit) ? T(limit) : T(old - 1);
}

template <class T>
std::vector<Atomic> atomics_of_width() {
  constexpr int bytes = sizeof(T);
  using S = std::make_signed_t<T>;
  return {{"add", bytes, [](uint64_t a, uint64_t b, uint64_t) { return uint64_t(T(a + b)); }},
          {"sub", bytes, [](uint64_t a, uint64_t b, uint64_t) { return uint64_t(T(a - b)); }},
          {"and", bytes, [](uint64_t a, uint64_t b, uint64_t) { return a & b; }},
          {"or", bytes, [](uint64_t a, uint64_t b, uint64_t) { return a | b; }},
          {"xor", bytes, [](uint64_t a, uint64_t b, uint64_t) { return a ^ b; }},
          {"swap", bytes, [](uint64_t, uint64_t b, uint64_t) { return b; }},
          {"umax", bytes, larger<T>},
          {"umin", bytes, smaller<T>},
          {"smax", bytes, larger<S>},
          {"smin", bytes, smaller<S>},
          {"inc", bytes, increment<T>},
          {"dec", bytes, decrement<T>},
          {"cmpswap", bytes, compare_swap<T>, true}};
}

}  // namespace

uint8_t* lds_at(Wave& wave, int lane, uint64_t address, int bytes) {
  std::vector<uint8_t>& lds = wave.group.lds;
  if (address > lds.size() || uint64_t(bytes) > lds.size() - address)
    out_of_bounds("LDS", lane, address, bytes,
                  "is outside the workgroup's " + std::to_string(lds.size()) + " bytes");
  wave.launch.lds_traffic += uint64_t(bytes);
  return lds.data() + address;
}

uint8_t* global_at(Wave& wave, int lane, uint64_t address, int bytes, bool write) {
  if (!wave.launch.memory.allows(address, uint64_t(bytes), write))
    out_of_bounds(write ? "global store" : "global load", lane, address, bytes,
                  "is outside every registered buffer");
  wave.launch.global_traffic += uint64_t(bytes);
  return reinterpret_cast<uint8_t*>(address);
}

uint8_t* private_at(Wave& wave, int lane, uint64_t address, int bytes) {
  const uint64_t size = wave.launch.private_bytes;
  if (address > size || uint64_t(bytes) > size - address)
    out_of_bounds("private", lane, address, bytes,
                  "is outside the lane's " + std::to_string(size) + " bytes");
  return wave.scratch.data() + uint64_t(lane) * size + address;
}

uint8_t* flat_at(Wave& wave, int lane, uint64_t address, int bytes, bool write) {
  if (address >> 32 == kSharedAperture >> 32)
    return lds_at(wave, lane, address - kSharedAperture, bytes);
  if (address >> 32 == kPrivateAperture >> 32)
    return private_at(wave, lane, address - kPrivateAperture, bytes);
  return global_at(wave, lane, address, bytes, write);
}

void send_to_lds(Wave& wave, int lane, uint64_t address, const uint8_t* data, int bytes) {
  Arrival arrival{wave.vector_memory, lds_at(wave, lane, address, bytes), bytes, {}};
  std::memcpy(arrival.data, data, size_t(bytes));
  wave.arrivals.push_back(arrival);
}

void arrive_in_lds(Wave& wave, uint64_t later) {
  size_t arrived = 0;
  for (; arrived < wave.arrivals.size(); ++arrived) {
    const Arrival& arrival = wave.arrivals[arrived];
    if (arrival.issued + later > wave.vector_memory) break;
    std::memcpy(arrival.to, arrival.data, size_t(arrival.bytes));
  }
  wave.arrivals.erase(wave.arrivals.begin(), wave.arrivals.begin() + long(arrived));
}

void load_into(Wave& wave, const Transfer& transfer, int index, int lane, const uint8_t* from) {
  if (transfer.width == Width::whole && !transfer.half) {
    for (int word = 0; word < transfer.bytes / 4; ++word)
      std::memcpy(&wave.v[index + word][lane], from + 4 * word, 4);
    return;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, from, size_t(transfer.bytes));
  uint32_t value = bits;
  if (transfer.width == Width::signed_byte) value = uint32_t(int32_t(int8_t(bits)));
  if (transfer.width == Width::signed_short) value = uint32_t(int32_t(int16_t(bits)));
  if (transfer.half) value = transfer.high ? value << 16 : value & 0xffff;
  wave.v[index][lane] = value;
}

void store_from(Wave& wave, const Transfer& transfer, int index, int lane, uint8_t* to) {
  if (transfer.bytes >= 4) {
    for (int word = 0; word < transfer.bytes / 4; ++word)
      std::memcpy(to + 4 * word, &wave.v[index + word][lane], 4);
    return;
  }
  const uint32_t value = wave.v[index][lane] >> (transfer.high ? 16 : 0);
  std::memcpy(to, &value, size_t(transfer.bytes));
}

const std::vector<Atomic>& integer_atomics() {
  static const std::vector<Atomic> all = [] {
    std::vector<Atomic> list = atomics_of_width<uint32_t>();
    for (const Atomic& atomic : atomics_of_width<uint64_t>()) list.push_back(atomic);
    return list;
  }();
  return all;
}

const std::vector<Atomic>& float_atomics() {
  static const std::vector<Atomic> all = {
      {"add_f32", 4, on_floats<float, [](float a, float b) { return a + b; }>},
      {"min_f32", 4, on_floats<float, [](float a, float b) { return minimum_number(a, b); }>},
      {"max_f32", 4, on_floats<float, [](float a, float b) { return maximum_number(a, b); }>},
      {"add_f64", 8, on_floats<double, [](double a, double b) { return a + b; }>},
      {"min_f64", 8, on_floats<double, [](double a, double b) { return minimum_number(a, b); }>},
      {"max_f64", 8, on_floats<double, [](double a, double b) { return maximum_number(a, b); }>},
      {"pk_add_f16", 4, packed_sum<half_to_float, float_to_half>},
      {"pk_add_bf16", 4, packed_sum<bf16_to_float, float_to_bf16>}};
  return all;
}

}  // namespace emulator
