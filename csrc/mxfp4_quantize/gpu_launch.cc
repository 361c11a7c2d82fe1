// MXFP4 quantisation: of rows without heads, by flatten_quantize's kernels.
#include "flatten_quantize/kernel.h"
#include "mxfp4_quantize/kernel.h"

namespace mla {
namespace gpu {

xla::ffi::Error Mxfp4QuantizeRows(const Mxfp4QuantizeArgs& args, const Stream& stream) {
  return FlattenQuantize({args.x, args.x_type, args.out}, stream);
}

}  // namespace gpu
}  // namespace mla
