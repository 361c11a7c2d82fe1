// Executor on XLA's own thread pool.
#ifndef MLA_COMMON_PARALLEL_FOR_H_
#define MLA_COMMON_PARALLEL_FOR_H_

#include "common/executor.h"
#include "xla/ffi/api/ffi.h"

namespace mla {

class PoolExecutor final : public Executor {
 public:
  explicit PoolExecutor(xla::ffi::ThreadPool& pool);
  void Run(int64_t n_tasks, double cost, TaskFn fn, void* context) const override;
  int Threads() const override { return threads_; }

 private:
  xla::ffi::ThreadPool& pool_;
  int threads_;
};

}  // namespace mla

#endif  // MLA_COMMON_PARALLEL_FOR_H_
