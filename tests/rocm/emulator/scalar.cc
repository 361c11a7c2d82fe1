// Scalar arithmetic, branches, waits and the scalar memory reads (ISA documents, SOP1, SOP2, SOPC,
// SOPK, SOPP, SMEM).
#include "scalar.h"

namespace emulator {

namespace {

using u32 = uint32_t;
using i32 = int32_t;
using u64 = uint64_t;
using i64 = int64_t;

// What an instruction does to SCC: nothing, "the result is not zero", or what its function says
// itself.
enum class Scc { kept, nonzero, own };

template <class F>
struct Scalars : Scalars<decltype(&F::operator())> {};
template <class F, class R, class... A>
struct Scalars<R (F::*)(Wave&, A...) const> {
  static constexpr int sources = sizeof...(A);
  template <class Function, Scc kScc>
  static void execute(Wave& wave, const Instruction& i) {
    [&]<size_t... K>(std::index_sequence<K...>) {
      const R result = Function{}(wave, read_scalar<A>(wave, i.source[K])...);
      write_scalar<R>(wave, i.destination[0].index, result);
      if (kScc == Scc::nonzero) wave.scc = result != 0;
    }(std::index_sequence_for<A...>{});
  }
  template <class Function>
  static void compare(Wave& wave, const Instruction& i) {
    [&]<size_t... K>(std::index_sequence<K...>) {
      wave.scc = Function{}(wave, read_scalar<A>(wave, i.source[K])...);
    }(std::index_sequence_for<A...>{});
  }
};

template <Scc kScc, class F>
Meaning scalar_op(F) {
  return {&Scalars<F>::template execute<F, kScc>, 1, Scalars<F>::sources};
}
template <class F>
Meaning scalar_compare(F) {
  return {&Scalars<F>::template compare<F>, 0, Scalars<F>::sources};
}

// Bitwise functions of one width.
template <class T>
void add_bitwise(Table& t, const std::string& type) {
  t["s_and_" + type] = scalar_op<Scc::nonzero>([](Wave&, T a, T b) { return T(a & b); });
  t["s_or_" + type] = scalar_op<Scc::nonzero>([](Wave&, T a, T b) { return T(a | b); });
  t["s_xor_" + type] = scalar_op<Scc::nonzero>([](Wave&, T a, T b) { return T(a ^ b); });
  t["s_andn2_" + type] = scalar_op<Scc::nonzero>([](Wave&, T a, T b) { return T(a & ~b); });
  t["s_orn2_" + type] = scalar_op<Scc::nonzero>([](Wave&, T a, T b) { return T(a | ~b); });
  t["s_nand_" + type] = scalar_op<Scc::nonzero>([](Wave&, T a, T b) { return T(~(a & b)); });
  t["s_nor_" + type] = scalar_op<Scc::nonzero>([](Wave&, T a, T b) { return T(~(a | b)); });
  t["s_xnor_" + type] = scalar_op<Scc::nonzero>([](Wave&, T a, T b) { return T(~(a ^ b)); });
  t["s_not_" + type] = scalar_op<Scc::nonzero>([](Wave&, T a) { return T(~a); });
  t["s_mov_" + type] = scalar_op<Scc::kept>([](Wave&, T a) { return a; });
  t["s_cmov_" + type] = {[](Wave& wave, const Instruction& i) {
                           if (wave.scc)
                             write_scalar<T>(wave, i.destination[0].index,
                                             read_scalar<T>(wave, i.source[0]));
                         },
                         1, 1};
  t["s_cselect_" + type] = scalar_op<Scc::kept>([](Wave& w, T a, T b) { return w.scc ? a : b; });
  t["s_brev_" + type] = scalar_op<Scc::kept>([](Wave&, T a) {
    T out = 0;
    for (size_t bit = 0; bit < 8 * sizeof(T); ++bit)
      out |= (a >> bit & 1) << (8 * sizeof(T) - 1 - bit);
    return out;
  });
  t["s_bcnt0_i32_" + type] =
      scalar_op<Scc::nonzero>([](Wave&, T a) { return u32(std::popcount(T(~a))); });
  t["s_bcnt1_i32_" + type] =
      scalar_op<Scc::nonzero>([](Wave&, T a) { return u32(std::popcount(a)); });
  t["s_ff1_i32_" + type] =
      scalar_op<Scc::kept>([](Wave&, T a) { return a ? u32(std::countr_zero(a)) : ~0u; });
  t["s_ff0_i32_" + type] =
      scalar_op<Scc::kept>([](Wave&, T a) { return T(~a) ? u32(std::countr_zero(T(~a))) : ~0u; });
  t["s_bitcmp0_" + type] =
      scalar_compare([](Wave&, T a, u32 b) { return !(a >> b % (8 * sizeof(T)) & 1); });
  t["s_bitcmp1_" + type] =
      scalar_compare([](Wave&, T a, u32 b) { return bool(a >> b % (8 * sizeof(T)) & 1); });
  for (const bool value : {false, true}) {
    const Execute set = value ? Execute([](Wave& wave, const Instruction& i) {
      const T mask = T(1) << read_scalar<u32>(wave, i.source[0]) % (8 * sizeof(T));
      Operand d = i.destination[0];
      d.kind = OperandKind::scalar;
      write_scalar<T>(wave, d.index, read_scalar<T>(wave, d) | mask);
    })
                              : Execute([](Wave& wave, const Instruction& i) {
                                  const T mask =
                                      T(1) << read_scalar<u32>(wave, i.source[0]) % (8 * sizeof(T));
                                  Operand d = i.destination[0];
                                  d.kind = OperandKind::scalar;
                                  write_scalar<T>(wave, d.index, read_scalar<T>(wave, d) & ~mask);
                                });
    t[std::string(value ? "s_bitset1_" : "s_bitset0_") + type] = {set, 1, 1};
  }
}

template <class F>
Meaning save_exec(F) {
  return {[](Wave& wave, const Instruction& i) {
            const u64 operand = read_scalar<u64>(wave, i.source[0]), old = wave.exec();
            write_scalar<u64>(wave, i.destination[0].index, old);
            const u64 now = F{}(operand, old);
            wave.set_pair(kExec, now);
            wave.scc = now != 0;
          },
          1, 1};
}

template <class T>
T field(T value, u32 control) {
  const u32 offset = control & (8 * sizeof(T) - 1), width = control >> 16 & 0x7f;
  if (!width) return 0;
  if (width >= 8 * sizeof(T)) return T(value >> offset);
  const int spare = int(8 * sizeof(T) - width);
  using U = std::make_unsigned_t<T>;
  return T(T(U(value >> offset) << spare) >> spare);
}

template <class T>
void add_compares(Table& t, const std::string& type) {
  t["s_cmp_eq_" + type] = scalar_compare([](Wave&, T a, T b) { return a == b; });
  t["s_cmp_lg_" + type] = scalar_compare([](Wave&, T a, T b) { return a != b; });
  t["s_cmp_gt_" + type] = scalar_compare([](Wave&, T a, T b) { return a > b; });
  t["s_cmp_ge_" + type] = scalar_compare([](Wave&, T a, T b) { return a >= b; });
  t["s_cmp_lt_" + type] = scalar_compare([](Wave&, T a, T b) { return a < b; });
  t["s_cmp_le_" + type] = scalar_compare([](Wave&, T a, T b) { return a <= b; });
  // SOPK's constants are 16 bits: the decoder extends them by the comparison's sign.
  for (const char* what : {"eq", "lg", "gt", "ge", "lt", "le"})
    t["s_cmpk_" + std::string(what) + "_" + type] = t["s_cmp_" + std::string(what) + "_" + type];
}

}  // namespace

void add_scalar(Table& t) {
  add_bitwise<u32>(t, "b32");
  add_bitwise<u64>(t, "b64");
  add_compares<i32>(t, "i32");
  add_compares<u32>(t, "u32");
  t["s_cmp_eq_u64"] = scalar_compare([](Wave&, u64 a, u64 b) { return a == b; });
  t["s_cmp_lg_u64"] = scalar_compare([](Wave&, u64 a, u64 b) { return a != b; });
  t["s_movk_i32"] = scalar_op<Scc::kept>([](Wave&, i32 a) { return a; });
  t["s_addk_i32"] = {[](Wave& wave, const Instruction& i) {
                       i32 sum;
                       wave.scc = __builtin_add_overflow(i32(wave.s[i.destination[0].index]),
                                                         read_scalar<i32>(wave, i.source[0]), &sum);
                       wave.s[i.destination[0].index] = u32(sum);
                     },
                     1, 1};
  t["s_mulk_i32"] = {[](Wave& wave, const Instruction& i) {
                       wave.s[i.destination[0].index] *= read_scalar<u32>(wave, i.source[0]);
                     },
                     1, 1};
  t["s_cmovk_i32"] = {[](Wave& wave, const Instruction& i) {
                        if (wave.scc)
                          wave.s[i.destination[0].index] = read_scalar<u32>(wave, i.source[0]);
                      },
                      1, 1};
  t["s_add_u32"] = scalar_op<Scc::own>(
      [](Wave& w, u32 a, u32 b) { return w.scc = (u64(a) + b) >> 32 & 1, a + b; });
  t["s_sub_u32"] = scalar_op<Scc::own>([](Wave& w, u32 a, u32 b) { return w.scc = b > a, a - b; });
  t["s_addc_u32"] = scalar_op<Scc::own>([](Wave& w, u32 a, u32 b) {
    const u64 sum = u64(a) + b + w.scc;
    return w.scc = sum >> 32 & 1, u32(sum);
  });
  t["s_subb_u32"] = scalar_op<Scc::own>([](Wave& w, u32 a, u32 b) {
    const u64 difference = u64(a) - b - w.scc;
    return w.scc = difference >> 32 & 1, u32(difference);
  });
  t["s_add_i32"] = scalar_op<Scc::own>([](Wave& w, i32 a, i32 b) {
    i32 out;
    return w.scc = __builtin_add_overflow(a, b, &out), out;
  });
  t["s_sub_i32"] = scalar_op<Scc::own>([](Wave& w, i32 a, i32 b) {
    i32 out;
    return w.scc = __builtin_sub_overflow(a, b, &out), out;
  });
  t["s_mul_i32"] = scalar_op<Scc::kept>([](Wave&, u32 a, u32 b) { return a * b; });
  t["s_mul_hi_u32"] =
      scalar_op<Scc::kept>([](Wave&, u32 a, u32 b) { return u32(u64(a) * b >> 32); });
  t["s_mul_hi_i32"] =
      scalar_op<Scc::kept>([](Wave&, i32 a, i32 b) { return i32(i64(a) * b >> 32); });
  t["s_min_i32"] =
      scalar_op<Scc::own>([](Wave& w, i32 a, i32 b) { return w.scc = a < b, std::min(a, b); });
  t["s_min_u32"] =
      scalar_op<Scc::own>([](Wave& w, u32 a, u32 b) { return w.scc = a < b, std::min(a, b); });
  t["s_max_i32"] =
      scalar_op<Scc::own>([](Wave& w, i32 a, i32 b) { return w.scc = a >= b, std::max(a, b); });
  t["s_max_u32"] =
      scalar_op<Scc::own>([](Wave& w, u32 a, u32 b) { return w.scc = a >= b, std::max(a, b); });
  t["s_absdiff_i32"] = scalar_op<Scc::nonzero>(
      [](Wave&, i32 a, i32 b) { return u32(std::abs(i64(i32(u32(a) - u32(b))))); });
  t["s_abs_i32"] =
      scalar_op<Scc::nonzero>([](Wave&, i32 a) { return u32(a < 0 ? 0 - u32(a) : u32(a)); });
  t["s_lshl_b32"] = scalar_op<Scc::nonzero>([](Wave&, u32 a, u32 b) { return a << (b & 31); });
  t["s_lshr_b32"] = scalar_op<Scc::nonzero>([](Wave&, u32 a, u32 b) { return a >> (b & 31); });
  t["s_ashr_i32"] = scalar_op<Scc::nonzero>([](Wave&, i32 a, u32 b) { return a >> (b & 31); });
  t["s_lshl_b64"] = scalar_op<Scc::nonzero>([](Wave&, u64 a, u32 b) { return a << (b & 63); });
  t["s_lshr_b64"] = scalar_op<Scc::nonzero>([](Wave&, u64 a, u32 b) { return a >> (b & 63); });
  t["s_ashr_i64"] = scalar_op<Scc::nonzero>([](Wave&, i64 a, u32 b) { return a >> (b & 63); });
  t["s_bfe_u32"] = scalar_op<Scc::nonzero>([](Wave&, u32 a, u32 b) { return field(a, b); });
  t["s_bfe_i32"] = scalar_op<Scc::nonzero>([](Wave&, i32 a, u32 b) { return field(a, b); });
  t["s_bfe_u64"] = scalar_op<Scc::nonzero>([](Wave&, u64 a, u32 b) { return field(a, b); });
  t["s_bfe_i64"] = scalar_op<Scc::nonzero>([](Wave&, i64 a, u32 b) { return field(a, b); });
  t["s_bfm_b32"] =
      scalar_op<Scc::kept>([](Wave&, u32 a, u32 b) { return ((1u << (a & 31)) - 1) << (b & 31); });
  t["s_bfm_b64"] = scalar_op<Scc::kept>(
      [](Wave&, u32 a, u32 b) { return ((1ull << (a & 63)) - 1) << (b & 63); });
  t["s_sext_i32_i8"] = scalar_op<Scc::kept>([](Wave&, u32 a) { return i32(int8_t(a)); });
  t["s_sext_i32_i16"] = scalar_op<Scc::kept>([](Wave&, u32 a) { return i32(int16_t(a)); });
  t["s_flbit_i32_b32"] =
      scalar_op<Scc::kept>([](Wave&, u32 a) { return a ? u32(std::countl_zero(a)) : ~0u; });
  t["s_flbit_i32_b64"] =
      scalar_op<Scc::kept>([](Wave&, u64 a) { return a ? u32(std::countl_zero(a)) : ~0u; });
  // Leading bits that equal the sign; none other than the sign: -1.
  t["s_flbit_i32"] = scalar_op<Scc::kept>([](Wave&, u32 a) {
    const u32 differing = int32_t(a) < 0 ? ~a : a;
    return differing ? u32(std::countl_zero(differing)) : ~0u;
  });
  t["s_pack_ll_b32_b16"] =
      scalar_op<Scc::kept>([](Wave&, u32 a, u32 b) { return (a & 0xffff) | b << 16; });
  t["s_pack_lh_b32_b16"] =
      scalar_op<Scc::kept>([](Wave&, u32 a, u32 b) { return (a & 0xffff) | (b & 0xffff0000); });
  t["s_pack_hh_b32_b16"] =
      scalar_op<Scc::kept>([](Wave&, u32 a, u32 b) { return a >> 16 | (b & 0xffff0000); });
  t["s_lshl1_add_u32"] = scalar_op<Scc::own>(
      [](Wave& w, u32 a, u32 b) { return w.scc = ((u64(a) << 1) + b) >> 32 != 0, (a << 1) + b; });
  t["s_lshl2_add_u32"] = scalar_op<Scc::own>(
      [](Wave& w, u32 a, u32 b) { return w.scc = ((u64(a) << 2) + b) >> 32 != 0, (a << 2) + b; });
  t["s_lshl3_add_u32"] = scalar_op<Scc::own>(
      [](Wave& w, u32 a, u32 b) { return w.scc = ((u64(a) << 3) + b) >> 32 != 0, (a << 3) + b; });
  t["s_lshl4_add_u32"] = scalar_op<Scc::own>(
      [](Wave& w, u32 a, u32 b) { return w.scc = ((u64(a) << 4) + b) >> 32 != 0, (a << 4) + b; });
  t["s_and_saveexec_b64"] = save_exec([](u64 a, u64 old) { return a & old; });
  t["s_or_saveexec_b64"] = save_exec([](u64 a, u64 old) { return a | old; });
  t["s_xor_saveexec_b64"] = save_exec([](u64 a, u64 old) { return a ^ old; });
  t["s_andn2_saveexec_b64"] = save_exec([](u64 a, u64 old) { return a & ~old; });
  t["s_orn2_saveexec_b64"] = save_exec([](u64 a, u64 old) { return a | ~old; });
  t["s_andn1_saveexec_b64"] = save_exec([](u64 a, u64 old) { return ~a & old; });
  t["s_wqm_b64"] = scalar_op<Scc::nonzero>([](Wave&, u64 a) {
    u64 out = 0;
    for (int quad = 0; quad < 16; ++quad)
      if (a >> 4 * quad & 15) out |= 15ull << 4 * quad;
    return out;
  });
  t["s_andn1_wrexec_b64"] = {[](Wave& wave, const Instruction& i) {
                               const u64 now = ~read_scalar<u64>(wave, i.source[0]) & wave.exec();
                               write_scalar<u64>(wave, i.destination[0].index, now);
                               wave.set_pair(kExec, now), wave.scc = now != 0;
                             },
                             1, 1};
  t["s_andn2_wrexec_b64"] = {[](Wave& wave, const Instruction& i) {
                               const u64 now = read_scalar<u64>(wave, i.source[0]) & ~wave.exec();
                               write_scalar<u64>(wave, i.destination[0].index, now);
                               wave.set_pair(kExec, now), wave.scc = now != 0;
                             },
                             1, 1};
}

}  // namespace emulator
