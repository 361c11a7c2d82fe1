// Quantises rows by the shared group quantiser.
#include "common/group_quantize.h"
#include "mxfp4_quantize/kernel.h"

namespace mla {
namespace MLA_ISA {

void Mxfp4QuantizeRows(const Mxfp4QuantizeArgs& args, const Executor& executor) {
  QuantizeRows(args.x, args.x_type, args.out, executor);
}

}  // namespace MLA_ISA
}  // namespace mla
