// The driver's entry points, under names that HIP and CUDA share.
#ifndef MLA_GPU_DRIVER_H_
#define MLA_GPU_DRIVER_H_

#include <dlfcn.h>

#include <string>

namespace mla {
namespace gpu {

using Module = void*;
using Function = void*;

struct Driver {
  int (*module_load)(Module* module, const void* image);
  int (*module_function)(Function* function, Module module, const char* name);
  // Null where a kernel may use all shared memory without asking.
  int (*allow_shared_bytes)(Function function, int attribute, int value);
  int (*launch)(Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                void* stream, void** params, void** extra);
  // What a loaded module belongs to: a HIP device or a CUDA context.
  int (*current_context)(void** context);
  std::string (*error_text)(int code);
  // Why the driver cannot be used; empty if it can.
  std::string problem;
};

// Binds the platform's driver: driver_hip.cc or driver_cuda.cc.
Driver OpenDriver();

// One entry point; what is missing first becomes the driver's problem.
template <typename Fn>
void Bind(void* handle, const char* name, Fn*& fn, Driver& driver) {
  fn = reinterpret_cast<Fn*>(dlsym(handle, name));
  if (fn == nullptr && driver.problem.empty())
    driver.problem = std::string("the driver has no ") + name;
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_DRIVER_H_
