// Comparisons: one bit a lane into a scalar pair, zero for disabled lanes; the cmpx forms narrow
// EXEC to it too.
#include "vector.h"

namespace emulator {

namespace {

template <class F, bool kNarrowExec>
struct Compare {
  template <class A, class B, bool (F::*)(A, B) const>
  struct Typed {
    static void execute(Wave& wave, const Instruction& instruction) {
      A first[kLanes];
      B second[kLanes];
      const A* a = fetch<A>(wave, instruction, 0, first);
      const B* b = fetch<B>(wave, instruction, 1, second);
      uint64_t result = 0;
      for (int lane = 0; lane < kLanes; ++lane) result |= uint64_t(F{}(a[lane], b[lane])) << lane;
      result &= wave.exec();
      wave.set_pair(instruction.destination[0].index, result);
      if (kNarrowExec) wave.set_pair(kExec, result);
    }
  };
};

template <class T>
auto comparable(T value) {
  if constexpr (std::is_same_v<T, Half>)
    return float(value);
  else if constexpr (is_short<T>)
    return value.bits;
  else
    return value;
}

template <class T, class F>
void add_one(Table& t, const std::string& condition, const std::string& type, F) {
  const auto holds = [](T a, T b) { return F{}(comparable(a), comparable(b)); };
  using Holds = decltype(holds);
  uint32_t allowed = kSdwa;
  if (is_real<T>) allowed |= kNegate;
  if (is_short<T>) allowed |= kOpSel;
  t["v_cmp_" + condition + "_" + type] = {
      &Compare<Holds, false>::template Typed<T, T, &Holds::operator()>::execute, 1, 2, allowed};
  t["v_cmpx_" + condition + "_" + type] = {
      &Compare<Holds, true>::template Typed<T, T, &Holds::operator()>::execute, 1, 2, allowed};
}

template <class T>
void add_type(Table& t, const std::string& type) {
  add_one<T>(t, "lt", type, [](auto a, auto b) { return a < b; });
  add_one<T>(t, "le", type, [](auto a, auto b) { return a <= b; });
  add_one<T>(t, "gt", type, [](auto a, auto b) { return a > b; });
  add_one<T>(t, "ge", type, [](auto a, auto b) { return a >= b; });
  add_one<T>(t, "eq", type, [](auto a, auto b) { return a == b; });
  if constexpr (is_real<T>) {
    // lg is "less or greater", neq its complement's sibling: they part ways on a NaN.
    add_one<T>(t, "lg", type, [](auto a, auto b) { return a < b || a > b; });
    add_one<T>(t, "neq", type, [](auto a, auto b) { return !(a == b); });
    add_one<T>(t, "nlt", type, [](auto a, auto b) { return !(a < b); });
    add_one<T>(t, "nle", type, [](auto a, auto b) { return !(a <= b); });
    add_one<T>(t, "ngt", type, [](auto a, auto b) { return !(a > b); });
    add_one<T>(t, "nge", type, [](auto a, auto b) { return !(a >= b); });
    add_one<T>(t, "nlg", type, [](auto a, auto b) { return !(a < b || a > b); });
    add_one<T>(t, "o", type, [](auto a, auto b) { return a == a && b == b; });
    add_one<T>(t, "u", type, [](auto a, auto b) { return a != a || b != b; });
  } else {
    add_one<T>(t, "ne", type, [](auto a, auto b) { return a != b; });
  }
}

// The ten classes, one bit each: signalling NaN, quiet NaN, -inf, -normal, -denormal, -0, +0,
// +denormal, ...
template <class T>
bool in_class(T value, uint32_t classes) {
  int bit;
  const bool negative = std::signbit(value);
  switch (std::fpclassify(value)) {
    case FP_NAN:
      bit = is_signalling(value) ? 0 : 1;
      break;
    case FP_INFINITE:
      bit = negative ? 2 : 9;
      break;
    case FP_NORMAL:
      bit = negative ? 3 : 8;
      break;
    case FP_SUBNORMAL:
      bit = negative ? 4 : 7;
      break;
    default:
      bit = negative ? 5 : 6;
      break;
  }
  return classes >> bit & 1;
}

template <class T>
void add_class(Table& t, const std::string& type) {
  const auto holds = [](T a, uint32_t b) { return in_class(a, b); };
  using Holds = decltype(holds);
  t["v_cmp_class_" + type] = {
      &Compare<Holds, false>::template Typed<T, uint32_t, &Holds::operator()>::execute, 1, 2,
      kNegate};
  t["v_cmpx_class_" + type] = {
      &Compare<Holds, true>::template Typed<T, uint32_t, &Holds::operator()>::execute, 1, 2,
      kNegate};
}

}  // namespace

void add_compare(Table& t) {
  add_type<float>(t, "f32");
  add_type<double>(t, "f64");
  add_type<Half>(t, "f16");
  add_type<uint32_t>(t, "u32");
  add_type<int32_t>(t, "i32");
  add_type<uint64_t>(t, "u64");
  add_type<int64_t>(t, "i64");
  add_type<U16>(t, "u16");
  add_type<I16>(t, "i16");
  add_class<float>(t, "f32");
  add_class<double>(t, "f64");
}

}  // namespace emulator
