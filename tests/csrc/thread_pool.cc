// The pool and its C interface. The execution context, opaque to handlers, is the pool itself.
#include "thread_pool.h"

#include <utility>

namespace mla::test {

ThreadPool::ThreadPool(int claimed, int running, bool on_caller)
    : claimed_(claimed), on_caller_(on_caller), ffi_(Decode()) {
  for (int i = 0; i < running; ++i) threads_.emplace_back([this] { Work(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  RunLeft();
}

void ThreadPool::Schedule(std::function<void()> job) {
  if (on_caller_) return job();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  changed_.notify_one();
}

int ThreadPool::RunLeft() {
  int count = 0;
  for (;; ++count) {
    std::function<void()> job;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (jobs_.empty()) return count;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
}

void ThreadPool::Work() {
  for (;;) {
    std::function<void()> job;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
}

ThreadPool* ThreadPool::Of(XLA_FFI_ExecutionContext* context) {
  return reinterpret_cast<ThreadPool*>(context);
}

XLA_FFI_Error* ThreadPool::ScheduleCall(XLA_FFI_ThreadPool_Schedule_Args* args) {
  Of(args->ctx)->Schedule([task = args->task, data = args->data] { task(data); });
  return nullptr;
}

XLA_FFI_Error* ThreadPool::NumThreadsCall(XLA_FFI_ThreadPool_NumThreads_Args* args) {
  *args->num_threads = Of(args->ctx)->claimed_;
  return nullptr;
}

const XLA_FFI_Api* ThreadPool::Api() {
  static const XLA_FFI_Api* api = [] {
    auto* made = new XLA_FFI_Api();
    made->struct_size = XLA_FFI_Api_STRUCT_SIZE;
    made->XLA_FFI_ThreadPool_Schedule = &ScheduleCall;
    made->XLA_FFI_ThreadPool_NumThreads = &NumThreadsCall;
    return made;
  }();
  return api;
}

xla::ffi::ThreadPool ThreadPool::Decode() {
  auto* context = reinterpret_cast<XLA_FFI_ExecutionContext*>(this);
  return *xla::ffi::CtxDecoding<xla::ffi::ThreadPool>::Decode(Api(), context, diagnostic_);
}

}  // namespace mla::test
