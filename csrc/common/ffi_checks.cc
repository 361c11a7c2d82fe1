// Texts of the argument checks.
#include "common/ffi_checks.h"

#if defined(MLA_GPU_EMULATED)
#include "gpu/runtime.h"
#endif

namespace mla {
namespace {

// Every buffer passes a check of its type: what the emulator lets a kernel touch.
void Note([[maybe_unused]] const ffi::AnyBuffer& buffer) {
#if defined(MLA_GPU_EMULATED)
  gpu::AllowMemory(buffer.untyped_data(), buffer.size_bytes());
#endif
}

const char* TypeName(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::F32:
      return "float32";
    case ffi::DataType::BF16:
      return "bfloat16";
    case ffi::DataType::F8E4M3FN:
      return "float8_e4m3fn";
    case ffi::DataType::F8E4M3FNUZ:
      return "float8_e4m3fnuz";
    case ffi::DataType::S32:
      return "int32";
    case ffi::DataType::S64:
      return "int64";
    case ffi::DataType::U32:
      return "uint32";
    case ffi::DataType::U8:
      return "uint8";
    case ffi::DataType::F16:
      return "float16";
    case ffi::DataType::F64:
      return "float64";
    case ffi::DataType::PRED:
      return "bool";
    default:
      return nullptr;
  }
}

std::string TypeText(ffi::DataType type) {
  const char* name = TypeName(type);
  return name != nullptr ? name : "XLA type " + std::to_string(static_cast<int>(type));
}

ffi::DataType ToXla(DType type) {
  switch (type) {
    case DType::kF32:
      return ffi::DataType::F32;
    case DType::kBF16:
      return ffi::DataType::BF16;
    case DType::kF8E4M3FN:
      return ffi::DataType::F8E4M3FN;
    case DType::kF8E4M3FNUZ:
      return ffi::DataType::F8E4M3FNUZ;
    case DType::kU8:
      return ffi::DataType::U8;
  }
  return ffi::DataType::INVALID;
}

}  // namespace

Checker::Checker(const char* op) : op_(op) {
#if defined(MLA_GPU_EMULATED)
  gpu::ForgetMemory();
#endif
}

std::string ShapeText(ffi::AnyBuffer::Dimensions dims) {
  std::string text = "(";
  for (size_t i = 0; i < dims.size(); ++i) {
    if (i != 0) text += ", ";
    text += std::to_string(dims[i]);
  }
  return text + ")";
}

int64_t Dim(const ffi::AnyBuffer& buffer, size_t i) {
  const auto dims = buffer.dimensions();
  return i < dims.size() ? dims[i] : 0;
}

void Checker::Fail(const char* name, const std::string& expected, const std::string& got) {
  if (!ok()) return;
  message_ = std::string(op_) + ": argument '" + name + "': expected " + expected + ", got " + got;
}

DType Checker::Type(const char* name, const ffi::AnyBuffer& buffer,
                    std::initializer_list<DType> allowed) {
  Note(buffer);
  std::string expected;
  for (DType type : allowed) {
    if (ToXla(type) == buffer.element_type()) return type;
    if (!expected.empty()) expected += " or ";
    expected += TypeText(ToXla(type));
  }
  Fail(name, expected, TypeText(buffer.element_type()));
  return *allowed.begin();
}

void Checker::SameType(const char* name, const ffi::AnyBuffer& buffer, DType type,
                       const char* other) {
  Note(buffer);
  if (buffer.element_type() != ToXla(type)) {
    Fail(name, TypeText(ToXla(type)) + " (the type of '" + other + "')",
         TypeText(buffer.element_type()));
  }
}

void Checker::Int32(const char* name, const ffi::AnyBuffer& buffer) {
  Note(buffer);
  if (buffer.element_type() != ffi::DataType::S32) {
    Fail(name, "int32", TypeText(buffer.element_type()));
  }
}

void Checker::Rank(const char* name, const ffi::AnyBuffer& buffer, size_t rank) {
  if (buffer.dimensions().size() != rank) {
    Fail(name, "rank " + std::to_string(rank), "shape " + ShapeText(buffer.dimensions()));
  }
}

void Checker::Shape(const char* name, const ffi::AnyBuffer& buffer,
                    std::initializer_list<int64_t> dims) {
  const auto got = buffer.dimensions();
  bool same = got.size() == dims.size();
  std::string expected = "(";
  size_t i = 0;
  for (int64_t dim : dims) {
    if (same && dim != kAny && got[i] != dim) same = false;
    if (i != 0) expected += ", ";
    expected += dim == kAny ? "any" : std::to_string(dim);
    ++i;
  }
  if (!same) Fail(name, "shape " + expected + ")", "shape " + ShapeText(got));
}

void Checker::Same(const char* name, const ffi::AnyBuffer& result, const char* other,
                   const ffi::AnyBuffer& argument) {
  if (result.untyped_data() != argument.untyped_data() && argument.size_bytes() != 0) {
    Fail(name, std::string("the buffer of '") + other + "' (an alias)", "a buffer of its own");
  }
}

bool Checker::Scratch(const ffi::RemainingRets& results, [[maybe_unused]] size_t on_gpu) {
#if defined(MLA_GPU)
  const size_t wanted = on_gpu;
#else
  const size_t wanted = 0;
#endif
  if (results.size() != wanted) {
    Fail("scratch", std::to_string(wanted) + " buffers", std::to_string(results.size()));
  }
  return results.size() == wanted && wanted > 0;
}

void Checker::Require(bool condition, const char* name, const std::string& expected,
                      const std::string& got) {
  if (!condition) Fail(name, expected, got);
}

}  // namespace mla
