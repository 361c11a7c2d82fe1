// The heads of a token lie side by side, so that a token is one row of the shared group quantiser.
#include "common/group_quantize.h"
#include "flatten_quantize/kernel.h"

namespace mla {
namespace MLA_ISA {

void FlattenQuantize(const FlattenQuantizeArgs& args, const Executor& executor) {
  QuantizeRows(args.x, args.x_type, args.out, executor);
}

}  // namespace MLA_ISA
}  // namespace mla
