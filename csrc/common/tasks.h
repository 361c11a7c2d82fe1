// Lets a kernel hand a lambda to the executor.
#ifndef MLA_COMMON_TASKS_H_
#define MLA_COMMON_TASKS_H_

#include "common/executor.h"

namespace mla {
namespace MLA_ISA {

template <typename F>
void Trampoline(void* context, int64_t task) {
  (*static_cast<const F*>(context))(task);
}

// Runs f(i) for i in [0, n); `cost` as in Executor::Run.
template <typename F>
void ForEach(const Executor& executor, int64_t n, double cost, const F& f) {
  executor.Run(n, cost, &Trampoline<F>, const_cast<F*>(&f));
}

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t Max64(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t Clamp(int64_t v, int64_t low, int64_t high) {
  return v < low ? low : (v > high ? high : v);
}

// Cuts one block of memory into aligned pieces. Made twice: with null to add up the size, then over
// the block itself.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* Take(int64_t count) {
    T* p = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return p;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_TASKS_H_
