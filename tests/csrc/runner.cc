// One thread gives the bits; a thread pool, tasks in another order and several callers at once have
// to give them too.
#include "runner.h"

#include <chrono>
#include <cstdio>
#include <future>
#include <memory>
#include <thread>

#include "common/parallel_for.h"

namespace mla::test {
namespace {

constexpr int kThreads = 4;
constexpr int kCallers = 2;

// The poisons differ, so that a result which is not written does.
constexpr uint8_t kFirstPoison = 0xa5;
constexpr uint8_t kPoison = 0x5a;

class OneThread final : public Executor {
 public:
  void Run(int64_t n_tasks, double, TaskFn fn, void* context) const override {
    for (int64_t i = 0; i < n_tasks; ++i) fn(context, i);
  }
  int Threads() const override { return 1; }
};

// One thread that says it is several, and the last task first: what an unlucky schedule comes to.
class Backwards final : public Executor {
 public:
  void Run(int64_t n_tasks, double, TaskFn fn, void* context) const override {
    for (int64_t i = n_tasks - 1; i >= 0; --i) fn(context, i);
  }
  int Threads() const override { return 7; }
};

// The executor of every handler, but that no work is too little to be shared out.
class Shared final : public Executor {
 public:
  explicit Shared(ThreadPool& pool) : pool_(pool.ffi()) {}
  void Run(int64_t n_tasks, double, TaskFn fn, void* context) const override {
    pool_.Run(n_tasks, 1e12, fn, context);
  }
  int Threads() const override { return pool_.Threads(); }

 private:
  PoolExecutor pool_;
};

uint64_t SeedOf(const std::string& name) { return std::hash<std::string>{}(name); }

}  // namespace

Runner::Runner() : pool_(kThreads) {}

void Runner::Expect(bool good, const std::string& what) {
  ++calls_;
  if (good) return;
  ++failures_;
  std::printf("FAILED %s\n", what.c_str());
}

void Runner::Check(const std::string& name, const Prepare& prepare) {
  const uint64_t seed = SeedOf(name);
  Memory untouched(seed, kFirstPoison), first(seed, kFirstPoison);
  prepare(untouched);
  prepare(first)(OneThread());
  const auto compare = [&](const Memory& memory, const char* how) {
    std::string difference = memory.Difference(untouched, /*inputs=*/true);
    Expect(difference.empty(), name + ", " + how + ", wrote to an input: " + difference);
    difference = memory.Difference(first, /*inputs=*/false);
    Expect(difference.empty(), name + ", " + how + ": " + difference);
  };
  compare(first, "one thread");

  Memory backwards(seed, kPoison);
  prepare(backwards)(Backwards());
  compare(backwards, "last task first");

  Memory shared(seed, kPoison);
  prepare(shared)(Shared(pool_));
  compare(shared, "thread pool");

  // Callers have threads of their own or are jobs of the pool, as XLA's are.
  for (const bool inside : {false, true}) {
    std::vector<std::unique_ptr<Memory>> memories;
    std::vector<std::thread> threads;
    std::vector<std::future<void>> done;
    for (int i = 0; i < kCallers; ++i) {
      memories.push_back(std::make_unique<Memory>(seed, kPoison));
      auto call = [run = prepare(*memories.back()), this] { run(Shared(pool_)); };
      if (inside) {
        auto job = std::make_shared<std::packaged_task<void()>>(call);
        done.push_back(job->get_future());
        pool_.Schedule([job] { (*job)(); });
      } else {
        threads.emplace_back(call);
      }
    }
    for (std::thread& thread : threads) thread.join();
    for (std::future<void>& one : done) one.get();
    for (const auto& memory : memories) {
      compare(*memory, inside ? "callers in the pool" : "several callers");
    }
  }
}

void Runner::Group(const char* name, const std::function<void(Runner&)>& cases) {
  const int calls = calls_, failures = failures_;
  const auto begin = std::chrono::steady_clock::now();
  cases(*this);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  std::printf("%-24s %6d comparisons, %d failed, %.1f s\n", name, calls_ - calls,
              failures_ - failures, seconds.count());
  std::fflush(stdout);
}

}  // namespace mla::test
