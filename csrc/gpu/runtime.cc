// Modules and functions are looked up once a context and kept: a launch is one look-up and one
// call.
#include "gpu/runtime.h"

#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "gpu/driver.h"

#if defined(MLA_GPU_EMULATED)
#include <dlfcn.h>
#endif

namespace mla {
namespace gpu {
namespace {

using xla::ffi::Error;

// A block's dynamic shared memory beyond this must be asked for, once a kernel.
constexpr size_t kSharedWithoutAsking = 48 << 10;
constexpr int64_t kMostBlocks = INT32_MAX;
constexpr int kMaxDynamicSharedSize = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

const Driver& TheDriver() {
  static const Driver driver = OpenDriver();
  return driver;
}

struct Cache {
  std::mutex mutex;
  std::map<std::pair<void*, const Image*>, Module> modules;
  std::map<std::pair<void*, const char*>, Function> functions;
};

Cache& TheCache() {
  static Cache cache;
  return cache;
}

Error Failed(const std::string& what, int code) {
  std::string text = TheDriver().error_text(code);
#if defined(MLA_GPU_EMULATED)
  void* handle = dlopen("libamdhip64.so.7", RTLD_NOW | RTLD_NOLOAD);
  text +=
      std::string("\n") + reinterpret_cast<const char* (*)()>(dlsym(handle, "emu_last_error"))();
#endif
  return Error::Internal("mla_jax: " + what + ": " + text + " (code " + std::to_string(code) + ")");
}

Error Context(void** context) {
  const Driver& driver = TheDriver();
  if (!driver.problem.empty()) return Error(xla::ffi::ErrorCode::kUnavailable, driver.problem);
  const int code = driver.current_context(context);
  return code == 0 ? Error::Success() : Failed("asking for the current device", code);
}

// The cache's mutex is held.
Error Load(Cache& cache, void* context, const Image* image, Module* module) {
  const auto key = std::make_pair(context, image);
  const auto found = cache.modules.find(key);
  if (found == cache.modules.end()) {
    const int code = TheDriver().module_load(module, image->data);
    if (code != 0) return Failed("loading kernels onto this device", code);
    cache.modules.emplace(key, *module);
  } else {
    *module = found->second;
  }
  return Error::Success();
}

Error Find(const Kernel& kernel, size_t shared_bytes, Function* function) {
  void* context = nullptr;
  if (Error error = Context(&context); error.failure()) return error;
  Cache& cache = TheCache();
  const std::lock_guard<std::mutex> lock(cache.mutex);
  const auto key = std::make_pair(context, kernel.name);
  const auto found = cache.functions.find(key);
  if (found != cache.functions.end()) {
    *function = found->second;
    return Error::Success();
  }
  Module module = nullptr;
  if (Error error = Load(cache, context, kernel.image, &module); error.failure()) return error;
  int code = TheDriver().module_function(function, module, kernel.name);
  if (code == 0 && shared_bytes > kSharedWithoutAsking &&
      TheDriver().allow_shared_bytes != nullptr) {
    code = TheDriver().allow_shared_bytes(*function, kMaxDynamicSharedSize,
                                          static_cast<int>(shared_bytes));
  }
  if (code != 0) return Failed(std::string("looking up kernel ") + kernel.name, code);
  cache.functions.emplace(key, *function);
  return Error::Success();
}

#if defined(MLA_GPU_EMULATED)
thread_local std::vector<std::pair<const void*, size_t>> allowed;

// Hands the memory that this call's launches may touch to the emulator, which is the driver then.
void AnnounceMemory() {
  void* handle = dlopen("libamdhip64.so.7", RTLD_NOW | RTLD_NOLOAD);
  auto* clear = reinterpret_cast<void (*)()>(dlsym(handle, "emu_clear_buffers"));
  auto* add = reinterpret_cast<void (*)(const void*, size_t)>(dlsym(handle, "emu_register_buffer"));
  clear();
  for (const auto& [data, bytes] : allowed) add(data, bytes);
}
#endif

}  // namespace

#if defined(MLA_GPU_EMULATED)
void ForgetMemory() { allowed.clear(); }
void AllowMemory(const void* data, size_t bytes) { allowed.emplace_back(data, bytes); }
#endif

Error LoadImages() {
  void* context = nullptr;
  if (Error error = Context(&context); error.failure()) return error;
  Cache& cache = TheCache();
  const std::lock_guard<std::mutex> lock(cache.mutex);
  for (size_t i = 0; i < kImageCount; ++i) {
    Module module = nullptr;
    if (Error error = Load(cache, context, kImages[i], &module); error.failure()) return error;
  }
  return Error::Success();
}

Error Launch(const Kernel& kernel, int64_t blocks, int threads, size_t shared_bytes, Stream stream,
             const void* args) {
  if (blocks == 0) return Error::Success();
  if (blocks > kMostBlocks) {
    return Error::InvalidArgument(std::string(kernel.name) + ": expected at most " +
                                  std::to_string(kMostBlocks) + " blocks, got " +
                                  std::to_string(blocks));
  }
  Function function = nullptr;
  if (Error error = Find(kernel, shared_bytes, &function); error.failure()) return error;
#if defined(MLA_GPU_EMULATED)
  // XLA may run independent calls at once; what one announces must still hold when it is launched.
  static std::mutex emulator;
  const std::lock_guard<std::mutex> lock(emulator);
  AnnounceMemory();
#endif
  void* params[] = {const_cast<void*>(args)};
  const int code = TheDriver().launch(
      function, static_cast<unsigned>(blocks), 1, 1, static_cast<unsigned>(threads), 1, 1,
      static_cast<unsigned>(shared_bytes), stream.handle, params, nullptr);
  return code == 0 ? Error::Success() : Failed(std::string("launching ") + kernel.name, code);
}

}  // namespace gpu
}  // namespace mla
