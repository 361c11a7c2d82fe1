// Python module of a GPU platform: hands the FFI handlers to JAX and tells what it was built for.
//
// The build defines MLA_MODULE (the module's name), MLA_PLATFORM ("rocm" or "cuda") and
// MLA_ARCHITECTURES (names, comma-separated).
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "gpu/platform.h"
#include "gpu/runtime.h"
#include "python/gpu_handlers.h"
#include "xla/ffi/api/ffi.h"

namespace py = pybind11;

XLA_FFI_DEFINE_HANDLER_SYMBOL(mla_jax_load_images, mla::gpu::LoadImages,
                              xla::ffi::Ffi::BindInitialize());

namespace {

py::capsule Handler(XLA_FFI_Handler* handler) {
  return py::capsule(reinterpret_cast<void*>(handler));
}

// On a CPU, where only the emulator's tests put these handlers, there is no stage before execution.
py::object Stages(XLA_FFI_Handler* execute) {
#if defined(MLA_GPU_EMULATED)
  return Handler(execute);
#else
  py::dict stages;
  stages["initialize"] = Handler(&mla_jax_load_images);
  stages["execute"] = Handler(execute);
  return stages;
#endif
}

py::dict Registrations() {
  py::dict result;
#define MLA_REGISTER(op, contract) \
  result[MLA_TARGET_NAME(op, contract)] = Stages(&MLA_TARGET_HANDLER(op, contract));
  MLA_FOR_EACH_GPU_TARGET(MLA_REGISTER)
#undef MLA_REGISTER
  return result;
}

py::dict Abi() {
  py::dict ops;
#define MLA_CONTRACT(op, contract) ops[MLA_OP_NAME(op)] = contract;
  MLA_FOR_EACH_GPU_TARGET(MLA_CONTRACT)
#undef MLA_CONTRACT
  py::list architectures;
  std::istringstream names(MLA_ARCHITECTURES);
  for (std::string name; std::getline(names, name, ',');) architectures.append(name);
  py::dict result;
  result["project_abi"] = MLA_PROJECT_ABI;
#if defined(MLA_GPU_EMULATED)
  result["platform"] = "cpu";
  result["emulates"] = MLA_PLATFORM;
#else
  result["platform"] = MLA_PLATFORM;
#endif
  result["ffi_api"] = py::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
  result["architectures"] = py::tuple(architectures);
  result["ops"] = ops;
  result["processors"] = mla::gpu::kProcessors;
  return result;
}

}  // namespace

PYBIND11_MODULE(MLA_MODULE, m) {
  m.doc() = "XLA FFI handlers for " MLA_PLATFORM ".";
  m.def("registrations", &Registrations, "Target name -> capsules of its handler's stages.");
  m.def("abi", &Abi, "What this binary was built for.");
}
