// The targets that the GPU libraries serve; see handlers.h.
#ifndef MLA_PYTHON_GPU_HANDLERS_H_
#define MLA_PYTHON_GPU_HANDLERS_H_

#include "python/targets.h"

// clang-format off
#define MLA_FOR_EACH_GPU_TARGET(target) \
  target(rope_append_latent, 1) \
  target(rope_latent_rows, 1) \
  target(mla_attention, 2)
// clang-format on

MLA_FOR_EACH_GPU_TARGET(MLA_DECLARE_TARGET)

#endif  // MLA_PYTHON_GPU_HANDLERS_H_
