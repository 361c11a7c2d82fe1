// Experts with no, one and many tokens.
#include "cases.h"
#include "expert_batch.h"
#include "expert_mlp/kernel.h"

namespace mla::test {

void ExpertMlpCases(Runner& runner) {
  const auto table = MLA_KERNEL_TABLE(ExpertMlp, ExpertMlpArgs);
  for (const ExpertBatch& batch : ExpertBatches()) {
    for (const DType io : kFloats) {
      const std::string name = std::string("expert_mlp ") + Name(io) + " " + batch.name();
      runner.Case<ExpertMlpArgs>(table, name, [=](Memory& memory) {
        ExpertMlpArgs args = batch.Take(memory, io);
        args.gate_up = memory.Values(io, batch.experts * 2 * batch.inner * batch.hidden);
        args.down = memory.Values(io, batch.experts * batch.hidden * batch.inner);
        return args;
      });
    }
  }
}

}  // namespace mla::test
