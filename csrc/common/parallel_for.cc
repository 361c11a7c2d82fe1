// Dynamic hand-out of tasks over XLA's thread pool.
//
// A worker that the pool starts late, even long after the call has returned, finds the counter
// past the end and touches only the control block, which it owns through a shared pointer.
#include "common/parallel_for.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

namespace mla {
namespace {

// Below this cost (nanoseconds of one core) a fork and join would cost more than it saves.
constexpr double kMinSplitCost = 20e3;

// Polls before the caller goes to sleep: a few microseconds, the usual skew between threads.
constexpr int kSpins = 400;

inline void CpuRelax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Control {
  Control(int64_t n, TaskFn f, void* c) : n_tasks(n), fn(f), context(c) {}

  const int64_t n_tasks;
  const TaskFn fn;      // Valid only while a claimed task is unfinished.
  void* const context;  // Same.
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> done{0};
  std::mutex mutex;
  std::condition_variable all_done;

  void Work() {
    int64_t mine = 0;
    for (int64_t i = next.fetch_add(1); i < n_tasks; i = next.fetch_add(1)) {
      fn(context, i);
      ++mine;
    }
    if (mine != 0 && done.fetch_add(mine) + mine == n_tasks) {
      // The lock closes the gap between the caller's test and its going to sleep.
      std::lock_guard<std::mutex> lock(mutex);
      all_done.notify_one();
    }
  }

  void Wait() {
    for (int i = 0; i < kSpins; ++i) {
      if (done.load() == n_tasks) return;
      CpuRelax();
    }
    std::unique_lock<std::mutex> lock(mutex);
    all_done.wait(lock, [this] { return done.load() == n_tasks; });
  }
};

}  // namespace

PoolExecutor::PoolExecutor(xla::ffi::ThreadPool& pool)
    : pool_(pool), threads_(static_cast<int>(std::max<int64_t>(1, pool.num_threads()))) {}

void PoolExecutor::Run(int64_t n_tasks, double cost, TaskFn fn, void* context) const {
  if (n_tasks <= 0) return;
  const int64_t workers = std::min<int64_t>(
      {static_cast<int64_t>(threads_), n_tasks, static_cast<int64_t>(cost / kMinSplitCost) + 1});
  if (workers <= 1) {
    for (int64_t i = 0; i < n_tasks; ++i) fn(context, i);
    return;
  }
  auto control = std::make_shared<Control>(n_tasks, fn, context);
  for (int64_t i = 1; i < workers; ++i) {
    pool_.Schedule([control] { control->Work(); });
  }
  control->Work();
  control->Wait();
}

}  // namespace mla
