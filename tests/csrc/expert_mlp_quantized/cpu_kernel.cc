// Experts whose two products are stored in different formats.
#include "cases.h"
#include "expert_batch.h"
#include "expert_mlp_quantized/kernel.h"
#include "quantized_weights.h"

namespace mla::test {

void ExpertMlpQuantizedCases(Runner& runner) {
  const auto table = MLA_KERNEL_TABLE(ExpertMlpQuantized, ExpertMlpQuantizedArgs);
  const std::vector<WeightFormat>& formats = WeightFormats();
  for (size_t i = 0; i < formats.size(); ++i) {
    const WeightFormat gate_up = formats[i], down = formats[i * 4 % formats.size()];
    for (const ExpertBatch& batch : ExpertBatches()) {
      if (!gate_up.Holds(batch.hidden) || !down.Holds(batch.inner)) continue;
      if (!gate_up.Stacks(2 * batch.inner) || !down.Stacks(batch.hidden)) continue;
      for (const DType io : kFloats) {
        const std::string name = std::string("expert_mlp_quantized ") + gate_up.name + ", " +
                                 down.name + " " + Name(io) + " " + batch.name();
        runner.Case<ExpertMlpQuantizedArgs>(table, name, [=](Memory& memory) {
          return ExpertMlpQuantizedArgs{
              batch.Take(memory, io),
              gate_up.Take(memory, 2 * batch.inner, batch.hidden, batch.experts),
              down.Take(memory, batch.hidden, batch.inner, batch.experts)};
        });
      }
    }
  }
}

}  // namespace mla::test
