// The hand-out of tasks itself: each runs once, the results are there when Run returns, a worker
// that comes late finds nothing to touch, and one that has finished is given the next call.
#include "common/parallel_for.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cases.h"

namespace mla::test {
namespace {

constexpr double kMuch = 1e12;

struct Counts {
  explicit Counts(int64_t n) : of(static_cast<size_t>(n), 0) {}
  // Not atomic: a task belongs to one thread, and Run ends after all of them.
  std::vector<int> of;
  std::atomic<bool> elsewhere{false};
  const std::thread::id caller = std::this_thread::get_id();

  static void Add(void* context, int64_t task) {
    auto* counts = static_cast<Counts*>(context);
    ++counts->of[static_cast<size_t>(task)];
    if (std::this_thread::get_id() != counts->caller) counts->elsewhere = true;
  }
  bool AllOnce() const {
    for (const int count : of) {
      if (count != 1) return false;
    }
    return true;
  }
};

void EachTaskOnce(Runner& runner, ThreadPool& pool, int threads) {
  const PoolExecutor executor(pool.ffi());
  runner.Expect(executor.Threads() == (threads < 1 ? 1 : threads), "Threads()");
  for (const int64_t n : {0, 1, 2, 3, 7, 64, 1000}) {
    for (const double cost : {0.0, 30e3, kMuch}) {
      const std::string what = std::to_string(n) + " tasks, " + std::to_string(threads) +
                               " threads, cost " + std::to_string(cost);
      Counts counts(n);
      executor.Run(n, cost, &Counts::Add, &counts);
      runner.Expect(counts.AllOnce(), what + ": not every task ran once");
      if (cost == 0.0 || threads <= 1) {
        runner.Expect(!counts.elsewhere, what + ": the work left the caller's thread");
      }
    }
  }
}

// Workers that start when the call, its tasks' context and the executor are gone.
void LateWorkers(Runner& runner) {
  ThreadPool pool(/*claimed=*/4, /*running=*/0);
  int jobs = 0;
  for (const int64_t n : {2, 3, 9}) {
    auto counts = std::make_unique<Counts>(n);
    PoolExecutor(pool.ffi()).Run(n, kMuch, &Counts::Add, counts.get());
    runner.Expect(counts->AllOnce(), "late workers: not every task ran once");
    jobs += static_cast<int>(n < 4 ? n : 4) - 1;
  }
  runner.Expect(pool.RunLeft() == jobs, "late workers: not as many as there is work for");
}

void ManyCallers(Runner& runner, ThreadPool& pool) {
  constexpr int kCallers = 4;
  constexpr int64_t kTasks = 37;
  std::vector<int> wrong(kCallers, 0);
  std::vector<std::thread> callers;
  for (int& mine : wrong) {
    callers.emplace_back([&pool, &mine] {
      const PoolExecutor executor(pool.ffi());
      for (int round = 0; round < 200; ++round) {
        Counts counts(kTasks);
        executor.Run(kTasks, kMuch, &Counts::Add, &counts);
        mine += counts.AllOnce() ? 0 : 1;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const int count : wrong) runner.Expect(count == 0, "many callers: a task was lost");
}

// A worker that has just finished a call is given the next one, even that of a pool whose own
// threads never start. It may be long in coming where other processes want the cores.
void HandedOver(Runner& runner) {
  using Clock = std::chrono::steady_clock;
  constexpr int kRounds = 300;
  constexpr int64_t kTasks = 4000;
  constexpr std::chrono::seconds kLongest(60);
  ThreadPool awake(2), asleep(/*claimed=*/2, /*running=*/0);
  const PoolExecutor first(awake.ffi()), second(asleep.ffi());
  bool all_once = true, handed = false;
  const auto until = Clock::now() + kLongest;
  for (int round = 0; round < kRounds || (!handed && Clock::now() < until); ++round) {
    Counts before(kTasks), counts(kTasks);
    first.Run(kTasks, kMuch, &Counts::Add, &before);
    // About as long as a worker waits: it may leave while it is given the call.
    const auto next = Clock::now() + std::chrono::microseconds(round % 70);
    while (Clock::now() < next) continue;
    second.Run(kTasks, kMuch, &Counts::Add, &counts);
    all_once = all_once && before.AllOnce() && counts.AllOnce();
    handed = handed || counts.elsewhere;
  }
  runner.Expect(all_once, "handed over: not every task ran once");
  // On one core worker and caller never run together.
  if (std::thread::hardware_concurrency() > 1) {
    runner.Expect(handed, "no worker was given the next call");
  }
}

// A pool that runs what is scheduled on the caller's own thread, as XLA's does when it is full.
void OnTheCaller(Runner& runner) {
  ThreadPool pool(/*claimed=*/3, /*running=*/0, /*on_caller=*/true);
  for (const int64_t n : {1, 2, 9}) {
    Counts counts(n);
    PoolExecutor(pool.ffi()).Run(n, kMuch, &Counts::Add, &counts);
    runner.Expect(counts.AllOnce() && !counts.elsewhere,
                  "on the caller: not every task ran once, there");
  }
}

}  // namespace

void ParallelForCases(Runner& runner) {
  for (const int threads : {0, 1, 2, 4}) {
    ThreadPool pool(threads);
    EachTaskOnce(runner, pool, threads);
    if (threads > 1) ManyCallers(runner, pool);
  }
  LateWorkers(runner);
  HandedOver(runner);
  OnTheCaller(runner);
}

}  // namespace mla::test
