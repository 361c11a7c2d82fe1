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

int bits_of_element(Element element) {
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

float element_value(Element element, uint32_t word, int position, const float* table) {
  const int bits = bits_of_element(element);
  const uint32_t code = bits == 32 ? word : word >> bits * position & ((1u << bits) - 1);
  switch (element) {
    case Element::f32:
      return float_of(code);
    case Element::f16:
      return half_to_float(uint16_t(code));
    case Element::bf16:
      return bf16_to_float(uint16_t(code));
    case Element::i8:
      return float(int8_t(code));
    default:
      return table[code];
  }
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

// [row][k], decoded to float.
void read_matrix(Wave& wave, const Operand& operand, Element element, int rows, int depth,
                 bool striped, float* out) {
  const float* table = narrow_table(element, wave.ocp());
  const int per_lane = depth * rows / kLanes, per_word = 32 / bits_of_element(element);
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < per_lane; ++i) {
      const uint32_t word = wave.v[operand.index + i / per_word][lane];
      out[lane % rows * depth + depth_index(rows, depth, lane, i, striped)] =
          element_value(element, word, i % per_word, table);
    }
}

// scale_a and scale_b hold one factor a row and block of 32 elements; null when the instruction has
// no scales.
void multiply(Wave& wave, const Instruction& i, const Shape& shape, bool striped_a, bool striped_b,
              const double* scale_a, const double* scale_b) {
  const int rows = shape.rows, depth = shape.depth, outputs = rows * rows / kLanes;
  alignas(64) float a[32 * 128], b[32 * 128];
  alignas(64) double columns[128][32], sums[32];
  read_matrix(wave, i.source[0], shape.a, rows, depth, striped_a, a);
  read_matrix(wave, i.source[1], shape.b, rows, depth, striped_b, b);
  for (int k = 0; k < depth; ++k)
    for (int n = 0; n < rows; ++n)
      columns[k][n] =
          double(b[n * depth + k]) * (scale_b ? scale_b[n * (depth / 32) + k / 32] : 1.0);
  const Operand& addend = i.source[2];
  uint32_t out[16][kLanes];
  for (int m = 0; m < rows; ++m) {
    std::fill_n(sums, rows, 0.0);
    for (int k = 0; k < depth; ++k) {
      const double factor =
          double(a[m * depth + k]) * (scale_a ? scale_a[m * (depth / 32) + k / 32] : 1.0);
      for (int n = 0; n < rows; ++n) sums[n] += factor * columns[k][n];
    }
    for (int n = 0; n < rows; ++n) {
      // Which lane and register hold row m, column n.
      const int lane = rows == 16 ? m / 4 * 16 + n : m / 4 % 2 * 32 + n;
      const int word = rows == 16 ? m % 4 : m / 8 * 4 + m % 4;
      const uint32_t c = addend.kind == OperandKind::vector ? wave.v[addend.index + word][lane]
                                                            : addend.constant32;
      out[word][lane] = shape.integer ? uint32_t(int64_t(sums[n])) + c
                                      : bits_of(float(sums[n] + double(float_of(c))));
    }
  }
  for (int word = 0; word < outputs; ++word)
    std::memcpy(wave.v[i.destination[0].index + word], out[word], sizeof out[word]);
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
