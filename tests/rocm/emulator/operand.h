// The words of an operand and of a modifier; std::invalid_argument names one that is not known.
#pragma once

#include <string>

#include "instruction.h"

namespace emulator {

Operand parse_operand(const std::string& text);
// `sources` tells op_sel's entry for the destination from those of the sources.
void parse_modifier(Modifiers& modifiers, const std::string& text, int sources);

}  // namespace emulator
