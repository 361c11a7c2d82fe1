// Runs a kernel: the grid's workgroups one after another, the waves of each in turn.
#pragma once

#include <array>

#include "code_object.h"

namespace emulator {

struct LaunchRequest {
  std::array<uint32_t, 3> grid{}, block{};  // grid counts workgroups
  uint32_t dynamic_lds_bytes = 0;
  uint64_t budget = 0;
  int order = 0;  // 0 first wave first; 1 last wave first, stores of a wave in reverse; else a
                  // seeded interleaving
  std::vector<Range> buffers;
};

struct LaunchReport {
  uint64_t instructions = 0, lds_bytes = 0, global_bytes = 0;
  std::vector<std::pair<std::string, uint64_t>> histogram;
};

// `arguments` is the kernel's argument segment with the explicit arguments in place; hidden ones
// are filled in.
LaunchReport run_kernel(const CodeObject& object, const Kernel& kernel,
                        const LaunchRequest& request, std::vector<uint8_t> arguments);

}  // namespace emulator
