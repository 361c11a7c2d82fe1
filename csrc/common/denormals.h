// Keeps subnormal numbers for the life of the object. XLA runs its threads with subnormals flushed
// to zero, which would change values that a kernel only rounds and stores.
#ifndef MLA_COMMON_DENORMALS_H_
#define MLA_COMMON_DENORMALS_H_

#include <cstdint>

#if defined(__x86_64__) || defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace mla {
namespace MLA_ISA {

class KeepDenormals {
 public:
#if defined(__x86_64__) || defined(__SSE__)
  // Bit 15 flushes results (FTZ), bit 6 reads subnormal operands as zero (DAZ).
  KeepDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ & ~0x8040u); }
  ~KeepDenormals() { _mm_setcsr(saved_); }

 private:
  uint32_t saved_;
#elif defined(__aarch64__)
  // Bit 24 of FPCR (FZ) does both.
  KeepDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ & ~(uint64_t{1} << 24)));
  }
  ~KeepDenormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#else
  KeepDenormals() {}
  ~KeepDenormals() {}
#endif

 public:
  KeepDenormals(const KeepDenormals&) = delete;
  KeepDenormals& operator=(const KeepDenormals&) = delete;
};

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_DENORMALS_H_
