// Lets a benchmark include the library's gpu_launch.cc files, so that it launches what the library
// launches: stands in for gpu/runtime.h, and finds kernels by name among those of this program
// instead of in embedded images. Goes before every header of the library.
#ifndef MLA_BENCHMARKS_GPU_LAUNCHERS_H_
#define MLA_BENCHMARKS_GPU_LAUNCHERS_H_

#include <cstdint>
#include <cstring>

#include "graph.h"

#if defined(MLA_GPU_RUNTIME_H_)
#error "launchers.h goes before gpu/runtime.h"
#endif
#define MLA_GPU_RUNTIME_H_
#define MLA_GPU

namespace xla {
namespace ffi {

// What fails ends the program.
struct Error {
  static Error Success() { return {}; }
  bool failure() const { return false; }
};

}  // namespace ffi
}  // namespace xla

namespace mla {
namespace gpu {

struct Stream {
  void* handle;
};
struct Image {};
struct Kernel {
  const Image* image;
  const char* name;
};

constexpr int64_t CeilDiv(int64_t count, int64_t size) { return (count + size - 1) / size; }

// The kernels of this program that launchers may ask for: the program says which, and ends the list
// with a null name.
struct NamedKernel {
  const char* name;
  const void* kernel;
};
extern const NamedKernel kNamedKernels[];
#define MLA_NAMED_KERNEL(name) {#name, reinterpret_cast<const void*>(&name)}

inline xla::ffi::Error Launch(const Kernel& kernel, int64_t blocks, int threads,
                              size_t shared_bytes, Stream stream, const void* args) {
  const NamedKernel* found = kNamedKernels;
  while (found->name != nullptr && std::strcmp(found->name, kernel.name) != 0) ++found;
  if (found->name == nullptr) {
    std::fprintf(stderr, "%s: not among the kernels of this benchmark\n", kernel.name);
    std::exit(1);
  }
  Check(cudaFuncSetAttribute(found->kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes)),
        kernel.name);
  void* params[] = {const_cast<void*>(args)};
  Check(cudaLaunchKernel(found->kernel, dim3(static_cast<unsigned>(blocks)),
                         dim3(static_cast<unsigned>(threads)), params, shared_bytes,
                         static_cast<cudaStream_t>(stream.handle)),
        kernel.name);
  return xla::ffi::Error::Success();
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_BENCHMARKS_GPU_LAUNCHERS_H_
