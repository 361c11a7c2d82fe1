// The groups of cases, one for every folder of csrc with CPU code.
#ifndef MLA_TESTS_CSRC_CASES_H_
#define MLA_TESTS_CSRC_CASES_H_

#include <cstdint>
#include <initializer_list>

#include "common/dtype.h"
#include "runner.h"

namespace mla::test {

constexpr std::initializer_list<DType> kFloats = {DType::kF32, DType::kBF16};
constexpr std::initializer_list<DType> kCacheTypes = {DType::kF32, DType::kBF16, DType::kF8E4M3FN};

// Of a page, a slot, an expert: all of them are data and may hold anything.
constexpr int32_t kLowest = INT32_MIN;
constexpr int32_t kHighest = INT32_MAX;

void ParallelForCases(Runner& runner);
void RmsNormCases(Runner& runner);
void FusedQkRmsNormCases(Runner& runner);
void FlattenQuantizeCases(Runner& runner);
void RmsNormQuantizeCases(Runner& runner);
void RopeAppendLatentCases(Runner& runner);
void RopeAppendKvCases(Runner& runner);
void LinearCases(Runner& runner);
void LinearQuantizedCases(Runner& runner);
void AbsorbCases(Runner& runner);
void AbsorbQuantizedCases(Runner& runner);
void ExpertMlpCases(Runner& runner);
void ExpertMlpQuantizedCases(Runner& runner);
void MlaAttentionCases(Runner& runner);
void MlaAttentionExpandedCases(Runner& runner);

}  // namespace mla::test

#endif  // MLA_TESTS_CSRC_CASES_H_
