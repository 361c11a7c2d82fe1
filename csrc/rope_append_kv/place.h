// Where a cache keeps one head's row of one slot.
#ifndef MLA_ROPE_APPEND_KV_PLACE_H_
#define MLA_ROPE_APPEND_KV_PLACE_H_

#include <cstdint>

#include "rope_append_kv/kernel.h"

// For device code, and for the CPU once an instruction-set level.
#if defined(__HIP__) || defined(__CUDACC__)
#include "gpu/device.h"
#define MLA_PLACE_SPACE gpu
#define MLA_PLACE __host__ __device__ constexpr
#else
#define MLA_PLACE_SPACE MLA_ISA
#define MLA_PLACE constexpr
#endif

namespace mla {
namespace MLA_PLACE_SPACE {

// Column d is element start + d / run * stride + d % run.
struct Place {
  int64_t start, run, stride;
};

// `page` counts from the first page of the first layer.
MLA_PLACE Place RowPlace(CacheForm form, int64_t width, int64_t pack, int64_t heads,
                         int64_t page_size, int64_t page, int64_t offset, int64_t head) {
  switch (form) {
    case CacheForm::kRows:
      return {((page * page_size + offset) * heads + head) * width, width, width};
    case CacheForm::kPackedColumns:
      return {(page * heads + head) * width * page_size + offset * pack, pack, page_size * pack};
    case CacheForm::kPackedSlots:
      return {((page * heads + head) * page_size + offset / pack * pack) * width + offset % pack, 1,
              pack};
  }
  return {};
}

MLA_PLACE int64_t Element(const Place& place, int64_t d) {
  return place.start + d / place.run * place.stride + d % place.run;
}

// Caches of more than 2^31 elements are common, and too large for a test to allocate. So the build
// checks that the last column of the last row of 2^20 pages of 64 slots, 8 heads and 128 columns is
// the last element.
MLA_PLACE int64_t LastElement(CacheForm form, int64_t pack) {
  return Element(RowPlace(form, 128, pack, 8, 64, (int64_t{1} << 20) - 1, 63, 7), 127);
}
constexpr int64_t kLastElement = (int64_t{1} << 36) - 1;
static_assert(LastElement(CacheForm::kRows, 0) == kLastElement);
static_assert(LastElement(CacheForm::kPackedColumns, 8) == kLastElement);
static_assert(LastElement(CacheForm::kPackedSlots, 8) == kLastElement);
static_assert(LastElement(CacheForm::kPackedSlots, 64) == kLastElement);

}  // namespace MLA_PLACE_SPACE
}  // namespace mla

#endif  // MLA_ROPE_APPEND_KV_PLACE_H_
