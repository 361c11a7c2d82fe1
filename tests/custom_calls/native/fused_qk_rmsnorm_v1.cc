// A library as it was before contract 2 of mla_jax.fused_qk_rmsnorm: operands by position, results
// of their own. Built by tests/custom_calls/native_libraries.py, together with the kernel of csrc.
#include <Python.h>

#include <cstring>

#include "fused_qk_rmsnorm/kernel.h"
#include "xla/ffi/api/ffi.h"

namespace mla {
namespace {

namespace ffi = xla::ffi;

class Serial final : public Executor {
 public:
  void Run(int64_t n_tasks, double, TaskFn fn, void* context) const override {
    for (int64_t i = 0; i < n_tasks; ++i) fn(context, i);
  }
  int Threads() const override { return 1; }
};

DType Type(const ffi::AnyBuffer& buffer) {
  return buffer.element_type() == ffi::DataType::BF16 ? DType::kBF16 : DType::kF32;
}

NormedRows Rows(const ffi::AnyBuffer& x, const ffi::AnyBuffer& weight, const ffi::AnyBuffer& eps,
                const ffi::AnyBuffer& y) {
  std::memcpy(y.untyped_data(), x.untyped_data(), x.size_bytes());
  const int64_t n = x.dimensions()[1];
  return {y.untyped_data(), weight.untyped_data(), Type(weight), n, n, *eps.typed_data<float>()};
}

ffi::Error Call(ffi::AnyBuffer q, ffi::AnyBuffer q_weight, ffi::AnyBuffer q_eps, ffi::AnyBuffer k,
                ffi::AnyBuffer k_weight, ffi::AnyBuffer k_eps, ffi::Result<ffi::AnyBuffer> q_out,
                ffi::Result<ffi::AnyBuffer> k_out) {
  if (q_out->untyped_data() == q.untyped_data() || k_out->untyped_data() == k.untyped_data()) {
    return ffi::Error::Internal("contract 1 returns fresh results");
  }
  FusedQkRmsNormArgs args = {};
  args.io_type = Type(q);
  args.rows = q.dimensions()[0];
  args.q = Rows(q, q_weight, q_eps, *q_out);
  args.kv = Rows(k, k_weight, k_eps, *k_out);
  baseline::FusedQkRmsNorm(args, Serial());
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER(kHandler, Call,
                       ffi::Ffi::Bind()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>());

PyObject* Abi(PyObject*, PyObject*) {
  return Py_BuildValue("{s:i,s:s,s:(ii),s:(s),s:{s:i}}", "project_abi", 1, "platform", "cpu",
                       "ffi_api", XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR, "architectures", "x86-64",
                       "ops", "mla_jax.fused_qk_rmsnorm", 1);
}

PyObject* Registrations(PyObject*, PyObject*) {
  return Py_BuildValue("{s:N}", "mla_jax.fused_qk_rmsnorm.v1",
                       PyCapsule_New(reinterpret_cast<void*>(+kHandler), nullptr, nullptr));
}

PyMethodDef methods[] = {{"abi", Abi, METH_NOARGS, nullptr},
                         {"registrations", Registrations, METH_NOARGS, nullptr},
                         {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT,
                      "fused_qk_rmsnorm_v1",
                      nullptr,
                      -1,
                      methods,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};

}  // namespace
}  // namespace mla

PyMODINIT_FUNC PyInit_fused_qk_rmsnorm_v1() { return PyModule_Create(&mla::module); }
