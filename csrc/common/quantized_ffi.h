// A quantised matrix from its two buffers and its attributes.
#ifndef MLA_COMMON_QUANTIZED_FFI_H_
#define MLA_COMMON_QUANTIZED_FFI_H_

#include "common/ffi_checks.h"
#include "common/quantized_matrix.h"

namespace mla {

// Checks data (..., n, k or k / 2) and scale and returns the (first) matrix. `name` is the
// argument's name; `stack` receives the number of matrices. block_n or block_k 0 is all of them.
// vnni: whether the op takes that layout, with whole tiles; data (..., n / 16, k / 32, 4, 64).
QuantizedMatrix QuantizedArgument(Checker* check, const char* name, const ffi::AnyBuffer& data,
                                  const ffi::AnyBuffer& scale, int64_t code, int64_t block_n,
                                  int64_t block_k, int64_t* stack, bool vnni = false);

}  // namespace mla

#endif  // MLA_COMMON_QUANTIZED_FFI_H_
