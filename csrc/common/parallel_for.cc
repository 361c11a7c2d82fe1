// Dynamic hand-out of tasks over XLA's thread pool.
//
// A worker that the pool starts late, even long after the call has returned, finds the counter
// past the end and touches nothing of the call but the control block, which it owns through a
// shared pointer.
//
// A step is tens of calls, a few microseconds apart, and a thread that sleeps takes tens of them to
// wake: so who has finished polls for a moment before it sleeps, and a worker that does is given
// the next call without the pool. Where others want the core, polling uses up this process's share
// of it: a worker whose poll had to wait for its core does not poll for a while.
#include "common/parallel_for.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace mla {
namespace {

// Below this cost (nanoseconds of one core) a fork and join would cost more than it saves.
constexpr double kMinSplitCost = 20e3;

using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds kPatience(50);
constexpr int kPollsPerLook = 16;  // At the clock.

// A poll that lasted so much longer had to wait for its core: more than interrupts take, less than
// the turns that a scheduler gives.
constexpr std::chrono::milliseconds kMostLost(1);
constexpr std::chrono::seconds kWithoutPolls(1);

// After which a worker goes back to the pool, which may have other work.
constexpr std::chrono::milliseconds kLongestService(10);

inline void CpuRelax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether `happened` in time.
template <typename F>
bool Poll(const F& happened) {
  const auto until = Clock::now() + kPatience;
  do {
    for (int i = 0; i < kPollsPerLook; ++i) {
      if (happened()) return true;
      CpuRelax();
    }
  } while (Clock::now() < until);
  return false;
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

  // Whether there was anything left to do.
  bool Work() {
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
    return mine != 0;
  }

  void Wait() {
    const auto is_done = [this] { return done.load() == n_tasks; };
    if (Poll(is_done)) return;
    std::unique_lock<std::mutex> lock(mutex);
    all_done.wait(lock, is_done);
  }
};

// Workers between two calls.
class WaitingWorkers {
 public:
  // What a worker does that the pool has started.
  void Serve(std::shared_ptr<Control> call) {
    thread_local Clock::time_point polls_from;
    thread_local bool in_vain = false;
    const auto until = Clock::now() + kLongestService;
    while (call != nullptr) {
      // Late for one call after another, and polling in vain, it would only keep the pool waiting.
      const bool late = !call->Work();
      const auto began = Clock::now();
      if (began < polls_from || began > until || (late && in_vain)) return;
      call = Next();
      in_vain = call == nullptr;
      const auto now = Clock::now();
      if (now - began > kPatience + kMostLost) polls_from = now + kWithoutPolls;
    }
  }

  // Gives the call to at most `count` of them, those that came last; returns to how many.
  int64_t Hand(const std::shared_ptr<Control>& control, int64_t count) {
    std::lock_guard<std::mutex> lock(mutex_);
    const int64_t given = std::min(count, static_cast<int64_t>(seats_.size()));
    for (int64_t i = 0; i < given; ++i) {
      Seat* seat = seats_.back();
      seats_.pop_back();
      seat->control = control;
      seat->taken.store(true, std::memory_order_release);  // The last touch: it may be gone now.
    }
    return given;
  }

 private:
  struct Seat {
    std::shared_ptr<Control> control;
    std::atomic<bool> taken{false};
  };

  // The call that a worker is given, or none in time.
  std::shared_ptr<Control> Next() {
    Seat seat;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      seats_.push_back(&seat);
    }
    if (!Poll([&seat] { return seat.taken.load(std::memory_order_acquire); })) {
      std::lock_guard<std::mutex> lock(mutex_);
      // If it is not there, it was taken just now.
      seats_.erase(std::remove(seats_.begin(), seats_.end(), &seat), seats_.end());
    }
    return std::move(seat.control);
  }

  std::mutex mutex_;
  std::vector<Seat*> seats_;  // Of workers in Next.
};

// Never destroyed: a worker may be in Next when the process ends.
WaitingWorkers& Waiting() {
  static auto* const waiting = new WaitingWorkers();
  return *waiting;
}

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
  const auto caller = std::this_thread::get_id();
  for (int64_t i = 1 + Waiting().Hand(control, workers - 1); i < workers; ++i) {
    pool_.Schedule([control, caller] {
      // A pool whose queues are full runs the job here and now.
      if (std::this_thread::get_id() == caller) {
        control->Work();
      } else {
        Waiting().Serve(control);
      }
    });
  }
  control->Work();
  control->Wait();
}

}  // namespace mla
