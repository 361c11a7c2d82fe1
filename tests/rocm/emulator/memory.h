// Host memory that a kernel may touch: registered buffers, its arguments, its code object's
// segments.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace emulator {

struct Range {
  uint64_t base, bytes;
  bool writable;
};

// Flat addresses of LDS and of a lane's private memory. User space addresses on x86-64 stay below
// them.
inline constexpr uint64_t kSharedAperture = 0x0001000000000000;
inline constexpr uint64_t kPrivateAperture = 0x0002000000000000;

class Memory {
 public:
  std::vector<Range> ranges;
  // With no registered buffer nothing is known about the process's memory, so everything but null
  // is let through.
  bool checked = false;

  bool allows(uint64_t address, uint64_t bytes, bool write) const {
    if (!checked) return address >= 4096;
    if (last_ < ranges.size() && inside(ranges[last_], address, bytes, write)) return true;
    for (size_t i = 0; i < ranges.size(); ++i)
      if (inside(ranges[i], address, bytes, write)) {
        last_ = i;
        return true;
      }
    return false;
  }

 private:
  mutable size_t last_ = 0;

  static bool inside(const Range& range, uint64_t address, uint64_t bytes, bool write) {
    return address >= range.base && bytes <= range.bytes &&
           address - range.base <= range.bytes - bytes && (range.writable || !write);
  }
};

}  // namespace emulator
