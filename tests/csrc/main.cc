// Every CPU kernel over odd shapes and hostile data, for a build with a sanitizer. Prints a line a
// group; fails if a result differs, or, by the sanitizer, if memory or a number is misused. Takes
// names of groups; without any, all of them run.
#include <cstdio>
#include <string>
#include <vector>

#include "cases.h"
#include "common/isa.h"

namespace {

using namespace mla::test;

struct Group {
  const char* name;
  void (*cases)(Runner&);
};

constexpr Group kGroups[] = {
    {"parallel_for", ParallelForCases},
    {"rmsnorm", RmsNormCases},
    {"fused_qk_rmsnorm", FusedQkRmsNormCases},
    {"flatten_quantize", FlattenQuantizeCases},
    {"rmsnorm_quantize", RmsNormQuantizeCases},
    {"rope_append_latent", RopeAppendLatentCases},
    {"rope_append_kv", RopeAppendKvCases},
    {"linear", LinearCases},
    {"linear_quantized", LinearQuantizedCases},
    {"absorb", AbsorbCases},
    {"absorb_quantized", AbsorbQuantizedCases},
    {"expert_mlp", ExpertMlpCases},
    {"expert_mlp_quantized", ExpertMlpQuantizedCases},
    {"mla_attention", MlaAttentionCases},
    {"mla_attention_expanded", MlaAttentionExpandedCases},
};

// The groups of these names; empty, with a message, if there is no such group.
std::vector<Group> Asked(int count, char** names) {
  if (count == 0) return {std::begin(kGroups), std::end(kGroups)};
  std::vector<Group> asked;
  for (int i = 0; i < count; ++i) {
    std::string known;
    for (const Group& group : kGroups) {
      if (names[i] == std::string(group.name)) asked.push_back(group);
      known += std::string(known.empty() ? "" : ", ") + group.name;
    }
    if (asked.size() == static_cast<size_t>(i) + 1) continue;
    std::printf("group: expected one of %s, got '%s'\n", known.c_str(), names[i]);
    return {};
  }
  return asked;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<Group> groups = Asked(argc - 1, argv + 1);
  if (groups.empty()) return 2;
  if (mla::IsaError() != nullptr) {
    std::printf("%s\n", mla::IsaError());
    return 2;
  }
  std::printf("instruction sets:");
  for (int level = 0; level < mla::kIsaCount; ++level) {
    const auto isa = static_cast<mla::Isa>(level);
    const char* why = !mla::IsaBuilt(isa)        ? " (not built)"
                      : level > mla::ChosenIsa() ? " (not of this processor, or capped)"
                                                 : "";
    std::printf(" %s%s", mla::IsaName(isa), why);
  }
  std::printf("\n");
  Runner runner;
  for (const Group& group : groups) runner.Group(group.name, group.cases);
  return runner.failures() == 0 ? 0 : 1;
}
