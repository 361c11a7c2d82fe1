// The attributes and result buffers of an op that quantises rows in groups.
#ifndef MLA_COMMON_GROUP_FORMAT_FFI_H_
#define MLA_COMMON_GROUP_FORMAT_FFI_H_

#include "common/ffi_checks.h"
#include "common/group_format.h"

namespace mla {

// As the FFI delivers them; the enumerations say what the numbers mean.
struct GroupAttributes {
  int64_t format, group_size, rounding, column_major;
};

// Checks attributes and buffers against rows of k values. Whatever fails is in `check`.
QuantizedRows QuantizedResult(Checker* check, const GroupAttributes& attributes, int64_t rows,
                              int64_t k, const ffi::AnyBuffer& data, const ffi::AnyBuffer& scale);

}  // namespace mla

#endif  // MLA_COMMON_GROUP_FORMAT_FFI_H_
