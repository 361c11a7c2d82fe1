// Detection of the processor and the cap by environment variable.
#include "common/isa.h"

#include <cstdlib>
#include <string>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mla {
namespace {

constexpr const char* kNames[kIsaCount] = {"baseline",   "avx2",       "avx512",
                                           "avx512vnni", "avx512bf16", "amx"};

struct Choice {
  Isa isa = kBaseline;
  std::string error;
};

// Whether the processor has AMX for bf16 and the system lets this process use its tiles, which has
// to be asked for: their state is large, so the kernel saves it for those who asked only.
bool TilesAllowed() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned int a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned int kBf16 = 1u << 22, kTile = 1u << 24;
  if ((d & kBf16) == 0 || (d & kTile) == 0) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA.
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#if defined(__x86_64__) || defined(__i386__)
// Not by __builtin_cpu_supports, which not every compiler asks for it.
bool HasF16c() {
  unsigned int a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & 1u << 29) != 0;
}
#endif

bool CpuHas(Isa isa) {
  if (isa == kBaseline) return true;
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
  if (isa == kAvx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (isa == kAvx512) return avx512;
  if (isa == kAvx512Vnni) return avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (isa == kAvx512Bf16) return bf16;
  return bf16 && __builtin_cpu_supports("avx512vbmi") && TilesAllowed();
#else
  return false;
#endif
}

Choice Choose() {
  Choice choice;
  int cap = kIsaCount - 1;
  if (const char* text = std::getenv("MLA_JAX_CPU_ISA"); text != nullptr && text[0] != '\0') {
    int found = -1;
    for (int i = 0; i < kIsaCount; ++i) {
      if (std::string(text) == kNames[i]) found = i;
    }
    if (found >= 0) {
      cap = found;
    } else {
      choice.error = std::string(
                         "MLA_JAX_CPU_ISA: expected baseline, avx2, avx512, avx512vnni, "
                         "avx512bf16 or amx, got '") +
                     text + "'";
    }
  }
  for (int i = cap; i > 0; --i) {
    if (IsaBuilt(static_cast<Isa>(i)) && CpuHas(static_cast<Isa>(i))) {
      choice.isa = static_cast<Isa>(i);
      break;
    }
  }
  return choice;
}

// Immutable after its first use; the language makes that first use thread-safe.
const Choice& TheChoice() {
  static const Choice* choice = new Choice(Choose());
  return *choice;
}

}  // namespace

const char* IsaName(Isa isa) { return kNames[isa]; }

bool IsaBuilt(Isa isa) {
  switch (isa) {
    case kBaseline:
      return true;
    case kAvx2:
      MLA_IF_AVX2(return true;)
      return false;
    case kAvx512:
      MLA_IF_AVX512(return true;)
      return false;
    case kAvx512Vnni:
      MLA_IF_AVX512VNNI(return true;)
      return false;
    case kAvx512Bf16:
      MLA_IF_AVX512BF16(return true;)
      return false;
    case kAmx:
      MLA_IF_AMX(return true;)
      return false;
    default:
      return false;
  }
}

Isa ChosenIsa() { return TheChoice().isa; }

const char* IsaError() { return TheChoice().error.empty() ? nullptr : TheChoice().error.c_str(); }

}  // namespace mla
