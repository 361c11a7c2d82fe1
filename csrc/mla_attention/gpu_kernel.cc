// The kernels of mla_attention on a GPU by name.
#include "mla_attention/gpu_merge.h"
#include "mla_attention/gpu_plain.h"
#if defined(__HIP__)
#include "mla_attention/gpu_tiles.h"
#else
#include "mla_attention/gpu_warpgroups.h"
#endif

using mla::MlaAttentionArgs;

#if defined(__HIP__)
extern "C" __shared__ mla::gpu::Chunk mla_attention_shared[];
template <typename Shape, typename Cache>
using MatrixCores = mla::gpu::TileAttention<Shape, Cache>;
#define MLA_ATTENTION_SHARED(Shape) \
  __shared__ mla::gpu::Chunk mla_attention_shared[Shape::kSharedBytes / sizeof(mla::gpu::Chunk)];
#else
extern __shared__ __align__(1024) mla::gpu::Chunk mla_attention_shared[];
template <typename Shape, typename Cache>
using MatrixCores = mla::gpu::WarpgroupAttention<Shape, Cache>;
#define MLA_ATTENTION_SHARED(Shape)
#endif

#define MLA_ATTENTION_TILES(name, Shape, Cache)                              \
  MLA_GPU_KERNEL(name, mla::gpu::Shape::kThreads, MlaAttentionArgs) {        \
    MLA_ATTENTION_SHARED(mla::gpu::Shape)                                    \
    MatrixCores<mla::gpu::Shape, Cache>(                                     \
        args, reinterpret_cast<char*>(mla_attention_shared),                 \
        mla::gpu::BlockOf(args, mla::gpu::BlockX(), mla::gpu::Shape::kRows)) \
        .Run();                                                              \
  }

MLA_ATTENTION_TILES(mla_attention_16, Heads16, mla::bf16)
MLA_ATTENTION_TILES(mla_attention_32, Heads32, mla::bf16)
MLA_ATTENTION_TILES(mla_attention_64, Heads64, mla::bf16)
MLA_ATTENTION_TILES(mla_attention_16_f8, Heads16, mla::f8e4m3fn)
MLA_ATTENTION_TILES(mla_attention_32_f8, Heads32, mla::f8e4m3fn)
MLA_ATTENTION_TILES(mla_attention_64_f8, Heads64, mla::f8e4m3fn)

MLA_GPU_KERNEL(mla_attention_plain, mla::gpu::kPlainThreads, MlaAttentionArgs) {
  mla::gpu::PlainAttention(args, reinterpret_cast<float*>(mla_attention_shared));
}

MLA_GPU_KERNEL(mla_attention_merge_few, mla::gpu::kMergeThreads, MlaAttentionArgs) {
  mla::gpu::MergeSplits<1>(args);
}

#if !defined(__HIP__)
MLA_GPU_KERNEL(mla_attention_merge_more, mla::gpu::kMergeThreads, MlaAttentionArgs) {
  mla::gpu::MergeSplits<mla::gpu::kFewerGroups>(args);
}
#endif

MLA_GPU_KERNEL(mla_attention_merge_many, mla::gpu::kMergeThreads, MlaAttentionArgs) {
  mla::gpu::MergeSplits<mla::gpu::kMergeGroups>(args);
}
