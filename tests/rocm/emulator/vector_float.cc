// Floating point vector instructions of 16 and 32 bits.
//
// The transcendental ones (exp, log, rcp, rsq, sqrt, sin, cos) are computed in double and rounded
// once; the ISA documents promise 1 ulp for the hardware, so its last bit may differ. In 32 bits
// they do not handle denormals: a denormal operand or result is a zero of its sign.
#include "vector.h"

namespace emulator {

namespace {

using u32 = uint32_t;
using i32 = int32_t;

float flush(float value) {
  return std::fabs(value) < std::numeric_limits<float>::min() ? std::copysign(0.0f, value) : value;
}
// A result is flushed before it is rounded: what rounds up to the smallest normal number is flushed
// as well.
float rounded(double value) {
  if (std::fabs(value) < double(std::numeric_limits<float>::min()))
    return std::copysign(0.0f, float(std::copysign(1.0, value)));
  return float(value);
}

constexpr double kTurn = 6.283185307179586476925286766559;

template <class T>
T frexp_mantissa(T value) {
  int exponent;
  return std::isfinite(value) ? std::frexp(value, &exponent) : value;
}
template <class T>
int32_t frexp_exponent(T value) {
  int exponent = 0;
  if (std::isfinite(value)) (void)std::frexp(value, &exponent);
  return exponent;
}

// The steps that the compiler's expansion of a division relies on (ISA documents, V_DIV_SCALE,
// V_DIV_FMAS and V_DIV_FIXUP). Exponents are the biased fields.
template <class T>
struct Parts;
template <>
struct Parts<float> {
  static int exponent(float x) { return int(bits_of(x) >> 23 & 0xff); }
  static constexpr int near_overflow = 96, tiny = 23, scale = 64, bias = 127, vanishing = -150,
                       overflowing = 130;
};
template <>
struct Parts<double> {
  static int exponent(double x) { return int(std::bit_cast<uint64_t>(x) >> 52 & 0x7ff); }
  static constexpr int near_overflow = 768, tiny = 53, scale = 128, bias = 1023, vanishing = -1075,
                       overflowing = 1026;
};

template <class T>
bool is_denormal(T value) {
  return value != 0 && std::fabs(value) < std::numeric_limits<T>::min();
}

template <class T>
T div_scaled(T s0, T denominator, T numerator, bool& flag) {
  using P = Parts<T>;
  flag = false;
  if (numerator == 0 || denominator == 0) return std::numeric_limits<T>::quiet_NaN();
  const bool tiny_reciprocal = is_denormal(T(1) / denominator) && std::isfinite(denominator);
  const bool tiny_quotient = is_denormal(numerator / denominator);
  if (P::exponent(numerator) - P::exponent(denominator) >= P::near_overflow) {
    flag = true;
    return s0 == denominator ? std::ldexp(s0, P::scale) : s0;
  }
  if (is_denormal(denominator)) return std::ldexp(s0, P::scale);
  // The documents print the other sign here, which would overflow the denominator.
  if (tiny_reciprocal && tiny_quotient) {
    flag = true;
    return s0 == denominator ? std::ldexp(s0, -P::scale) : s0;
  }
  if (tiny_reciprocal) return std::ldexp(s0, -P::scale);
  if (tiny_quotient) {
    flag = true;
    return s0 == numerator ? std::ldexp(s0, P::scale) : s0;
  }
  if (P::exponent(numerator) <= P::tiny) return std::ldexp(s0, P::scale);
  return s0;
}

template <class T>
void div_scale(Wave& wave, const Instruction& instruction) {
  T buffers[3][kLanes], out[kLanes];
  const T* in[3];
  for (int k = 0; k < 3; ++k) in[k] = fetch<T>(wave, instruction, k, buffers[k]);
  uint64_t flags = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    bool flag;
    out[lane] = div_scaled(in[0][lane], in[1][lane], in[2][lane], flag);
    flags |= uint64_t(flag) << lane;
  }
  finish(wave, instruction, out);
  wave.set_pair(instruction.destination[1].index, flags & wave.exec());
}

template <class T>
void div_fmas(Wave& wave, const Instruction& instruction) {
  T buffers[3][kLanes], out[kLanes];
  const T* in[3];
  for (int k = 0; k < 3; ++k) in[k] = fetch<T>(wave, instruction, k, buffers[k]);
  const uint64_t scaled = wave.vcc();
  for (int lane = 0; lane < kLanes; ++lane) {
    const T value = std::fma(in[0][lane], in[1][lane], in[2][lane]);
    // Undoes V_DIV_SCALE: the scaled quotient in S2 tells which way it went.
    const int scale =
        Parts<T>::exponent(in[2][lane]) > Parts<T>::bias ? Parts<T>::scale : -Parts<T>::scale;
    out[lane] = scaled >> lane & 1 ? std::ldexp(value, scale) : value;
  }
  finish(wave, instruction, out);
}

template <class T>
T div_fixed(T quotient, T denominator, T numerator) {
  using P = Parts<T>;
  const T sign = std::signbit(denominator) != std::signbit(numerator) ? T(-1) : T(1);
  const T infinity = std::numeric_limits<T>::infinity();
  if (numerator != numerator) return numerator + numerator;
  if (denominator != denominator) return denominator + denominator;
  if (denominator == 0 && numerator == 0) return -std::numeric_limits<T>::quiet_NaN();
  if (std::isinf(denominator) && std::isinf(numerator)) return -std::numeric_limits<T>::quiet_NaN();
  if (denominator == 0 || std::isinf(numerator)) return sign * infinity;
  if (std::isinf(denominator) || numerator == 0) return sign * T(0);
  if (P::exponent(numerator) - P::exponent(denominator) < P::vanishing) return sign * T(0);
  // The documents' own test for overflow names an exponent that was handled above. Quotients past
  // the largest number overflow the scaled steps, so the exponents decide.
  if (P::exponent(numerator) - P::exponent(denominator) >= P::overflowing) return sign * infinity;
  return sign * std::fabs(quotient);
}

// A half's quotient needs no scaling: only the special cases are put right. Widened, no exponent
// reaches the limits.
Half div_fixed_half(Half quotient, Half denominator, Half numerator) {
  return Half(div_fixed(float(quotient), float(denominator), float(numerator)));
}

float log2_of(float a) { return rounded(std::log2(double(flush(a)))); }

}  // namespace

void add_vector_float(Table& t) {
  t["v_add_f32"] = vector_op([](float a, float b) { return a + b; });
  t["v_sub_f32"] = vector_op([](float a, float b) { return a - b; });
  t["v_subrev_f32"] = vector_op([](float a, float b) { return b - a; });
  t["v_mul_f32"] = vector_op([](float a, float b) { return a * b; });
  t["v_mul_legacy_f32"] =
      vector_op([](float a, float b) { return a == 0 || b == 0 ? 0.0f : a * b; });
  t["v_fma_f32"] = vector_op([](float a, float b, float c) { return __builtin_fmaf(a, b, c); });
  t["v_fmac_f32"] =
      accumulating_op([](float a, float b, float d) { return __builtin_fmaf(a, b, d); });
  t["v_fmamk_f32"] = vector_op([](float a, float k, float b) { return __builtin_fmaf(a, k, b); });
  t["v_fmaak_f32"] = vector_op([](float a, float b, float k) { return __builtin_fmaf(a, b, k); });
  t["v_min_f32"] = vector_op([](float a, float b) { return minimum_number(a, b); });
  t["v_max_f32"] = vector_op([](float a, float b) { return maximum_number(a, b); });
  t["v_min3_f32"] =
      vector_op([](float a, float b, float c) { return minimum_number(minimum_number(a, b), c); });
  t["v_max3_f32"] =
      vector_op([](float a, float b, float c) { return maximum_number(maximum_number(a, b), c); });
  t["v_med3_f32"] = vector_op([](float a, float b, float c) { return median_number(a, b, c); });
  t["v_minimum3_f32"] =
      vector_op([](float a, float b, float c) { return minimum(minimum(a, b), c); });
  t["v_maximum3_f32"] =
      vector_op([](float a, float b, float c) { return maximum(maximum(a, b), c); });
  t["v_trunc_f32"] = vector_op([](float a) { return std::trunc(a); });
  t["v_ceil_f32"] = vector_op([](float a) { return std::ceil(a); });
  t["v_floor_f32"] = vector_op([](float a) { return std::floor(a); });
  t["v_rndne_f32"] = vector_op([](float a) { return std::nearbyint(a); });
  t["v_fract_f32"] = vector_op([](float a) { return std::min(a - std::floor(a), 0x1.fffffep-1f); });
  t["v_ldexp_f32"] = vector_op(
      [](float a, i32 b) { return float(std::ldexp(double(a), std::clamp(b, -600, 600))); });
  t["v_frexp_mant_f32"] = vector_op([](float a) { return frexp_mantissa(a); });
  t["v_frexp_exp_i32_f32"] = vector_op([](float a) { return frexp_exponent(a); });
  t["v_exp_f32"] = vector_op([](float a) { return rounded(std::exp2(double(flush(a)))); });
  t["v_log_f32"] = vector_op([](float a) { return log2_of(a); });
  t["v_rcp_f32"] = vector_op([](float a) { return rounded(1.0 / double(flush(a))); });
  t["v_rcp_iflag_f32"] = t["v_rcp_f32"];
  t["v_rsq_f32"] = vector_op([](float a) { return rounded(1.0 / std::sqrt(double(flush(a)))); });
  t["v_sqrt_f32"] = vector_op([](float a) { return rounded(std::sqrt(double(flush(a)))); });
  // The operand is a number of turns; beyond 256 of them the documents promise no more than the
  // range's ends.
  t["v_sin_f32"] = vector_op([](float a) {
    return std::fabs(a) > 256 && std::isfinite(a)
               ? 0.0f
               : rounded(std::sin(std::remainder(double(flush(a)), 1.0) * kTurn));
  });
  t["v_cos_f32"] = vector_op([](float a) {
    return std::fabs(a) > 256 && std::isfinite(a)
               ? 1.0f
               : rounded(std::cos(std::remainder(double(flush(a)), 1.0) * kTurn));
  });
  for (const auto& [name, run] :
       {std::pair{"v_div_scale_f32", &div_scale<float>}, {"v_div_scale_f64", &div_scale<double>}})
    t[name] = {run, 2, 3, kNegate};
  for (const auto& [name, run] :
       {std::pair{"v_div_fmas_f32", &div_fmas<float>}, {"v_div_fmas_f64", &div_fmas<double>}})
    t[name] = {run, 1, 3, kNegate};
  t["v_div_fixup_f32"] = vector_op([](float a, float b, float c) { return div_fixed(a, b, c); });
  t["v_div_fixup_f16"] = vector_op([](Half a, Half b, Half c) { return div_fixed_half(a, b, c); });
  t["v_div_fixup_f64"] = vector_op([](double a, double b, double c) { return div_fixed(a, b, c); });

  t["v_add_f16"] = vector_op([](Half a, Half b) { return Half(float(a) + float(b)); });
  t["v_sub_f16"] = vector_op([](Half a, Half b) { return Half(float(a) - float(b)); });
  t["v_subrev_f16"] = vector_op([](Half a, Half b) { return Half(float(b) - float(a)); });
  t["v_mul_f16"] = vector_op([](Half a, Half b) { return Half(float(a) * float(b)); });
  t["v_min_f16"] =
      vector_op([](Half a, Half b) { return Half(minimum_number(float(a), float(b))); });
  t["v_max_f16"] =
      vector_op([](Half a, Half b) { return Half(maximum_number(float(a), float(b))); });
  t["v_rcp_f16"] = vector_op([](Half a) { return Half(1.0 / double(float(a))); });
  t["v_sqrt_f16"] = vector_op([](Half a) { return Half(std::sqrt(double(float(a)))); });
  t["v_rsq_f16"] = vector_op([](Half a) { return Half(1.0 / std::sqrt(double(float(a)))); });
  t["v_exp_f16"] = vector_op([](Half a) { return Half(std::exp2(double(float(a)))); });
  t["v_log_f16"] = vector_op([](Half a) { return Half(std::log2(double(float(a)))); });

  t["v_add_f64"] = vector_op([](double a, double b) { return a + b; });
  t["v_mul_f64"] = vector_op([](double a, double b) { return a * b; });
  t["v_fma_f64"] = vector_op([](double a, double b, double c) { return __builtin_fma(a, b, c); });
  t["v_fmac_f64"] =
      accumulating_op([](double a, double b, double d) { return __builtin_fma(a, b, d); });
  t["v_min_f64"] = vector_op([](double a, double b) { return minimum_number(a, b); });
  t["v_max_f64"] = vector_op([](double a, double b) { return maximum_number(a, b); });
  t["v_rcp_f64"] = vector_op([](double a) { return 1.0 / a; });
  t["v_rsq_f64"] = vector_op([](double a) { return 1.0 / std::sqrt(a); });
  t["v_sqrt_f64"] = vector_op([](double a) { return std::sqrt(a); });
  t["v_ldexp_f64"] =
      vector_op([](double a, i32 b) { return std::ldexp(a, std::clamp(b, -5000, 5000)); });
  t["v_floor_f64"] = vector_op([](double a) { return std::floor(a); });
  t["v_trunc_f64"] = vector_op([](double a) { return std::trunc(a); });
  t["v_ceil_f64"] = vector_op([](double a) { return std::ceil(a); });
  t["v_rndne_f64"] = vector_op([](double a) { return std::nearbyint(a); });
  t["v_fract_f64"] =
      vector_op([](double a) { return std::min(a - std::floor(a), 0x1.fffffffffffffp-1); });
  t["v_frexp_mant_f64"] = vector_op([](double a) { return frexp_mantissa(a); });
  t["v_frexp_exp_i32_f64"] = vector_op([](double a) { return frexp_exponent(a); });
}

}  // namespace emulator
