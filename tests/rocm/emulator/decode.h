// From the text of llvm-objdump to instructions.
#pragma once

#include <string>
#include <vector>

#include "machine.h"

namespace emulator {

// Lines of a disassembly, in order. Labels and empty lines are dropped.
std::vector<Line> parse_disassembly(const std::string& text);
// Attaches a meaning to every line; one without a meaning keeps its problem and raises it when
// reached.
Program link_program(const std::vector<Line>& lines);
// Registers that an instruction may name at most: checked against what the kernel declares.
void check_registers(const Program& program, int first, int last, int vector_limit,
                     int accumulator_limit, std::vector<std::string>& problems);

}  // namespace emulator
