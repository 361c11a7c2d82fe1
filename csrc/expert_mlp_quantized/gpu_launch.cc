// Experts with quantised weights on a GPU.
#include "expert_mlp/gpu_shape.h"
#include "expert_mlp_quantized/kernel.h"

namespace mla {
namespace gpu {

xla::ffi::Error ExpertMlpQuantized(const ExpertMlpQuantizedArgs& args, const Stream& stream) {
  return RunExperts(args.base, ProductOf(args.gate_up), ProductOf(args.down), stream);
}

}  // namespace gpu
}  // namespace mla
