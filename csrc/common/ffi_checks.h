// Checks of FFI arguments that name what was expected and what came.
#ifndef MLA_COMMON_FFI_CHECKS_H_
#define MLA_COMMON_FFI_CHECKS_H_

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "common/dtype.h"
#include "xla/ffi/api/ffi.h"

namespace mla {

namespace ffi = xla::ffi;

// A dimension of any size, for Shape().
constexpr int64_t kAny = -1;

// Collects the first thing that is wrong with a call.
class Checker {
 public:
  explicit Checker(const char* op);

  bool ok() const { return message_.empty(); }
  ffi::Error error() const {
    return ok() ? ffi::Error::Success() : ffi::Error::InvalidArgument(message_);
  }

  // The type of a buffer, which must be one of `allowed`.
  DType Type(const char* name, const ffi::AnyBuffer& buffer, std::initializer_list<DType> allowed);
  // The type must be `type`, the one of argument `other`.
  void SameType(const char* name, const ffi::AnyBuffer& buffer, DType type, const char* other);
  void Int32(const char* name, const ffi::AnyBuffer& buffer);
  void Rank(const char* name, const ffi::AnyBuffer& buffer, size_t rank);
  // Rank and dimensions; kAny matches every size.
  void Shape(const char* name, const ffi::AnyBuffer& buffer, std::initializer_list<int64_t> dims);
  // A result must be the argument's own buffer, which it updates in place.
  void Same(const char* name, const ffi::AnyBuffer& result, const char* other,
            const ffi::AnyBuffer& argument);
  // Scratch comes as `on_gpu` further results, on GPUs alone. Whether it is there.
  bool Scratch(const ffi::RemainingRets& results, size_t on_gpu);
  // Any other condition.
  void Require(bool condition, const char* name, const std::string& expected,
               const std::string& got);

 private:
  void Fail(const char* name, const std::string& expected, const std::string& got);

  const char* op_;
  std::string message_;
};

std::string ShapeText(ffi::AnyBuffer::Dimensions dims);

// Dimension i, or 0 if the rank is too small (the check that follows will say so).
int64_t Dim(const ffi::AnyBuffer& buffer, size_t i);

}  // namespace mla

#endif  // MLA_COMMON_FFI_CHECKS_H_
