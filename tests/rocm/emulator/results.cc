// FFI handlers whose results hold poison when they begin: what a call leaves unwritten then shows,
// and what an earlier call left in the same memory does not.
#include <array>
#include <cstring>
#include <mutex>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace {

constexpr size_t kMostHandlers = 64;

XLA_FFI_Handler* handlers[kMostHandlers] = {};
size_t handler_count = 0;
std::mutex mutex;

bool in_place(const XLA_FFI_CallFrame& call, const void* result) {
  for (int64_t i = 0; i < call.args.size; ++i)
    if (static_cast<const XLA_FFI_Buffer*>(call.args.args[i])->data == result) return true;
  return false;
}

// Ones: a NaN as float32, bfloat16 and OCP fp8. An argument that is updated in place keeps its
// values.
void poison_results(const XLA_FFI_CallFrame& call) {
  for (int64_t i = 0; i < call.rets.size; ++i) {
    const xla::ffi::AnyBuffer result(static_cast<const XLA_FFI_Buffer*>(call.rets.rets[i]));
    if (result.size_bytes() != 0 && !in_place(call, result.untyped_data()))
      std::memset(result.untyped_data(), 0xff, result.size_bytes());
  }
}

// A handler is a plain function without data of its own, so that there is one for each place.
template <size_t place>
XLA_FFI_Error* call_poisoned(XLA_FFI_CallFrame* call) {
  poison_results(*call);
  return handlers[place](call);
}

template <size_t... places>
constexpr std::array<XLA_FFI_Handler*, kMostHandlers> all_places(std::index_sequence<places...>) {
  return {&call_poisoned<places>...};
}

}  // namespace

// A handler that poisons its results once and then calls the given one; null where there are too
// many.
extern "C" XLA_FFI_Handler* emu_poisoning(XLA_FFI_Handler* handler) {
  static constexpr auto places = all_places(std::make_index_sequence<kMostHandlers>());
  const std::lock_guard<std::mutex> lock(mutex);
  size_t place = 0;
  while (place < handler_count && handlers[place] != handler) ++place;
  if (place == kMostHandlers) return nullptr;
  if (place == handler_count) handlers[handler_count++] = handler;
  return places[place];
}
