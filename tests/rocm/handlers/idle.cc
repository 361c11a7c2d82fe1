// An FFI handler that leaves every result as it finds it.
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

ffi::Error Idle(ffi::RemainingArgs, ffi::RemainingRets) { return ffi::Error::Success(); }

}  // namespace

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* IdleHandler(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(IdleHandler, Idle, ffi::Ffi::Bind().RemainingArgs().RemainingRets());
