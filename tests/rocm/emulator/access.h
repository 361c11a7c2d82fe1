// What memory instructions share: checked access to LDS, global, flat and private memory, and
// atomics' arithmetic.
#pragma once

#include "vector.h"

namespace emulator {

// A pointer to `bytes` of the workgroup's LDS, or a fault that names the lane and the address.
uint8_t* lds_at(Wave& wave, int lane, uint64_t address, int bytes);
// The same for process memory.
uint8_t* global_at(Wave& wave, int lane, uint64_t address, int bytes, bool write);
// A lane's private memory.
uint8_t* private_at(Wave& wave, int lane, uint64_t address, int bytes);
// A flat address goes to one of the three.
uint8_t* flat_at(Wave& wave, int lane, uint64_t address, int bytes, bool write);

// Data under way to LDS, which must lie inside: nobody sees them before the wave waits for them.
void send_to_lds(Wave& wave, int lane, uint64_t address, const uint8_t* data, int bytes);
// All arrive but those of the last `later` vector memory instructions of the wave.
void arrive_in_lds(Wave& wave, uint64_t later);

// How a loaded value reaches its registers, and how a stored one leaves them.
enum class Width : uint8_t { whole, unsigned_byte, signed_byte, unsigned_short, signed_short };
struct Transfer {
  int bytes;
  Width width = Width::whole;
  // Half-register forms. With ECC memory, which gfx942 and gfx950 have, a load clears the other
  // half.
  bool half = false, high = false;
};

void load_into(Wave& wave, const Transfer& transfer, int index, int lane, const uint8_t* from);
void store_from(Wave& wave, const Transfer& transfer, int index, int lane, uint8_t* to);

// new = f(old, operands); operands are as wide as the memory, the second one only for
// compare-and-swap.
using Update = uint64_t (*)(uint64_t old, uint64_t data, uint64_t second);
struct Atomic {
  std::string name;
  int bytes;
  Update update;
  bool compares = false;
};
const std::vector<Atomic>& integer_atomics();
const std::vector<Atomic>& float_atomics();

// Reads `bytes` (4 or 8) of a lane's register operand.
inline uint64_t wide_value(const Wave& wave, int index, int lane, int bytes) {
  return bytes == 8 ? uint64_t(wave.v[index + 1][lane]) << 32 | wave.v[index][lane]
                    : wave.v[index][lane];
}
inline void set_wide(Wave& wave, int index, int lane, int bytes, uint64_t value) {
  wave.v[index][lane] = uint32_t(value);
  if (bytes == 8) wave.v[index + 1][lane] = uint32_t(value >> 32);
}

// An atomic on memory already resolved; `result` < 0 where the old value is not returned.
inline void apply_atomic(Wave& wave, const Atomic& atomic, uint8_t* memory, int data, int second,
                         int result, int lane) {
  uint64_t old = 0;
  std::memcpy(&old, memory, size_t(atomic.bytes));
  const uint64_t value = wide_value(wave, data, lane, atomic.bytes);
  const uint64_t updated =
      atomic.update(old, value, second >= 0 ? wide_value(wave, second, lane, atomic.bytes) : 0);
  std::memcpy(memory, &updated, size_t(atomic.bytes));
  if (result >= 0) set_wide(wave, result, lane, atomic.bytes, old);
}

}  // namespace emulator
