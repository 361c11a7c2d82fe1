// Element types as plain data. No function lives here: this header is shared by translation units
// compiled for different instruction sets.
#ifndef MLA_COMMON_DTYPE_H_
#define MLA_COMMON_DTYPE_H_

#include <cstdint>

namespace mla {

enum class DType : int32_t { kF32, kBF16, kF8E4M3FN, kU8, kF8E4M3FNUZ };

struct bf16 {
  uint16_t bits;
};

struct f8e4m3fn {
  uint8_t bits;
};

struct f8e4m3fnuz {
  uint8_t bits;
};

}  // namespace mla

#endif  // MLA_COMMON_DTYPE_H_
