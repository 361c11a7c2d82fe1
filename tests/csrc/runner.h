// Runs one call of a kernel in every way that must give the same bits, at every instruction-set
// level that this processor has.
#ifndef MLA_TESTS_CSRC_RUNNER_H_
#define MLA_TESTS_CSRC_RUNNER_H_

#include <functional>
#include <string>
#include <vector>

#include "common/executor.h"
#include "common/isa.h"
#include "memory.h"
#include "thread_pool.h"

namespace mla::test {

class Runner {
 public:
  Runner();

  // Prints how the cases of a group went.
  void Group(const char* name, const std::function<void(Runner&)>& cases);

  // `make` takes a kernel's arguments from a call's memory; it is called again for every run.
  template <typename Args>
  void Case(const KernelTable<Args>& table, const std::string& name,
            const std::function<Args(Memory&)>& make) {
    for (int level = 0; level <= ChosenIsa(); ++level) {
      const auto kernel = table.fn[level];
      if (kernel == nullptr) continue;
      Check(name + " " + IsaName(static_cast<Isa>(level)),
            [&](Memory& memory) -> std::function<void(const Executor&)> {
              const Args args = make(memory);
              return [kernel, args](const Executor& executor) { kernel(args, executor); };
            });
    }
  }

  // Counts a check that is not a kernel's.
  void Expect(bool good, const std::string& what);

  int failures() const { return failures_; }

 private:
  // Makes the arguments; what comes back runs the kernel on them.
  using Prepare = std::function<std::function<void(const Executor&)>(Memory&)>;

  void Check(const std::string& name, const Prepare& prepare);

  ThreadPool pool_;
  int calls_ = 0;
  int failures_ = 0;
};

}  // namespace mla::test

#endif  // MLA_TESTS_CSRC_RUNNER_H_
