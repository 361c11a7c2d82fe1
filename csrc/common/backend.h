// What an FFI handler gets from XLA to run its kernel on: the CPU's thread pool or a GPU's stream.
// A handler is written once; the library that it is compiled into decides.
#ifndef MLA_COMMON_BACKEND_H_
#define MLA_COMMON_BACKEND_H_

#include <optional>

#include "xla/ffi/api/ffi.h"

#if defined(MLA_GPU)
#include "gpu/runtime.h"
#else
#include "common/parallel_for.h"
#endif

namespace mla {

#if defined(MLA_GPU)
using Backend = gpu::Stream;

// Launches a kernel and says whether that could be done.
#define MLA_RUN(name, Args, args, backend) mla::gpu::name(args, backend)

// Command buffers record a handler's launches once and replay them.
#define MLA_TRAITS {xla::ffi::Traits::kCmdBufferCompatible}
#else
struct Backend {
  xla::ffi::ThreadPool pool;
};

#define MLA_RUN(name, Args, args, backend) mla::RunOnCpu(MLA_KERNEL(name, Args), args, backend)
#define MLA_TRAITS \
  {                \
  }

template <typename Args>
xla::ffi::Error RunOnCpu(void (*kernel)(const Args&, const Executor&), const Args& args,
                         Backend& backend) {
  kernel(args, PoolExecutor(backend.pool));
  return xla::ffi::Error::Success();
}
#endif

}  // namespace mla

namespace xla::ffi {

template <>
struct CtxDecoding<mla::Backend> {
  using Type = mla::Backend;

  static std::optional<Type> Decode([[maybe_unused]] const XLA_FFI_Api* api,
                                    [[maybe_unused]] XLA_FFI_ExecutionContext* ctx,
                                    [[maybe_unused]] DiagnosticEngine& diagnostic) {
#if !defined(MLA_GPU)
    auto pool = CtxDecoding<ThreadPool>::Decode(api, ctx, diagnostic);
    if (!pool.has_value()) return std::nullopt;
    return Type{*pool};
#elif defined(MLA_GPU_EMULATED)
    return Type{nullptr};
#else
    auto stream = CtxDecoding<PlatformStream<void*> >::Decode(api, ctx, diagnostic);
    if (!stream.has_value()) return std::nullopt;
    return Type{*stream};
#endif
  }
};

}  // namespace xla::ffi

#endif  // MLA_COMMON_BACKEND_H_
