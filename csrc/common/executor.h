// How a kernel runs its tasks. An abstract interface, so that kernels compiled for different
// instruction sets share one implementation and pull in no library templates.
#ifndef MLA_COMMON_EXECUTOR_H_
#define MLA_COMMON_EXECUTOR_H_

#include <cstdint>

namespace mla {

using TaskFn = void (*)(void* context, int64_t task);

class Executor {
 public:
  // Runs fn(context, i) for every i in [0, n_tasks) and returns when all are done. Tasks are
  // handed out in increasing order. `cost` estimates the whole work in units of roughly one
  // nanosecond on one core: work below the price of waking a thread stays on the caller.
  virtual void Run(int64_t n_tasks, double cost, TaskFn fn, void* context) const = 0;

  // Number of threads that may take part, the caller included.
  virtual int Threads() const = 0;

 protected:
  ~Executor() = default;
};

}  // namespace mla

#endif  // MLA_COMMON_EXECUTOR_H_
