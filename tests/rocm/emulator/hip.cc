// The stand-in for libamdhip64: the few entry points of HIP that the runtime binds, over the
// emulator. Nothing here runs on AMD hardware.
#include <memory>
#include <mutex>
#include <set>

#include "launch.h"
#include "table.h"

using namespace emulator;

namespace {

struct State {
  std::mutex mutex;
  Architecture architecture = Architecture::gfx942;
  std::vector<Range> buffers;
  int order = 0;
  uint64_t budget = 100'000'000;
  std::string error, histogram, names;
  LaunchReport last;
  std::set<const void*> modules;
  std::set<std::string> launched;
};

State& state() {
  static State* const one =
      new State;  // never destroyed: a module may be unloaded after static destructors
  return *one;
}

struct Function {
  const CodeObject* object;
  const Kernel* kernel;
};
struct Module {
  std::unique_ptr<CodeObject> object;
  std::vector<std::unique_ptr<Function>> functions;
};

std::string joined(const std::set<std::string>& names, const char* between) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : between) + name;
  return text;
}

// Every entry point returns an error code and leaves the sentence for emu_last_error.
template <class F>
int guarded(F f) {
  const std::lock_guard<std::mutex> lock(state().mutex);
  try {
    f();
    return kSuccess;
  } catch (const Fault& fault) {
    state().error = fault.what();
    return fault.code;
  } catch (const std::exception& error) {
    state().error = error.what();
    return kInvalidValue;
  }
}

}  // namespace

extern "C" {

int hipModuleLoadData(void** module, const void* image) {
  return guarded([&] {
    if (!module || !image) throw Fault(kInvalidValue, "hipModuleLoadData: a null pointer");
    auto loaded = std::make_unique<Module>();
    loaded->object = std::make_unique<CodeObject>(image, state().architecture);
    state().modules.insert(loaded.get());
    *module = loaded.release();
  });
}

int hipModuleUnload(void* module) {
  return guarded([&] {
    if (!state().modules.erase(module))
      throw Fault(kInvalidHandle, "hipModuleUnload: not a loaded module");
    delete static_cast<Module*>(module);
  });
}

int hipModuleGetFunction(void** function, void* module, const char* name) {
  return guarded([&] {
    if (!state().modules.count(module))
      throw Fault(kInvalidHandle, "hipModuleGetFunction: not a loaded module");
    auto& loaded = *static_cast<Module*>(module);
    const Kernel* kernel = loaded.object->find(name);
    if (!kernel)
      throw Fault(kNotFound, "no kernel " + std::string(name) + " in the code object (it has: " +
                                 joined(loaded.object->kernel_names(), ", ") + ")");
    if (!kernel->problems.empty()) {
      std::string list;
      for (const std::string& problem : kernel->problems) list += "\n  " + problem;
      throw Fault(kInvalidDeviceFunction, "kernel " + kernel->name + " cannot be emulated:" + list);
    }
    loaded.functions.push_back(std::make_unique<Function>(Function{loaded.object.get(), kernel}));
    *function = loaded.functions.back().get();
  });
}

int hipModuleLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                          unsigned block_x, unsigned block_y, unsigned block_z,
                          unsigned shared_bytes, void*, void** parameters, void** extra) {
  return guarded([&] {
    if (!function) throw Fault(kInvalidHandle, "hipModuleLaunchKernel: no function");
    if (extra)
      throw Fault(kInvalidValue,
                  "hipModuleLaunchKernel: the `extra` form of arguments is not emulated");
    const auto& [object, kernel] = *static_cast<Function*>(function);
    LaunchRequest request;
    request.grid = {grid_x, grid_y, grid_z};
    request.block = {block_x, block_y, block_z};
    request.dynamic_lds_bytes = shared_bytes;
    request.budget = state().budget;
    request.order = state().order;
    request.buffers = state().buffers;
    std::vector<uint8_t> arguments(size_t(kernel->argument_bytes), 0);
    size_t next = 0;
    for (const KernelArgument& argument : kernel->arguments) {
      if (argument.kind.rfind("hidden_", 0) == 0) continue;
      if (!parameters || !parameters[next])
        throw Fault(kInvalidValue,
                    "hipModuleLaunchKernel: an argument of " + kernel->name + " is null");
      std::memcpy(arguments.data() + argument.offset, parameters[next++], size_t(argument.bytes));
    }
    state().last = run_kernel(*object, *kernel, request, std::move(arguments));
    state().launched.insert(kernel->name);
  });
}

int hipFuncSetAttribute(const void* function, int, int) {
  return guarded([&] {
    if (!function) throw Fault(kInvalidHandle, "hipFuncSetAttribute: no function");
  });
}

int hipGetDevice(int* device) {
  return guarded([&] {
    if (!device) throw Fault(kInvalidValue, "hipGetDevice: a null pointer");
    *device = 0;
  });
}

const char* hipGetErrorString(int error) {
  switch (error) {
    case kSuccess:
      return "no error";
    case kInvalidValue:
      return "invalid argument";
    case kInvalidConfiguration:
      return "invalid configuration argument";
    case kInvalidDeviceFunction:
      return "invalid device function";
    case kInvalidImage:
      return "device kernel image is invalid";
    case kNoBinaryForGpu:
      return "no kernel image is available for execution on the device";
    case kInvalidHandle:
      return "invalid resource handle";
    case kNotFound:
      return "named symbol not found";
    case kIllegalAddress:
      return "an illegal memory access was encountered";
    case kLaunchTimeOut:
      return "the launch timed out and was terminated";
    case kLaunchFailure:
      return "unspecified launch failure";
    default:
      return "unknown error";
  }
}

// The tests' own entry points.

int emu_set_arch(const char* name) {
  return guarded([&] {
    const std::string given = name;
    if (given == "gfx942")
      state().architecture = Architecture::gfx942;
    else if (given == "gfx950")
      state().architecture = Architecture::gfx950;
    else
      throw Fault(kInvalidValue, "emu_set_arch: expected gfx942 or gfx950, got " + given);
  });
}

int emu_register_buffer(const void* address, uint64_t bytes) {
  return guarded(
      [&] { state().buffers.push_back({reinterpret_cast<uint64_t>(address), bytes, true}); });
}

int emu_clear_buffers() {
  return guarded([&] { state().buffers.clear(); });
}

int emu_set_wave_order(int order) {
  return guarded([&] {
    if (order < 0)
      throw Fault(kInvalidValue,
                  "emu_set_wave_order: expected 0 or more, got " + std::to_string(order));
    state().order = order;
  });
}

int emu_set_budget(uint64_t instructions) {
  return guarded([&] { state().budget = instructions; });
}

// Every mnemonic with a meaning, without encoding suffixes, one a line.
const char* emu_instruction_names() {
  static const std::string names = [] {
    std::set<std::string> sorted;
    for (const auto& [name, meaning] : instruction_table()) sorted.insert(name);
    return joined(sorted, "\n");
  }();
  return names.c_str();
}

// The kernels of a loaded module, one a line. This text and the next function's stay until either
// is called again.
const char* emu_kernel_names(const void* module) {
  const std::lock_guard<std::mutex> lock(state().mutex);
  state().names = joined(static_cast<const Module*>(module)->object->kernel_names(), "\n");
  return state().names.c_str();
}

// The kernels that have run to their end in this process, one a line.
const char* emu_launched_kernels() {
  const std::lock_guard<std::mutex> lock(state().mutex);
  state().names = joined(state().launched, "\n");
  return state().names.c_str();
}

// The text of the last failure; it stays until the next one.
const char* emu_last_error() { return state().error.c_str(); }

// Wave-instructions, LDS bytes and global bytes of the last launch; returns its mnemonics, one
// "name count" a line.
const char* emu_counters(uint64_t* instructions, uint64_t* lds_bytes, uint64_t* global_bytes) {
  const std::lock_guard<std::mutex> lock(state().mutex);
  const LaunchReport& last = state().last;
  if (instructions) *instructions = last.instructions;
  if (lds_bytes) *lds_bytes = last.lds_bytes;
  if (global_bytes) *global_bytes = last.global_bytes;
  std::string& text = state().histogram;
  text.clear();
  for (const auto& [name, count] : last.histogram)
    text += name + " " + std::to_string(count) + "\n";
  return text.c_str();
}

}  // extern "C"
