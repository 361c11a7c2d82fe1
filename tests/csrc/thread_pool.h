// XLA's side of the thread pool: the two functions of its C interface that
// csrc/common/parallel_for.cc calls, over threads of our own.
#ifndef MLA_TESTS_CSRC_THREAD_POOL_H_
#define MLA_TESTS_CSRC_THREAD_POOL_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace mla::test {

class ThreadPool {
 public:
  // Says that it has `claimed` threads. With `running` none it only keeps what is scheduled, or
  // runs it at once, `on_caller`.
  ThreadPool(int claimed, int running, bool on_caller = false);
  explicit ThreadPool(int threads) : ThreadPool(threads, threads) {}
  // Runs what is left.
  ~ThreadPool();

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  void Schedule(std::function<void()> job);
  // Runs on this thread what nobody has begun; returns how many jobs that were.
  int RunLeft();

  // As a handler gets it.
  xla::ffi::ThreadPool& ffi() { return ffi_; }

 private:
  static XLA_FFI_Error* ScheduleCall(XLA_FFI_ThreadPool_Schedule_Args* args);
  static XLA_FFI_Error* NumThreadsCall(XLA_FFI_ThreadPool_NumThreads_Args* args);
  static const XLA_FFI_Api* Api();
  static ThreadPool* Of(XLA_FFI_ExecutionContext* context);
  xla::ffi::ThreadPool Decode();
  void Work();

  const int claimed_;
  const bool on_caller_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
  xla::ffi::DiagnosticEngine diagnostic_;
  xla::ffi::ThreadPool ffi_;
};

}  // namespace mla::test

#endif  // MLA_TESTS_CSRC_THREAD_POOL_H_
