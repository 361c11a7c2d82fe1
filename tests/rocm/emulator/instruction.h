// One decoded instruction: operands, modifiers, and the function that executes it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace emulator {

struct Wave;
struct Instruction;
using Execute = void (*)(Wave&, const Instruction&);

inline constexpr int kLanes = 64;
// Accumulation registers follow the 256 vector registers in one file.
inline constexpr int kFirstAccumulator = 256;

enum class OperandKind : uint8_t { none, vector, scalar, constant, off };

struct Operand {
  OperandKind kind = OperandKind::none;
  uint16_t index = 0;
  uint8_t count = 1;
  bool negate = false, absolute = false, sign_extend = false;
  bool literal = false;
  // An inline constant such as 1.0 means the operand's own width: what each width reads.
  uint16_t constant16 = 0;
  uint32_t constant32 = 0;
  uint64_t constant64 = 0;
};

enum class DppControl : uint8_t {
  none,
  quad_perm,
  row_shl,
  row_shr,
  row_ror,
  wave_shl,
  wave_rol,
  wave_shr,
  wave_ror,
  row_mirror,
  row_half_mirror,
  row_bcast,
  row_newbcast
};

enum class Select : uint8_t { dword, byte0, byte1, byte2, byte3, word0, word1 };
enum class Unused : uint8_t { pad, sign_extend, preserve };

// What an instruction carries beside its operands. A bit says that the text named the modifier.
enum Modifier : uint32_t {
  kClamp = 1 << 0,
  kOutputScale = 1 << 1,
  kOpSel = 1 << 2,
  kNegLoHi = 1 << 3,
  kDpp = 1 << 4,
  kSdwa = 1 << 5,
  kNegate = 1 << 6,
  kOffset = 1 << 7,
  kCacheBits = 1 << 8,
  kFormats = 1 << 9,
  kLds = 1 << 10,
  kIndexing = 1 << 11,
  kTruthTable = 1 << 12,
  kOffsetPair = 1 << 13,
  kReturn = 1 << 14,
};

struct Modifiers {
  uint32_t present = 0;
  bool clamp = false;
  float output_scale = 1.0f;
  std::array<uint8_t, 4> op_sel{}, op_sel_hi{1, 1, 1, 1}, neg_lo{}, neg_hi{};
  int64_t offset = 0;
  int offset0 = 0, offset1 = 0;
  int cbsz = 0, abid = 0, blgp = 0;
  bool offset_enable = false, index_enable = false, sc0 = false;
  uint8_t truth_table = 0;
  DppControl dpp = DppControl::none;
  std::array<uint8_t, 4> quad{};
  int dpp_amount = 0, row_mask = 0xf, bank_mask = 0xf;
  bool bound_control = false;
  Select destination_select = Select::dword;
  std::array<Select, 2> source_select{Select::dword, Select::dword};
  Unused destination_unused = Unused::pad;
};

struct Instruction {
  Execute execute = nullptr;
  std::array<Operand, 2> destination{};
  std::array<Operand, 6> source{};
  uint8_t destinations = 0, sources = 0;
  bool vector_alu = false;     // VGPR indexing displaces it
  bool vector_memory = false;  // vmcnt counts it
  bool reads_m0 = false;       // as the place in LDS that it loads to
  Modifiers modifiers;
  const void* detail = nullptr;
  int32_t target = -1;     // branches: index of the instruction they go to
  uint16_t immediate = 0;  // the low half of the first word
  uint64_t address = 0, next_address = 0;
  uint32_t name = 0;    // index into the program's mnemonics
  std::string problem;  // why it cannot be executed; empty when it can
};

// What the text of one line says, before a meaning is attached.
struct Line {
  std::string mnemonic, text;
  std::vector<std::string> operands, modifiers;
  uint64_t address = 0;
  int words = 0;
  int16_t immediate = 0;  // the low half of the first word: a branch's distance in words
};

}  // namespace emulator
