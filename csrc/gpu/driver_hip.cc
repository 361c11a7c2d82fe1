// libamdhip64, bound by name.
#include <cstdint>

#include "gpu/driver.h"

namespace mla {
namespace gpu {
namespace {

int (*get_device)(int* device) = nullptr;
const char* (*get_error_string)(int code) = nullptr;

int CurrentContext(void** context) {
  int device = -1;
  const int code = get_device(&device);
  *context = reinterpret_cast<void*>(static_cast<intptr_t>(device) + 1);
  return code;
}

std::string ErrorText(int code) {
  const char* text = get_error_string(code);
  return text != nullptr ? text : "unknown error";
}

void* OpenLibrary() {
  // The copy that is already loaded shares JAX's streams; of several versions, that one is it.
  const char* const names[] = {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so"};
  for (const char* name : names) {
    if (void* handle = dlopen(name, RTLD_NOW | RTLD_NOLOAD)) return handle;
  }
  for (const char* name : names) {
    if (void* handle = dlopen(name, RTLD_NOW)) return handle;
  }
  return nullptr;
}

}  // namespace

Driver OpenDriver() {
  Driver driver = {};
  void* handle = OpenLibrary();
  if (handle == nullptr) {
    driver.problem =
        "libamdhip64 cannot be opened: ROCm is not installed or not in the library path";
    return driver;
  }
  Bind(handle, "hipModuleLoadData", driver.module_load, driver);
  Bind(handle, "hipModuleGetFunction", driver.module_function, driver);
  Bind(handle, "hipModuleLaunchKernel", driver.launch, driver);
  Bind(handle, "hipGetDevice", get_device, driver);
  Bind(handle, "hipGetErrorString", get_error_string, driver);
  driver.current_context = &CurrentContext;
  driver.error_text = &ErrorText;
  return driver;
}

}  // namespace gpu
}  // namespace mla
