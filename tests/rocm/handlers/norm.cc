// An FFI handler that launches the norm kernel through whatever libamdhip64.so.7 the process holds
// already.
#include <dlfcn.h>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

template <class F>
F hip(const char* name) {
  void* library = dlopen("libamdhip64.so.7", RTLD_NOW | RTLD_NOLOAD);
  return library ? reinterpret_cast<F>(dlsym(library, name)) : nullptr;
}

ffi::Error Norm(ffi::Buffer<ffi::U8> image, ffi::Buffer<ffi::BF16> x, ffi::Buffer<ffi::BF16> weight,
                ffi::ResultBuffer<ffi::BF16> y, float epsilon) {
  const auto load = hip<int (*)(void**, const void*)>("hipModuleLoadData");
  const auto unload = hip<int (*)(void*)>("hipModuleUnload");
  const auto find = hip<int (*)(void**, void*, const char*)>("hipModuleGetFunction");
  const auto launch = hip<int (*)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                  unsigned, void*, void**, void**)>("hipModuleLaunchKernel");
  const auto text = hip<const char* (*)(int)>("hipGetErrorString");
  if (!load || !unload || !find || !launch || !text)
    return ffi::Error::Internal("no libamdhip64.so.7 is loaded");
  void *module = nullptr, *function = nullptr;
  int error = load(&module, image.typed_data());
  if (!error) error = find(&function, module, "norm");
  if (!error) {
    const void *in = x.untyped_data(), *scale = weight.untyped_data();
    void* out = y->untyped_data();
    int columns = int(x.dimensions()[1]);
    void* arguments[] = {&in, &scale, &out, &columns, &epsilon};
    error = launch(function, unsigned(x.dimensions()[0]), 1, 1, 256, 1, 1, 0, nullptr, arguments,
                   nullptr);
  }
  if (module) unload(module);
  return error ? ffi::Error::Internal(text(error)) : ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(NormHandler, Norm,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Ret<ffi::Buffer<ffi::BF16>>()
                                  .Attr<float>("epsilon"));
