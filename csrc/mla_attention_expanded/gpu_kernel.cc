// The kernels of mla_attention_expanded on a GPU by name.
#include "mla_attention_expanded/gpu_plain.h"
#include "mla_attention_expanded/gpu_tiles.h"

using mla::gpu::ExpandedGpuArgs;

#if defined(__HIP__)
#define MLA_EXPANDED_SHARED(Shape) \
  __shared__ mla::gpu::Chunk mla_expanded_shared[Shape::kSharedBytes / sizeof(mla::gpu::Chunk)];
#else
extern __shared__ mla::gpu::Chunk mla_expanded_shared[];
#define MLA_EXPANDED_SHARED(Shape)
#endif

MLA_GPU_KERNEL(mla_expanded_long, mla::gpu::ExpandedLong::kThreads, ExpandedGpuArgs) {
  MLA_EXPANDED_SHARED(mla::gpu::ExpandedLong)
  mla::gpu::RunTileExpanded<mla::gpu::ExpandedLong>(args,
                                                    reinterpret_cast<char*>(mla_expanded_shared));
}

MLA_GPU_KERNEL_BLOCKS(mla_expanded_short, mla::gpu::ExpandedShort::kThreads, 2, ExpandedGpuArgs) {
  MLA_EXPANDED_SHARED(mla::gpu::ExpandedShort)
  mla::gpu::RunTileExpanded<mla::gpu::ExpandedShort>(args,
                                                     reinterpret_cast<char*>(mla_expanded_shared));
}

MLA_GPU_KERNEL(mla_expanded_plain_f32, mla::gpu::kPlainThreads, ExpandedGpuArgs) {
  mla::gpu::RunPlainExpanded<float>(args);
}

MLA_GPU_KERNEL(mla_expanded_plain_bf16, mla::gpu::kPlainThreads, ExpandedGpuArgs) {
  mla::gpu::RunPlainExpanded<mla::bf16>(args);
}
