// The table of instructions: a mnemonic without its encoding suffix, and what it means.
#pragma once

#include <string>
#include <unordered_map>

#include "instruction.h"

namespace emulator {

struct Meaning {
  Execute execute = nullptr;
  int destinations = 0, sources = 0;
  uint32_t allowed =
      0;  // modifiers that the meaning honours; any other is refused when the kernel is loaded
  bool accumulates = false;      // the destination is read as the last source
  bool operands_free = false;    // no-ops take whatever the text says
  const void* detail = nullptr;  // what one function needs to serve several mnemonics
};

using Table = std::unordered_map<std::string, Meaning>;

void add_scalar(Table&);
void add_flow(Table&);
void add_scalar_memory(Table&);
void add_vector_integer(Table&);
void add_vector_float(Table&);
void add_vector_wide(Table&);
void add_vector_packed(Table&);
void add_compare(Table&);
void add_convert(Table&);
void add_cross_lane(Table&);
void add_lds(Table&);
void add_global(Table&);
void add_matrix(Table&);

const Table& instruction_table();

}  // namespace emulator
