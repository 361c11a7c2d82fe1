// libcuda, bound by name.
#include <dlfcn.h>

#include "gpu/driver.h"

namespace mla {
namespace gpu {
namespace {

int (*get_error_string)(int code, const char** text) = nullptr;

std::string ErrorText(int code) {
  const char* text = nullptr;
  return get_error_string(code, &text) == 0 && text != nullptr ? text : "unknown error";
}

template <typename Fn>
void Bind(void* handle, const char* name, Fn*& fn, std::string& problem) {
  fn = reinterpret_cast<Fn*>(dlsym(handle, name));
  if (fn == nullptr && problem.empty()) problem = std::string("libcuda has no ") + name;
}

Driver Open() {
  Driver driver = {};
  void* handle = dlopen("libcuda.so.1", RTLD_NOW);
  if (handle == nullptr) {
    driver.problem = "libcuda cannot be opened: no NVIDIA driver is installed";
    return driver;
  }
  Bind(handle, "cuModuleLoadData", driver.module_load, driver.problem);
  Bind(handle, "cuModuleGetFunction", driver.module_function, driver.problem);
  Bind(handle, "cuFuncSetAttribute", driver.allow_shared_bytes, driver.problem);
  Bind(handle, "cuLaunchKernel", driver.launch, driver.problem);
  Bind(handle, "cuCtxGetCurrent", driver.current_context, driver.problem);
  Bind(handle, "cuGetErrorString", get_error_string, driver.problem);
  driver.error_text = &ErrorText;
  return driver;
}

}  // namespace

const Driver& TheDriver() {
  static const Driver driver = Open();
  return driver;
}

}  // namespace gpu
}  // namespace mla
