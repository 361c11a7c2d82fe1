// Detection of the processor and the cap by environment variable.
#include "common/isa.h"

#include <cstdlib>
#include <string>

namespace mla {
namespace {

constexpr const char* kNames[kIsaCount] = {"baseline", "avx2", "avx512", "avx512bf16"};

struct Choice {
  Isa isa = kBaseline;
  std::string error;
};

bool CpuHas(Isa isa) {
  if (isa == kBaseline) return true;
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == kAvx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (isa == kAvx512) return avx512;
  return avx512 && __builtin_cpu_supports("avx512bf16");
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
                         "MLA_JAX_CPU_ISA: expected baseline, avx2, avx512 or avx512bf16, "
                         "got '") +
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
    case kAvx512Bf16:
      MLA_IF_AVX512BF16(return true;)
      return false;
    default:
      return false;
  }
}

Isa ChosenIsa() { return TheChoice().isa; }

const char* IsaError() { return TheChoice().error.empty() ? nullptr : TheChoice().error.c_str(); }

}  // namespace mla
