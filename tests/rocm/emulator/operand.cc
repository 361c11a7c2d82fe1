// The words of an operand and of a modifier.
#include "operand.h"

#include <cstdlib>
#include <stdexcept>

#include "machine.h"
#include "numerics.h"

namespace emulator {

namespace {

bool starts_with(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

bool register_range(const std::string& text, const char* prefix, int& index, int& count) {
  const size_t skip = std::string(prefix).size();
  if (!starts_with(text, prefix) || text.size() == skip) return false;
  const char* at = text.c_str() + skip;
  char* end;
  if (*at == '[') {
    index = int(std::strtol(at + 1, &end, 10));
    int last = index;
    if (*end == ':') last = int(std::strtol(end + 1, &end, 10));
    count = last - index + 1;
    return *end == ']' && end[1] == 0;
  }
  if (*at < '0' || *at > '9') return false;
  index = int(std::strtol(at, &end, 10));
  count = 1;
  return *end == 0;
}

bool named_scalar(const std::string& text, int& index, int& count) {
  static const struct {
    const char* name;
    int index, count;
  } names[] = {{"vcc", kVcc, 2},
               {"vcc_lo", kVcc, 1},
               {"vcc_hi", kVcc + 1, 1},
               {"exec", kExec, 2},
               {"exec_lo", kExec, 1},
               {"exec_hi", kExec + 1, 1},
               {"m0", kM0, 1},
               {"flat_scratch", kFlatScratch, 2},
               {"flat_scratch_lo", kFlatScratch, 1},
               {"flat_scratch_hi", kFlatScratch + 1, 1},
               {"xnack_mask", kXnackMask, 2}};
  for (const auto& known : names)
    if (text == known.name) {
      index = known.index, count = known.count;
      return true;
    }
  return false;
}

void set_integer(Operand& operand, int64_t value, bool literal) {
  operand.kind = OperandKind::constant;
  operand.literal = literal;
  operand.constant16 = uint16_t(value);
  operand.constant32 = uint32_t(value);
  operand.constant64 = literal ? uint64_t(uint32_t(value)) : uint64_t(value);
}

void set_real(Operand& operand, double value) {
  operand.kind = OperandKind::constant;
  operand.constant16 = float_to_half(float(value));
  operand.constant32 = bits_of(float(value));
  operand.constant64 = std::bit_cast<uint64_t>(value);
  // 1 / (2 pi) is printed with eight digits; its three encodings are named in the ISA documents.
  if (std::fabs(value) > 0.159 && std::fabs(value) < 0.1592) {
    operand.constant16 = uint16_t(0x3118), operand.constant32 = 0x3e22f983,
    operand.constant64 = 0x3fc45f306dc9c882;
    if (value < 0) operand.negate = !operand.negate;
  }
}

int hardware_register(const std::string& text) {
  // hwreg(HW_REG_MODE), hwreg(HW_REG_MODE, offset, size)
  const size_t comma = text.find(',');
  const std::string name =
      text.substr(6, (comma == std::string::npos ? text.size() - 1 : comma) - 6);
  const int id = name == "HW_REG_MODE" ? 1 : 0;
  int offset = 0, size = 32;
  if (comma != std::string::npos) {
    char* end;
    offset = int(std::strtol(text.c_str() + comma + 1, &end, 10));
    size = int(std::strtol(end + 1, nullptr, 10));
  }
  return id | offset << 6 | (size - 1) << 11;
}

}  // namespace

Operand parse_operand(const std::string& given) {
  Operand operand;
  std::string text = given;
  const auto unwrap = [&](const char* open) {
    if (!starts_with(text, open) || text.back() != ')') return false;
    const size_t skip = std::string(open).size();
    text = text.substr(skip, text.size() - skip - 1);
    return true;
  };
  // A literal that could have been an inline constant.
  const bool spelled_literal = unwrap("lit(");
  if (unwrap("sext(")) operand.sign_extend = true;
  if (unwrap("neg(")) operand.negate = true;
  if (unwrap("abs(")) operand.absolute = true;
  const bool number_follows =
      text.size() > 1 && (text[1] == '.' || (text[1] >= '0' && text[1] <= '9'));
  if (text.size() > 1 && text[0] == '-' && !number_follows)
    operand.negate = true, text = text.substr(1);
  if (text.size() > 2 && text[0] == '|' && text.back() == '|')
    operand.absolute = true, text = text.substr(1, text.size() - 2);

  int index, count;
  if (register_range(text, "v", index, count) || register_range(text, "a", index, count)) {
    operand.kind = OperandKind::vector;
    operand.index = uint16_t(index + (text[0] == 'a' ? kFirstAccumulator : 0));
    operand.count = uint8_t(count);
    return operand;
  }
  if (register_range(text, "ttmp", index, count)) {
    operand.kind = OperandKind::scalar, operand.index = uint16_t(kTtmp + index),
    operand.count = uint8_t(count);
    return operand;
  }
  if (register_range(text, "s", index, count) || named_scalar(text, index, count)) {
    operand.kind = OperandKind::scalar, operand.index = uint16_t(index),
    operand.count = uint8_t(count);
    return operand;
  }
  if (text == "off" || text == "null") {
    operand.kind = OperandKind::off;
    return operand;
  }
  if (text == "src_shared_base" || text == "src_private_base") {
    operand.kind = OperandKind::constant;
    operand.constant64 = text == "src_shared_base" ? kSharedAperture : kPrivateAperture;
    operand.constant32 = uint32_t(operand.constant64 >> 32);
    return operand;
  }
  if (starts_with(text, "gpr_idx(")) {
    static const char* const names[] = {"SRC0", "SRC1", "SRC2", "DST"};
    int bits = 0;
    for (int i = 0; i < 4; ++i)
      if (text.find(names[i]) != std::string::npos) bits |= 1 << i;
    set_integer(operand, bits, false);
    return operand;
  }
  if (starts_with(text, "hwreg(")) {
    set_integer(operand, hardware_register(text), false);
    return operand;
  }
  char* end;
  if (text.find('.') != std::string::npos && !starts_with(text, "0x")) {
    const double value = std::strtod(text.c_str(), &end);
    if (*end == 0) {
      set_real(operand, value);
      return operand;
    }
  } else {
    const bool literal = spelled_literal || starts_with(text, "0x") || starts_with(text, "-0x");
    const int64_t value = int64_t(std::strtoll(text.c_str(), &end, 0));
    if (end != text.c_str() && *end == 0) {
      set_integer(operand, value, literal);
      return operand;
    }
  }
  throw std::invalid_argument("operand '" + given + "' is not known");
}

namespace {

std::vector<int> numbers_in(const std::string& text) {
  std::vector<int> out;
  for (const char* at = text.c_str(); *at;) {
    if ((*at >= '0' && *at <= '9') || *at == '-') {
      char* end;
      out.push_back(int(std::strtol(at, &end, 0)));
      at = end;
    } else {
      ++at;
    }
  }
  return out;
}

Select parse_select(const std::string& text) {
  static const char* const names[] = {"DWORD",  "BYTE_0", "BYTE_1", "BYTE_2",
                                      "BYTE_3", "WORD_0", "WORD_1"};
  for (int i = 0; i < 7; ++i)
    if (text == names[i]) return Select(i);
  throw std::invalid_argument("selection '" + text + "' is not known");
}

// ds_swizzle_b32's offset, spelled as the pattern that it encodes.
int64_t swizzle_offset(const std::string& text) {
  const std::vector<int> numbers = numbers_in(text);
  if (text.find("QUAD_PERM") != std::string::npos)
    return 0x8000 | numbers[0] | numbers[1] << 2 | numbers[2] << 4 | numbers[3] << 6;
  if (text.find("BITMASK_PERM") != std::string::npos) {
    const size_t quote = text.find('"');
    int and_mask = 0, or_mask = 0, xor_mask = 0;
    for (int i = 0; i < 5; ++i) {
      const char symbol = text.at(quote + 1 + size_t(i));
      const int bit = 16 >> i;
      if (symbol == '1') or_mask |= bit;
      if (symbol == 'p' || symbol == 'i') and_mask |= bit;
      if (symbol == 'i') xor_mask |= bit;
    }
    return and_mask | or_mask << 5 | xor_mask << 10;
  }
  if (text.find("BROADCAST") != std::string::npos) return (32 - numbers[0]) | numbers[1] << 5;
  if (text.find("SWAP") != std::string::npos) return 31 | numbers[0] << 10;
  if (text.find("REVERSE") != std::string::npos) return 31 | (numbers[0] - 1) << 10;
  throw std::invalid_argument("swizzle '" + text + "' is not known");
}

bool parse_dpp(Modifiers& m, const std::string& name, const std::vector<int>& numbers) {
  static const struct {
    const char* name;
    DppControl control;
  } controls[] = {
      {"quad_perm", DppControl::quad_perm},   {"row_shl", DppControl::row_shl},
      {"row_shr", DppControl::row_shr},       {"row_ror", DppControl::row_ror},
      {"wave_shl", DppControl::wave_shl},     {"wave_rol", DppControl::wave_rol},
      {"wave_shr", DppControl::wave_shr},     {"wave_ror", DppControl::wave_ror},
      {"row_mirror", DppControl::row_mirror}, {"row_half_mirror", DppControl::row_half_mirror},
      {"row_bcast", DppControl::row_bcast},   {"row_newbcast", DppControl::row_newbcast}};
  for (const auto& known : controls)
    if (name == known.name) {
      m.dpp = known.control;
      m.present |= kDpp;
      if (known.control == DppControl::quad_perm)
        for (int i = 0; i < 4; ++i) m.quad[size_t(i)] = uint8_t(numbers.at(size_t(i)));
      else if (!numbers.empty())
        m.dpp_amount = numbers[0];
      return true;
    }
  if (name == "row_mask") return m.row_mask = numbers.at(0), true;
  if (name == "bank_mask") return m.bank_mask = numbers.at(0), true;
  if (name == "bound_ctrl") return m.bound_control = true;
  return false;
}

}  // namespace

void parse_modifier(Modifiers& m, const std::string& text, int sources) {
  const size_t colon = text.find(':');
  const std::string name = text.substr(0, colon),
                    value = colon == std::string::npos ? "" : text.substr(colon + 1);
  const std::vector<int> numbers = numbers_in(value);
  const auto bits = [&](std::array<uint8_t, 4>& to) {
    for (size_t i = 0; i < numbers.size() && i < 4; ++i) to[i] = uint8_t(numbers[i]);
  };
  if (name == "offset") {
    m.present |= kOffset;
    m.offset = starts_with(value, "swizzle") ? swizzle_offset(value)
                                             : int64_t(std::strtoll(value.c_str(), nullptr, 0));
  } else if (name == "offset0" || name == "offset1") {
    m.present |= kOffsetPair;
    (name == "offset0" ? m.offset0 : m.offset1) = numbers.at(0);
  } else if (name == "op_sel") {
    m.present |= kOpSel;
    bits(m.op_sel);
    // The entry after the sources' belongs to the destination.
    if (int(numbers.size()) == sources + 1 && sources < 3)
      m.op_sel[3] = m.op_sel[size_t(sources)], m.op_sel[size_t(sources)] = 0;
  } else if (name == "op_sel_hi") {
    m.present |= kOpSel;
    bits(m.op_sel_hi);
  } else if (name == "neg_lo") {
    m.present |= kNegLoHi;
    bits(m.neg_lo);
  } else if (name == "neg_hi") {
    m.present |= kNegLoHi;
    bits(m.neg_hi);
  } else if (name == "clamp") {
    m.present |= kClamp;
    m.clamp = true;
  } else if (name == "mul" || name == "div") {
    m.present |= kOutputScale;
    m.output_scale = name == "mul" ? float(numbers.at(0)) : 1.0f / float(numbers.at(0));
  } else if (name == "sc0") {
    m.present |= kCacheBits;
    m.sc0 = true;
  } else if (name == "sc1" || name == "nt" || name == "glc" || name == "slc") {
    m.present |= kCacheBits;
  } else if (name == "offen" || name == "idxen") {
    m.present |= kIndexing;
    (name == "offen" ? m.offset_enable : m.index_enable) = true;
  } else if (name == "lds") {
    m.present |= kLds;
  } else if (name == "cbsz" || name == "abid" || name == "blgp") {
    m.present |= kFormats;
    (name == "cbsz" ? m.cbsz : name == "abid" ? m.abid : m.blgp) = numbers.at(0);
  } else if (name == "bitop3") {
    m.present |= kTruthTable;
    m.truth_table = uint8_t(numbers.at(0));
  } else if (name == "dst_sel") {
    m.present |= kSdwa;
    m.destination_select = parse_select(value);
  } else if (name == "dst_unused") {
    m.present |= kSdwa;
    m.destination_unused = value == "UNUSED_PRESERVE" ? Unused::preserve
                           : value == "UNUSED_SEXT"   ? Unused::sign_extend
                                                      : Unused::pad;
  } else if (name == "src0_sel" || name == "src1_sel") {
    m.present |= kSdwa;
    m.source_select[name == "src1_sel"] = parse_select(value);
  } else if (!parse_dpp(m, name, numbers)) {
    throw std::invalid_argument("modifier '" + text + "' is not known");
  }
}

}  // namespace emulator
