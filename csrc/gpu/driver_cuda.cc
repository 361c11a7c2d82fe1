// libcuda, bound by name.
#include "gpu/driver.h"

namespace mla {
namespace gpu {
namespace {

int (*get_error_string)(int code, const char** text) = nullptr;

std::string ErrorText(int code) {
  const char* text = nullptr;
  return get_error_string(code, &text) == 0 && text != nullptr ? text : "unknown error";
}

}  // namespace

Driver OpenDriver() {
  Driver driver = {};
  void* handle = dlopen("libcuda.so.1", RTLD_NOW);
  if (handle == nullptr) {
    driver.problem = "libcuda cannot be opened: no NVIDIA driver is installed";
    return driver;
  }
  Bind(handle, "cuModuleLoadData", driver.module_load, driver);
  Bind(handle, "cuModuleGetFunction", driver.module_function, driver);
  Bind(handle, "cuFuncSetAttribute", driver.allow_shared_bytes, driver);
  Bind(handle, "cuLaunchKernel", driver.launch, driver);
  Bind(handle, "cuCtxGetCurrent", driver.current_context, driver);
  Bind(handle, "cuGetErrorString", get_error_string, driver);
  driver.error_text = &ErrorText;
  return driver;
}

}  // namespace gpu
}  // namespace mla
