// Matrix instructions: D = A * B + C over one wave (ISA documents, "Matrix Arithmetic
// Instructions").
//
// A is M rows of K elements, B is N columns of K elements, M = N = 16 or 32; lane l brings row
// (column) l % M. Products are exact and summed in double with one rounding to float32 at the end:
// the hardware rounds on its way, in an order that the documents do not promise. Denormals are
// kept, as on gfx942 and later. EXEC is ignored.
#include "vector.h"

namespace emulator {

namespace {

enum class Element : uint8_t { f32, f16, bf16, fp8, bf8, fp4, i8 };

constexpr int bits_of_element(Element element) {
  switch (element) {
    case Element::f32:
      return 32;
    case Element::f16:
    case Element::bf16:
      return 16;
    case Element::fp8:
    case Element::bf8:
    case Element::i8:
      return 8;
    case Element::fp4:
      return 4;
  }
  return 0;
}

// Tables of the narrow formats: a matrix operand is decoded by lookup.
const float* narrow_table(Element element, bool ocp) {
  struct Tables {
    float fp8[2][256], bf8[2][256], fp4[16];
    Tables() {
      for (uint32_t code = 0; code < 256; ++code) {
        fp8[0][code] = decode(kE4m3Fnuz, code), fp8[1][code] = decode(kE4m3, code);
        bf8[0][code] = decode(kE5m2Fnuz, code), bf8[1][code] = decode(kE5m2, code);
        if (code < 16) fp4[code] = decode(kE2m1, code);
      }
    }
  };
  static const Tables tables;
  return element == Element::fp8   ? tables.fp8[ocp]
         : element == Element::bf8 ? tables.bf8[ocp]
                                   : tables.fp4;
}

template <Element kElement>
float element_value(uint32_t word, int position, const float* table) {
  constexpr int kBits = bits_of_element(kElement);
  if constexpr (kElement == Element::f32) return float_of(word);
  const uint32_t code = word >> kBits * position & (kBits == 32 ? ~0u : (1u << (kBits & 31)) - 1);
  if constexpr (kElement == Element::f16) return half_to_float(uint16_t(code));
  if constexpr (kElement == Element::bf16) return bf16_to_float(uint16_t(code));
  if constexpr (kElement == Element::i8) return float(int8_t(code));
  return table[code];
}

// What a mnemonic says. `elements` is how many of K a lane brings.
struct Shape {
  int rows, depth;
  Element a, b;
  bool integer = false;
};

// The K index of a lane's element. A lane brings consecutive elements; eight-bit operands of the
// f8f6f4 instructions come as two stripes of sixteen, half of K apart.
int depth_index(int rows, int depth, int lane, int element, bool striped) {
  const int block = lane / rows;
  if (striped) return element / 16 * (depth / 2) + block * 16 + element % 16;
  return block * (depth * rows / kLanes) + element;
}

// [k][row], decoded.
using Decoded = double[128][32];

template <Element kElement>
void read_elements(Wave& wave, const Operand& operand, int rows, int depth, bool striped,
                   Decoded& out) {
  const float* table = narrow_table(kElement, wave.ocp());
  constexpr int kPerWord = 32 / bits_of_element(kElement);
  const int per_lane = depth * rows / kLanes;
  for (int word = 0; word < per_lane / kPerWord; ++word)
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t packed = wave.v[operand.index + word][lane];
      for (int i = 0; i < kPerWord; ++i)
        out[depth_index(rows, depth, lane, word * kPerWord + i, striped)][lane % rows] =
            double(element_value<kElement>(packed, i, table));
    }
}

void read_matrix(Wave& wave, const Operand& operand, Element element, int rows, int depth,
                 bool striped, Decoded& out) {
  switch (element) {
    case Element::f32:
      return read_elements<Element::f32>(wave, operand, rows, depth, striped, out);
    case Element::f16:
      return read_elements<Element::f16>(wave, operand, rows, depth, striped, out);
    case Element::bf16:
      return read_elements<Element::bf16>(wave, operand, rows, depth, striped, out);
    case Element::fp8:
      return read_elements<Element::fp8>(wave, operand, rows, depth, striped, out);
    case Element::bf8:
      return read_elements<Element::bf8>(wave, operand, rows, depth, striped, out);
    case Element::fp4:
      return read_elements<Element::fp4>(wave, operand, rows, depth, striped, out);
    case Element::i8:
      return read_elements<Element::i8>(wave, operand, rows, depth, striped, out);
  }
}

void apply_scales(Decoded& matrix, const double* scales, int rows, int depth) {
  for (int k = 0; scales && k < depth; ++k)
    for (int row = 0; row < rows; ++row) matrix[k][row] *= scales[row * (depth / 32) + k / 32];
}

// The addend and the destination of row m, column n: which lane, and which of its registers.
int output_lane(int rows, int m, int n) { return rows == 16 ? m / 4 * 16 + n : m / 4 % 2 * 32 + n; }
int output_word(int rows, int m) { return rows == 16 ? m % 4 : m / 8 * 4 + m % 4; }

template <int kRows>
void multiply_rows(Wave& wave, const Instruction& i, const Shape& shape, const Decoded& a,
                   const Decoded& b) {
  const Operand& addend = i.source[2];
  uint32_t out[kRows * kRows / kLanes][kLanes];
  for (int m = 0; m < kRows; ++m) {
    alignas(64) double sums[kRows] = {};
    for (int k = 0; k < shape.depth; ++k)
      for (int n = 0; n < kRows; ++n) sums[n] += a[k][m] * b[k][n];
    const int word = output_word(kRows, m);
    for (int n = 0; n < kRows; ++n) {
      const int lane = output_lane(kRows, m, n);
      const uint32_t c = addend.kind == OperandKind::vector ? wave.v[addend.index + word][lane]
                                                            : addend.constant32;
      out[word][lane] = shape.integer ? uint32_t(int64_t(sums[n])) + c
                                      : bits_of(float(sums[n] + double(float_of(c))));
    }
  }
  for (int word = 0; word < kRows * kRows / kLanes; ++word)
    std::memcpy(wave.v[i.destination[0].index + word], out[word], sizeof out[word]);
}

// scale_a and scale_b hold one factor a row and block of 32 elements; null when the instruction has
// no scales.
void multiply(Wave& wave, const Instruction& i, const Shape& shape, bool striped_a, bool striped_b,
              const double* scale_a, const double* scale_b) {
  alignas(64) Decoded a, b;
  read_matrix(wave, i.source[0], shape.a, shape.rows, shape.depth, striped_a, a);
  read_matrix(wave, i.source[1], shape.b, shape.rows, shape.depth, striped_b, b);
  apply_scales(a, scale_a, shape.rows, shape.depth);
  apply_scales(b, scale_b, shape.rows, shape.depth);
  if (shape.rows == 16)
    multiply_rows<16>(wave, i, shape, a, b);
  else
    multiply_rows<32>(wave, i, shape, a, b);
}

void plain(Wave& wave, const Instruction& i) {
  multiply(wave, i, *static_cast<const Shape*>(i.detail), false, false, nullptr, nullptr);
}

// cbsz and blgp name the formats of A and B: 0 fp8, 1 bf8, 2 and 3 the six-bit ones, 4 fp4.
Element mixed_format(int code) {
  switch (code) {
    case 0:
      return Element::fp8;
    case 1:
      return Element::bf8;
    case 4:
      return Element::fp4;
    default:
      throw Fault(kLaunchFailure,
                  "the six-bit matrix formats (cbsz or blgp 2 and 3) are not emulated");
  }
}

// A lane's scale is the byte that op_sel picks of its scale register: for its row and the block of
// 32 elements whose number is lane / rows. e8m0: a power of two, 255 is NaN.
void read_scales(Wave& wave, const Instruction& i, int which, int rows, int depth, double* out) {
  const int byte = i.modifiers.op_sel[which] + 2 * i.modifiers.op_sel_hi[which];
  const Operand& operand = i.source[3 + which];
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t word = operand.kind == OperandKind::vector   ? wave.v[operand.index][lane]
                          : operand.kind == OperandKind::scalar ? wave.s[operand.index]
                                                                : operand.constant32;
    const int exponent = int(word >> 8 * byte & 0xff);
    out[lane % rows * (depth / 32) + lane / rows] = exponent == 255
                                                        ? std::numeric_limits<double>::quiet_NaN()
                                                        : std::ldexp(1.0, exponent - 127);
  }
}

template <bool kScaled>
void mixed(Wave& wave, const Instruction& i) {
  Shape shape = *static_cast<const Shape*>(i.detail);
  shape.a = mixed_format(i.modifiers.cbsz);
  shape.b = mixed_format(i.modifiers.blgp);
  double scale_a[32 * 4], scale_b[32 * 4];
  if (kScaled) {
    read_scales(wave, i, 0, shape.rows, shape.depth, scale_a);
    read_scales(wave, i, 1, shape.rows, shape.depth, scale_b);
  }
  multiply(wave, i, shape, shape.a != Element::fp4, shape.b != Element::fp4,
           kScaled ? scale_a : nullptr, kScaled ? scale_b : nullptr);
}

}  // namespace

void add_matrix(Table& t) {
  struct Named {
    const char* name;
    Shape shape;
  };
  using E = Element;
  static const std::vector<Named> plain_shapes = {
      {"v_mfma_f32_16x16x4_f32", {16, 4, E::f32, E::f32}},
      {"v_mfma_f32_32x32x2_f32", {32, 2, E::f32, E::f32}},
      {"v_mfma_f32_16x16x16_f16", {16, 16, E::f16, E::f16}},
      {"v_mfma_f32_32x32x8_f16", {32, 8, E::f16, E::f16}},
      {"v_mfma_f32_16x16x32_f16", {16, 32, E::f16, E::f16}},
      {"v_mfma_f32_32x32x16_f16", {32, 16, E::f16, E::f16}},
      {"v_mfma_f32_16x16x16_bf16", {16, 16, E::bf16, E::bf16}},
      {"v_mfma_f32_32x32x8_bf16", {32, 8, E::bf16, E::bf16}},
      {"v_mfma_f32_16x16x32_bf16", {16, 32, E::bf16, E::bf16}},
      {"v_mfma_f32_32x32x16_bf16", {32, 16, E::bf16, E::bf16}},
      {"v_mfma_f32_16x16x32_fp8_fp8", {16, 32, E::fp8, E::fp8}},
      {"v_mfma_f32_16x16x32_fp8_bf8", {16, 32, E::fp8, E::bf8}},
      {"v_mfma_f32_16x16x32_bf8_fp8", {16, 32, E::bf8, E::fp8}},
      {"v_mfma_f32_16x16x32_bf8_bf8", {16, 32, E::bf8, E::bf8}},
      {"v_mfma_f32_32x32x16_fp8_fp8", {32, 16, E::fp8, E::fp8}},
      {"v_mfma_f32_32x32x16_fp8_bf8", {32, 16, E::fp8, E::bf8}},
      {"v_mfma_f32_32x32x16_bf8_fp8", {32, 16, E::bf8, E::fp8}},
      {"v_mfma_f32_32x32x16_bf8_bf8", {32, 16, E::bf8, E::bf8}},
      {"v_mfma_i32_16x16x32_i8", {16, 32, E::i8, E::i8, true}},
      {"v_mfma_i32_32x32x16_i8", {32, 16, E::i8, E::i8, true}},
      {"v_mfma_i32_16x16x64_i8", {16, 64, E::i8, E::i8, true}},
      {"v_mfma_i32_32x32x32_i8", {32, 32, E::i8, E::i8, true}}};
  static const Shape mixed16{16, 128, E::fp8, E::fp8}, mixed32{32, 64, E::fp8, E::fp8};
  // Negation, broadcast (cbsz, abid) and lane patterns (blgp) of the plain ones are refused with
  // the modifier.
  for (const Named& named : plain_shapes)
    t[named.name] = {plain, 1, 3, 0, false, false, &named.shape};
  t["v_mfma_f32_16x16x128_f8f6f4"] = {mixed<false>, 1, 3, kFormats, false, false, &mixed16};
  t["v_mfma_f32_32x32x64_f8f6f4"] = {mixed<false>, 1, 3, kFormats, false, false, &mixed32};
  t["v_mfma_scale_f32_16x16x128_f8f6f4"] = {mixed<true>, 1,     5,       kFormats | kOpSel,
                                            false,       false, &mixed16};
  t["v_mfma_scale_f32_32x32x64_f8f6f4"] = {mixed<true>, 1,     5,       kFormats | kOpSel,
                                           false,       false, &mixed32};
}

}  // namespace emulator
