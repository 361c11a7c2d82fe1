// Norm and quantiser in one, with and without the residual and the unquantised rows.
#include "cases.h"
#include "quantized_rows.h"
#include "rmsnorm_quantize/kernel.h"

namespace mla::test {

void RmsNormQuantizeCases(Runner& runner) {
  const auto table = MLA_KERNEL_TABLE(RmsNormQuantize, RmsNormQuantizeArgs);
  EachRowsCase([&](const RowsCase& rows) {
    for (const DType io : kFloats) {
      for (const bool more : {false, true}) {
        const std::string name = std::string("rmsnorm_quantize ") + Name(io) +
                                 (more ? " with residual " : " ") + rows.name();
        runner.Case<RmsNormQuantizeArgs>(table, name, [=](Memory& memory) {
          RmsNormQuantizeArgs args = {};
          args.width = rows.k + (more ? 5 : 0);
          args.offset = more ? 3 : 0;
          args.x = memory.Values(io, rows.rows * args.width);
          args.weight = memory.Values(io, rows.k);
          if (more) {
            args.residual = memory.Values(io, rows.rows * rows.k);
            args.sum = memory.Result(io, rows.rows * rows.k);
            args.unquantized = memory.Result(io, rows.rows * rows.k);
          }
          args.io_type = args.weight_type = io;
          args.eps = 1e-6f;
          args.weight_offset = more ? 1.0f : 0.0f;
          args.out = rows.Take(memory);
          return args;
        });
      }
    }
  });
}

}  // namespace mla::test
