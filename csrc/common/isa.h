// Instruction-set levels: which ones were built, and which one this process uses.
//
// Every kernel is compiled once a level into the namespace of that level (mla::baseline,
// mla::avx2, ...). MLA_DECLARE_KERNEL declares all of them, MLA_KERNEL_TABLE lists them, and
// MLA_KERNEL picks the one to run.
#ifndef MLA_COMMON_ISA_H_
#define MLA_COMMON_ISA_H_

#include "common/executor.h"
#if defined(MLA_GPU)
#include "gpu/runtime.h"
#endif

// The build system defines MLA_BUILD_<LEVEL> for every level beyond the baseline.
#ifdef MLA_BUILD_AVX2
#define MLA_IF_AVX2(...) __VA_ARGS__
#else
#define MLA_IF_AVX2(...)
#endif
#ifdef MLA_BUILD_AVX512
#define MLA_IF_AVX512(...) __VA_ARGS__
#else
#define MLA_IF_AVX512(...)
#endif
#ifdef MLA_BUILD_AVX512VNNI
#define MLA_IF_AVX512VNNI(...) __VA_ARGS__
#else
#define MLA_IF_AVX512VNNI(...)
#endif
#ifdef MLA_BUILD_AVX512BF16
#define MLA_IF_AVX512BF16(...) __VA_ARGS__
#else
#define MLA_IF_AVX512BF16(...)
#endif
#ifdef MLA_BUILD_AMX
#define MLA_IF_AMX(...) __VA_ARGS__
#else
#define MLA_IF_AMX(...)
#endif

namespace mla {

enum Isa { kBaseline, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx, kIsaCount };

// Name of a level, as MLA_JAX_CPU_ISA spells it.
const char* IsaName(Isa isa);

bool IsaBuilt(Isa isa);

// The level in use: the best one that was built and that this processor has, capped by the
// environment variable MLA_JAX_CPU_ISA. Decided once.
Isa ChosenIsa();

// Why the environment variable was ignored, or null.
const char* IsaError();

// One kernel at every level; null where a level was not built.
template <typename Args>
struct KernelTable {
  void (*fn[kIsaCount])(const Args&, const Executor&);
};

// The kernel to run: the chosen level, or the best built one below it.
template <typename Args>
auto Pick(const KernelTable<Args>& table) {
  int level = ChosenIsa();
  while (level > 0 && table.fn[level] == nullptr) --level;
  return table.fn[level];
}

}  // namespace mla

// Declares `name` in the namespace of every level that was built; for a GPU, its launcher. Device
// code sees the arguments only.
#if defined(__HIP__) || defined(__CUDACC__)
#define MLA_DECLARE_KERNEL(name, Args)
#elif defined(MLA_GPU)
#define MLA_DECLARE_KERNEL(name, Args)                            \
  namespace gpu {                                                 \
  ::xla::ffi::Error name(const Args& args, const Stream& stream); \
  }
#else
#define MLA_DECLARE_KERNEL(name, Args)                                                 \
  namespace baseline {                                                                 \
  void name(const Args&, const Executor&);                                             \
  }                                                                                    \
  MLA_IF_AVX2(namespace avx2 { void name(const Args&, const Executor&); })             \
  MLA_IF_AVX512(namespace avx512 { void name(const Args&, const Executor&); })         \
  MLA_IF_AVX512VNNI(namespace avx512vnni { void name(const Args&, const Executor&); }) \
  MLA_IF_AVX512BF16(namespace avx512bf16 { void name(const Args&, const Executor&); }) \
  MLA_IF_AMX(namespace amx { void name(const Args&, const Executor&); })
#endif

#ifdef MLA_BUILD_AVX2
#define MLA_ENTRY_AVX2(name) &mla::avx2::name
#else
#define MLA_ENTRY_AVX2(name) nullptr
#endif
#ifdef MLA_BUILD_AVX512
#define MLA_ENTRY_AVX512(name) &mla::avx512::name
#else
#define MLA_ENTRY_AVX512(name) nullptr
#endif
#ifdef MLA_BUILD_AVX512VNNI
#define MLA_ENTRY_AVX512VNNI(name) &mla::avx512vnni::name
#else
#define MLA_ENTRY_AVX512VNNI(name) nullptr
#endif
#ifdef MLA_BUILD_AVX512BF16
#define MLA_ENTRY_AVX512BF16(name) &mla::avx512bf16::name
#else
#define MLA_ENTRY_AVX512BF16(name) nullptr
#endif
#ifdef MLA_BUILD_AMX
#define MLA_ENTRY_AMX(name) &mla::amx::name
#else
#define MLA_ENTRY_AMX(name) nullptr
#endif

// The kernel at every level that was built.
#define MLA_KERNEL_TABLE(name, Args)                                                  \
  ::mla::KernelTable<Args> {                                                          \
    {                                                                                 \
      &::mla::baseline::name, MLA_ENTRY_AVX2(name), MLA_ENTRY_AVX512(name),           \
          MLA_ENTRY_AVX512VNNI(name), MLA_ENTRY_AVX512BF16(name), MLA_ENTRY_AMX(name) \
    }                                                                                 \
  }

#define MLA_KERNEL(name, Args) ::mla::Pick<Args>(MLA_KERNEL_TABLE(name, Args))

#endif  // MLA_COMMON_ISA_H_
