// y = x . w^T with both in FP8 with scales of 128 columns: what AMD's matrix cores multiply as
// codes.
#ifndef MLA_LINEAR_FP8_KERNEL_H_
#define MLA_LINEAR_FP8_KERNEL_H_

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace mla {

// Columns that share a scale.
constexpr int64_t kFp8Group = 128;
// What k is a multiple of: rows begin where they can be read 16 bytes at a time.
constexpr int64_t kFp8Aligned = 16;

struct LinearFp8Args {
  const uint8_t* x;      // (m, k)
  const float* x_scale;  // (m, groups)
  const uint8_t* w;      // (n, k)
  const float* w_scale;  // (ceil(n / block_n), groups)
  void* y;               // (m, n)
  DType y_type;
  bool x_fnuz, w_fnuz;  // The codes are e4m3fnuz; else e4m3fn.
  int64_t m, n, k, groups;
  uint32_t block_n;    // n and it fit into 31 bits.
  int32_t row_blocks;  // Of weight rows, by which the grid is divided.
};

MLA_DECLARE_KERNEL(LinearFp8, LinearFp8Args)

}  // namespace mla

#endif  // MLA_LINEAR_FP8_KERNEL_H_
