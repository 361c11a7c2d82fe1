// Which query rows belong to which sequence. The arrays are data and may hold anything: the ranges
// that come out are ordered, disjoint and inside [0, tokens).
#ifndef MLA_COMMON_SEQUENCES_H_
#define MLA_COMMON_SEQUENCES_H_

#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {

struct TokenRange {
  int64_t begin, end;
};

// The range of sequence s, where the sequences before it end at `previous_end`.
inline TokenRange SequenceRange(const int32_t* query_start_loc, int64_t s, int64_t previous_end,
                                int64_t tokens) {
  const int64_t begin = Max64(previous_end, Clamp(query_start_loc[s], 0, tokens));
  return {begin, Max64(begin, Clamp(query_start_loc[s + 1], 0, tokens))};
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_SEQUENCES_H_
