#include "decode.h"

#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <unordered_map>

#include "operand.h"
#include "table.h"

namespace emulator {

namespace {

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t"), last = text.find_last_not_of(" \t");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

// Splits at a separator outside brackets, parentheses, bars and quotes.
std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> out;
  std::string piece;
  int depth = 0;
  bool quoted = false;
  for (const char c : text) {
    if (c == '"') quoted = !quoted;
    if (c == '[' || c == '(') ++depth;
    if (c == ']' || c == ')') --depth;
    if (c == separator && depth == 0 && !quoted) {
      out.push_back(trimmed(piece));
      piece.clear();
    } else {
      piece += c;
    }
  }
  if (!trimmed(piece).empty()) out.push_back(trimmed(piece));
  return out;
}

Line parse_line(const std::string& text, size_t comment) {
  Line line;
  line.text = trimmed(text.substr(0, comment));
  std::istringstream encoding(text.substr(comment + 2));
  std::string address, word;
  encoding >> address;
  line.address = std::strtoull(address.c_str(), nullptr, 16);
  while (encoding >> word && word[0] != '<') {
    if (!line.words) line.immediate = int16_t(std::strtoul(word.c_str(), nullptr, 16) & 0xffff);
    ++line.words;
  }
  const size_t space = line.text.find_first_of(" \t");
  line.mnemonic = line.text.substr(0, space);
  if (space == std::string::npos) return line;
  line.operands = split(trimmed(line.text.substr(space)), ',');
  // Modifiers follow the last operand without a comma.
  if (!line.operands.empty()) {
    std::vector<std::string> words = split(line.operands.back(), ' ');
    line.operands.back() = words.front();
    for (size_t i = 1; i < words.size(); ++i)
      if (!words[i].empty()) line.modifiers.push_back(words[i]);
  }
  return line;
}

std::string without_suffix(const std::string& mnemonic) {
  for (const char* suffix : {"_e64_dpp", "_e32", "_e64", "_dpp", "_sdwa"}) {
    const std::string ending = suffix;
    if (mnemonic.size() > ending.size() &&
        mnemonic.compare(mnemonic.size() - ending.size(), ending.size(), ending) == 0)
      return mnemonic.substr(0, mnemonic.size() - ending.size());
  }
  return mnemonic;
}

bool is_word(const std::string& text) {
  static const char* const words[] = {"offen", "idxen", "lds", "sc0", "sc1", "nt", "gds"};
  for (const char* word : words)
    if (text == word) return true;
  return false;
}

// SOPK's 16-bit constants are signed unless an unsigned comparison reads them.
bool has_signed_short(const std::string& name) {
  return name == "s_movk_i32" || name == "s_addk_i32" || name == "s_mulk_i32" ||
         name == "s_cmovk_i32" ||
         (name.rfind("s_cmpk_", 0) == 0 && name.find("_i32") != std::string::npos);
}

const char* modifier_name(uint32_t bit) {
  static const std::unordered_map<uint32_t, const char*> names = {
      {kClamp, "clamp"},
      {kOutputScale, "an output scale"},
      {kOpSel, "op_sel"},
      {kNegLoHi, "neg_lo or neg_hi"},
      {kDpp, "a DPP control"},
      {kSdwa, "an SDWA selection"},
      {kNegate, "negation or an absolute value"},
      {kOffset, "offset"},
      {kCacheBits, "a cache control"},
      {kFormats, "cbsz, abid or blgp"},
      {kLds, "lds"},
      {kIndexing, "offen or idxen"},
      {kTruthTable, "bitop3"},
      {kOffsetPair, "a pair of offsets"}};
  const auto found = names.find(bit);
  return found == names.end() ? "a modifier" : found->second;
}

// Fills the instruction or throws std::invalid_argument with what is wrong.
void attach_meaning(Instruction& out, const Line& line) {
  std::string name = without_suffix(line.mnemonic);
  std::vector<std::string> operands = line.operands, modifiers = line.modifiers;
  while (!operands.empty() && is_word(operands.back()))
    modifiers.push_back(operands.back()), operands.pop_back();
  for (const std::string& modifier : modifiers)
    if (modifier == "lds" && name.rfind("buffer_load_", 0) == 0)
      name = "buffer_load_lds_" + name.substr(12);

  const auto found = instruction_table().find(name);
  if (found == instruction_table().end()) throw std::invalid_argument("no such instruction here");
  const Meaning& meaning = found->second;
  out.execute = meaning.execute;
  out.detail = meaning.detail;
  out.vector_alu = name.rfind("v_", 0) == 0;
  for (const char* prefix : {"global_", "flat_", "scratch_", "buffer_"})
    out.vector_memory |= name.rfind(prefix, 0) == 0 && !meaning.operands_free;
  out.reads_m0 = name.find("_load_lds_") != std::string::npos;
  out.immediate = uint16_t(line.immediate);
  if (meaning.operands_free) return;

  if (name.rfind("v_fma_mix", 0) == 0 || name.rfind("v_mfma_scale", 0) == 0)
    out.modifiers.op_sel_hi.fill(0);
  for (const std::string& modifier : modifiers)
    parse_modifier(out.modifiers, modifier, meaning.sources);
  int destinations = meaning.destinations;
  if (meaning.allowed & kReturn && out.modifiers.sc0) destinations = 1;

  if (int(operands.size()) != destinations + meaning.sources)
    throw std::invalid_argument(std::to_string(operands.size()) + " operands where " +
                                std::to_string(destinations + meaning.sources) + " are known");
  out.destinations = uint8_t(destinations);
  out.sources = uint8_t(meaning.sources + meaning.accumulates);
  for (int i = 0; i < destinations; ++i)
    out.destination[size_t(i)] = parse_operand(operands[size_t(i)]);
  for (int i = 0; i < meaning.sources; ++i) {
    Operand& source = out.source[size_t(i)];
    source = parse_operand(operands[size_t(destinations + i)]);
    if (has_signed_short(name) && source.kind == OperandKind::constant)
      source.constant32 = uint32_t(int32_t(int16_t(source.constant32)));
    if (source.negate || source.absolute) out.modifiers.present |= kNegate;
  }
  if (meaning.accumulates) out.source[size_t(meaning.sources)] = out.destination[0];

  if (line.mnemonic.find("_sdwa") != std::string::npos) out.modifiers.present |= kSdwa;
  const uint32_t refused = out.modifiers.present & ~meaning.allowed;
  if (refused)
    throw std::invalid_argument(std::string("its form with ") + modifier_name(refused & -refused) +
                                " is not known");
  if (out.modifiers.index_enable) throw std::invalid_argument("indexed buffers are not known");
  if (out.modifiers.abid) throw std::invalid_argument("abid is not known");
}

bool writes_m0(const Instruction& instruction) {
  const Operand& to = instruction.destination[0];
  return instruction.destinations > 0 && to.kind == OperandKind::scalar && to.index == kM0;
}

}  // namespace

std::vector<Line> parse_disassembly(const std::string& text) {
  std::vector<Line> lines;
  std::istringstream stream(text);
  std::string line;
  while (std::getline(stream, line)) {
    const size_t comment = line.find("//");
    if (line.empty() || line[0] != '\t' || comment == std::string::npos) continue;
    lines.push_back(parse_line(line, comment));
  }
  return lines;
}

Program link_program(const std::vector<Line>& lines) {
  Program program;
  if (lines.empty()) return program;
  program.start = lines.front().address;
  const uint64_t end = lines.back().address + 4 * uint64_t(lines.back().words);
  program.index_of_word.assign((end - program.start) / 4, -1);
  for (size_t i = 0; i < lines.size(); ++i)
    program.index_of_word[(lines[i].address - program.start) / 4] = int32_t(i);

  std::unordered_map<std::string, uint32_t> names;
  program.instructions.resize(lines.size());
  for (size_t i = 0; i < lines.size(); ++i) {
    const Line& line = lines[i];
    Instruction& out = program.instructions[i];
    out.address = line.address;
    out.next_address = line.address + 4 * uint64_t(line.words);
    const auto [name, fresh] = names.try_emplace(line.mnemonic, uint32_t(program.mnemonics.size()));
    if (fresh) program.mnemonics.push_back(line.mnemonic);
    out.name = name->second;
    program.texts.push_back(line.text);
    try {
      attach_meaning(out, line);
      if (out.reads_m0 && i > 0 && writes_m0(program.instructions[i - 1]))
        throw std::invalid_argument("one wait state must lie behind the write of M0");
      if (line.mnemonic == "s_branch" || line.mnemonic.rfind("s_cbranch_", 0) == 0) {
        out.target = program.find(out.next_address + uint64_t(4 * int64_t(line.immediate)));
        if (out.target < 0) throw std::invalid_argument("it branches out of the code object");
      }
    } catch (const std::exception& error) {
      out.problem = error.what();
      out.execute = [](Wave&, const Instruction& i) {
        throw Fault(kInvalidDeviceFunction, i.problem);
      };
    }
  }
  return program;
}

void check_registers(const Program& program, int first, int last, int vector_limit,
                     int accumulator_limit, std::vector<std::string>& problems) {
  for (int i = first; i < last; ++i) {
    const Instruction& instruction = program.instructions[size_t(i)];
    const auto check = [&](const Operand& operand) {
      if (operand.kind != OperandKind::vector) return;
      const bool accumulator = operand.index >= kFirstAccumulator;
      const int top = operand.index - (accumulator ? kFirstAccumulator : 0) + operand.count;
      if (top > (accumulator ? accumulator_limit : vector_limit))
        problems.push_back(program.texts[size_t(i)] +
                           ": names a register that the kernel does not declare");
    };
    for (const Operand& operand : instruction.destination) check(operand);
    for (const Operand& operand : instruction.source) check(operand);
  }
}

const Table& instruction_table() {
  static const Table table = [] {
    Table t;
    for (const auto add : {add_scalar, add_flow, add_scalar_memory, add_vector_integer,
                           add_vector_float, add_vector_wide, add_vector_packed, add_compare,
                           add_convert, add_cross_lane, add_lds, add_global, add_matrix})
      add(t);
    return t;
  }();
  return table;
}

}  // namespace emulator
