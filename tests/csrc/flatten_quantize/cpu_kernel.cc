// Rows of any bits, quantised in groups that need not divide them.
#include "cases.h"
#include "flatten_quantize/kernel.h"
#include "quantized_rows.h"

namespace mla::test {

void FlattenQuantizeCases(Runner& runner) {
  const auto table = MLA_KERNEL_TABLE(FlattenQuantize, FlattenQuantizeArgs);
  EachRowsCase([&](const RowsCase& rows) {
    for (const DType type : kFloats) {
      const std::string name = std::string("flatten_quantize ") + Name(type) + " " + rows.name();
      runner.Case<FlattenQuantizeArgs>(table, name, [=](Memory& memory) {
        return FlattenQuantizeArgs{memory.Bits(type, rows.rows * rows.k), type, rows.Take(memory)};
      });
    }
  });
}

}  // namespace mla::test
