// The GPU driver as far as handlers need it: load a code object, launch a kernel of it.
//
// libamdhip64 or libcuda is opened when it is first needed, from the copy that JAX's plugin has
// loaded, so that this library can be imported on a machine without either.
#ifndef MLA_GPU_RUNTIME_H_
#define MLA_GPU_RUNTIME_H_

#include <cstddef>
#include <cstdint>

#include "xla/ffi/api/ffi.h"

namespace mla {
namespace gpu {

struct Stream {
  void* handle;
};

// The machine code of one op, for every architecture that was built.
struct Image {
  const void* data;
};

// A kernel by its name in an image; both live as long as the program.
struct Kernel {
  const Image* image;
  const char* name;
};

// Blocks of `size` that cover `count`.
constexpr int64_t CeilDiv(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Launches a kernel whose only argument is a struct. No block at all launches nothing.
// `shared_bytes` beyond 48 KiB are the same at every launch of a kernel.
xla::ffi::Error Launch(const Kernel& kernel, int64_t blocks, int threads, size_t shared_bytes,
                       Stream stream, const void* args);

// Loads every image into the current device's context: not allowed while a command buffer records,
// and therefore a stage of its own before execution.
xla::ffi::Error LoadImages();

// The embedded images, see embed.cc.in.
extern const Image* const kImages[];
extern const size_t kImageCount;

#if defined(MLA_GPU_EMULATED)
// Memory that a call's launches may touch: none at first, then what is allowed.
void ForgetMemory();
void AllowMemory(const void* data, size_t bytes);
#endif

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_RUNTIME_H_
