// Python module _cpu: hands the FFI handlers to JAX and tells what this binary was built for.
#include <pybind11/pybind11.h>

#include "common/isa.h"
#include "python/handlers.h"

namespace py = pybind11;

#define MLA_TEXT_(x) #x
#define MLA_TEXT(x) MLA_TEXT_(x)

#if defined(__clang__)
#define MLA_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define MLA_COMPILER "gcc " __VERSION__
#else
#define MLA_COMPILER "unknown"
#endif

#if defined(__x86_64__)
#define MLA_ARCHITECTURE "x86-64"
#elif defined(__aarch64__)
#define MLA_ARCHITECTURE "aarch64"
#else
#define MLA_ARCHITECTURE "other"
#endif

// Levels this binary holds, as JSON list items.
#define MLA_ISA_ITEMS                                                             \
  "\"baseline\"" MLA_IF_AVX2(", \"avx2\"") MLA_IF_AVX512(", \"avx512\"")          \
      MLA_IF_AVX512VNNI(", \"avx512vnni\"") MLA_IF_AVX512BF16(", \"avx512bf16\"") \
          MLA_IF_AMX(", \"amx\"")

// The same record as abi(), as far as it is known at compile time: a loader reads it with ctypes
// before it trusts the rest of the file.
#define MLA_JSON_OP(op, contract) "\"mla_jax." #op "\": " #contract
extern "C" __attribute__((visibility("default"), used)) const char mla_jax_cpu_abi[] =
    "{\"project_abi\": " MLA_TEXT(MLA_PROJECT_ABI) ", \"platform\": \"cpu\", \"ffi_api\": ["
    MLA_TEXT(XLA_FFI_API_MAJOR) ", " MLA_TEXT(XLA_FFI_API_MINOR) "], \"architectures\": [\"" MLA_ARCHITECTURE "\"], \"isa_built\": ["
    MLA_ISA_ITEMS "], \"compiler\": \"" MLA_COMPILER "\", \"ops\": {" MLA_FOR_EACH_TARGET(MLA_JSON_OP, ", ") "}}";

namespace {

py::dict Registrations() {
  py::dict result;
#define MLA_REGISTER(op, contract)        \
  result[MLA_TARGET_NAME(op, contract)] = \
      py::capsule(reinterpret_cast<void*>(&MLA_TARGET_HANDLER(op, contract)));
  MLA_FOR_EACH_TARGET(MLA_REGISTER, )
#undef MLA_REGISTER
  return result;
}

py::dict Abi() {
  py::dict ops;
#define MLA_CONTRACT(op, contract) ops[MLA_OP_NAME(op)] = contract;
  MLA_FOR_EACH_TARGET(MLA_CONTRACT, )
#undef MLA_CONTRACT
  py::list built;
  for (int i = 0; i < mla::kIsaCount; ++i) {
    const auto isa = static_cast<mla::Isa>(i);
    if (mla::IsaBuilt(isa)) built.append(mla::IsaName(isa));
  }
  py::dict result;
  result["project_abi"] = MLA_PROJECT_ABI;
  result["platform"] = "cpu";
  result["ffi_api"] = py::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
  result["architectures"] = py::make_tuple(MLA_ARCHITECTURE);
  result["ops"] = ops;
  result["isa_built"] = built;
  result["isa"] = mla::IsaName(mla::ChosenIsa());
  if (mla::IsaError() != nullptr) {
    result["error"] = mla::IsaError();
  } else {
    result["error"] = py::none();
  }
  result["compiler"] = MLA_COMPILER;
  return result;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "XLA FFI handlers for the CPU.";
  m.def("registrations", &Registrations, "Target name -> capsule of the handler.");
  m.def("abi", &Abi, "What this binary was built for and which instruction set it uses.");
}
