// Branches, calls, waits, the MODE register and the scalar memory reads (ISA documents, SOPP, SOPK
// and SMEM).
#include "scalar.h"

namespace emulator {

namespace {

using u32 = uint32_t;
using u64 = uint64_t;

template <class F>
Meaning branch(F) {
  return {[](Wave& wave, const Instruction& i) {
            if (F{}(wave)) wave.pc = i.target;
          },
          0, 1};
}

uint64_t process_address(const Wave& wave, uint64_t address) {
  return wave.launch.load_bias + address;
}

void jump(Wave& wave, uint64_t address) {
  const int index = wave.launch.program->find(address - wave.launch.load_bias);
  if (index < 0) throw Fault(kIllegalAddress, "a jump leaves the code object");
  wave.pc = index;
}

// MODE bits: rounding 0..3, denormals 4..7, FP16_OVFL 23. Only rounding to nearest and the launch's
// denormals run.
void set_register(Wave& wave, const Instruction& i, u32 value) {
  const u32 packed = i.source[0].constant32, id = packed & 63, offset = packed >> 6 & 31,
            width = (packed >> 11) + 1;
  if (id != 1)
    throw Fault(kLaunchFailure, "s_setreg of a hardware register other than MODE is not emulated");
  const u32 mask = u32((1ull << width) - 1) << offset;
  const u32 mode = (wave.mode & ~mask) | (value << offset & mask);
  if ((mode ^ wave.mode) & 0xff)
    throw Fault(kLaunchFailure, "a change of rounding or denormal mode is not emulated");
  wave.mode = mode;
}

}  // namespace

void add_flow(Table& t) {
  t["s_branch"] = branch([](Wave&) { return true; });
  t["s_cbranch_scc0"] = branch([](Wave& w) { return !w.scc; });
  t["s_cbranch_scc1"] = branch([](Wave& w) { return w.scc; });
  t["s_cbranch_vccz"] = branch([](Wave& w) { return w.vcc() == 0; });
  t["s_cbranch_vccnz"] = branch([](Wave& w) { return w.vcc() != 0; });
  t["s_cbranch_execz"] = branch([](Wave& w) { return w.exec() == 0; });
  t["s_cbranch_execnz"] = branch([](Wave& w) { return w.exec() != 0; });
  t["s_getpc_b64"] = {[](Wave& wave, const Instruction& i) {
                        wave.set_pair(i.destination[0].index,
                                      process_address(wave, i.next_address));
                      },
                      1, 0};
  t["s_setpc_b64"] = {
      [](Wave& wave, const Instruction& i) { jump(wave, wave.pair(i.source[0].index)); }, 0, 1};
  t["s_swappc_b64"] = {[](Wave& wave, const Instruction& i) {
                         const u64 to = wave.pair(i.source[0].index);
                         wave.set_pair(i.destination[0].index,
                                       process_address(wave, i.next_address));
                         jump(wave, to);
                       },
                       1, 1};
  t["s_set_gpr_idx_on"] = {[](Wave& wave, const Instruction& i) {
                             // M0 keeps both: the index in its low byte, the enables in bits 12
                             // to 15.
                             wave.index = int(read_scalar<u32>(wave, i.source[0]) & 0xff);
                             wave.indexed = int(i.source[1].constant32);
                             wave.s[kM0] =
                                 (wave.s[kM0] & 0xffff0f00) | u32(wave.index | wave.indexed << 12);
                           },
                           0, 2};
  t["s_set_gpr_idx_off"] = {[](Wave& wave, const Instruction&) { wave.indexed = 0; }, 0, 0};
  t["s_endpgm"] = {[](Wave& wave, const Instruction&) { wave.finished = true; }, 0, 0};
  t["s_barrier"] = {[](Wave& wave, const Instruction&) { wave.at_barrier = true; }, 0, 0};
  t["s_trap"] = {
      [](Wave&, const Instruction&) { throw Fault(kLaunchFailure, "the kernel reached a trap"); },
      0, 1};

  t["s_setreg_b32"] = {[](Wave& wave, const Instruction& i) {
                         set_register(wave, i, read_scalar<u32>(wave, i.source[1]));
                       },
                       0, 2};
  t["s_setreg_imm32_b32"] = t["s_setreg_b32"];
  t["s_getreg_b32"] = {
      [](Wave& wave, const Instruction& i) {
        const u32 packed = i.source[0].constant32, id = packed & 63;
        if (id != 1)
          throw Fault(kLaunchFailure,
                      "s_getreg of a hardware register other than MODE is not emulated");
        wave.s[i.destination[0].index] =
            wave.mode >> (packed >> 6 & 31) & u32((1ull << ((packed >> 11) + 1)) - 1);
      },
      1, 1};
  // vmcnt's six bits are the lowest four and the highest two. What other counters count completes
  // at once.
  t["s_waitcnt"] = {[](Wave& wave, const Instruction& i) {
                      arrive_in_lds(wave, (i.immediate & 15u) | (i.immediate >> 14 << 4));
                    },
                    0,
                    0,
                    ~0u,
                    false,
                    true};
  // Cache controls, priorities and hints have nothing to do.
  const Meaning nothing{[](Wave&, const Instruction&) {}, 0, 0, ~0u, false, true};
  for (const char* name : {"s_nop", "s_sleep", "s_setprio", "s_sethalt", "s_dcache_inv",
                           "s_dcache_wb", "s_icache_inv", "s_ttracedata", "s_sendmsg", "v_nop",
                           "buffer_wbl2", "buffer_inv", "s_incperflevel", "s_decperflevel"})
    t[name] = nothing;
}

void add_scalar_memory(Table& t) {
  const auto add = [&](const std::string& suffix, auto words) {
    static constexpr int kWords = decltype(words)::value;
    t["s_load_dword" + suffix] = {
        [](Wave& wave, const Instruction& i) {
          const uint64_t address = wave.pair(i.source[0].index) +
                                   read_scalar<u32>(wave, i.source[1]) +
                                   uint64_t(i.modifiers.offset);
          if (address % 4)
            throw Fault(kIllegalAddress, "a scalar load is not aligned to four bytes");
          std::memcpy(&wave.s[i.destination[0].index],
                      global_at(wave, 0, address, 4 * kWords, false), 4 * kWords);
        },
        1, 2, kOffset | kCacheBits};
    t["s_buffer_load_dword" + suffix] = {
        [](Wave& wave, const Instruction& i) {
          const u32* words = &wave.s[i.source[0].index];
          const uint64_t base = u64(words[1] & 0xffff) << 32 | words[0];
          const uint64_t offset =
              read_scalar<u32>(wave, i.source[1]) + uint64_t(i.modifiers.offset);
          for (int word = 0; word < kWords; ++word) {
            u32 value = 0;
            // Beyond num_records a buffer reads zeros.
            if (offset + 4 * u64(word) + 4 <= words[2])
              std::memcpy(&value, global_at(wave, 0, base + offset + 4 * u64(word), 4, false), 4);
            wave.s[i.destination[0].index + word] = value;
          }
        },
        1, 2, kOffset | kCacheBits};
  };
  add("", std::integral_constant<int, 1>{});
  add("x2", std::integral_constant<int, 2>{});
  add("x4", std::integral_constant<int, 4>{});
  add("x8", std::integral_constant<int, 8>{});
  add("x16", std::integral_constant<int, 16>{});
  t["s_memtime"] = {[](Wave& wave, const Instruction& i) {
                      wave.set_pair(i.destination[0].index, wave.executed);
                    },
                    1, 0};
  t["s_memrealtime"] = t["s_memtime"];
}

}  // namespace emulator
