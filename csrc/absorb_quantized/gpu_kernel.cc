// The kernels of absorb_quantized on a GPU; what they do not take is a product.
#include "absorb_quantized/gpu_across.h"
#if !defined(__HIP__)
#include "absorb_quantized/gpu_warpgroups.h"
#endif

using mla::gpu::ProductArgs;

#if defined(__HIP__)
#define MLA_ABSORB_SHARED(tokens, along)                                     \
  __shared__ mla::gpu::Chunk                                                 \
      mla_absorb_shared[mla::gpu::AcrossShape<tokens, along>::kSharedBytes / \
                        sizeof(mla::gpu::Chunk)];
#else
extern __shared__ mla::gpu::Chunk mla_absorb_shared[];
#define MLA_ABSORB_SHARED(tokens, along)
#endif

#define MLA_ABSORB(name, Format, token_tiles, along)                                              \
  MLA_GPU_KERNEL_BLOCKS(name, mla::gpu::kAcrossThreads,                                           \
                        (token_tiles == 1 ? 3 : 2) - (mla::gpu::Format::kFoldOctets > 0 ? 1 : 0), \
                        ProductArgs) {                                                            \
    MLA_ABSORB_SHARED(16 * token_tiles, along)                                                    \
    mla::gpu::AcrossProduct<mla::gpu::Format, token_tiles, along>(                                \
        args, reinterpret_cast<mla::bf16*>(mla_absorb_shared))                                    \
        .Run();                                                                                   \
  }

#define MLA_ABSORBS(format, Format)                             \
  MLA_ABSORB(mla_absorb_across_##format##_16, Format, 1, false) \
  MLA_ABSORB(mla_absorb_across_##format##_64, Format, 4, false) \
  MLA_ABSORB(mla_absorb_along_##format##_16, Format, 1, true)   \
  MLA_ABSORB(mla_absorb_along_##format##_64, Format, 4, true)

MLA_ABSORBS(e2m1, FormatE2M1)
MLA_ABSORBS(e4m3, FormatE4M3)
MLA_ABSORBS(e4m3fnuz, FormatE4M3Fnuz)

#if !defined(__HIP__)
extern __shared__ __align__(1024) mla::gpu::Chunk mla_absorb_tiles[];

#define MLA_ABSORB_HEADS(name, tokens, along)                                                    \
  MLA_GPU_KERNEL_BLOCKS(name, (mla::gpu::HeadShape<tokens, along>::kThreads), 1, ProductArgs) {  \
    mla::gpu::HeadProduct<tokens, along>(args, reinterpret_cast<char*>(mla_absorb_tiles)).Run(); \
  }

MLA_ABSORB_HEADS(mla_absorb_heads_across_8, 8, false)
MLA_ABSORB_HEADS(mla_absorb_heads_across_16, 16, false)
MLA_ABSORB_HEADS(mla_absorb_heads_across_32, 32, false)
MLA_ABSORB_HEADS(mla_absorb_heads_across_64, 64, false)
MLA_ABSORB_HEADS(mla_absorb_heads_across_128, 128, false)
MLA_ABSORB_HEADS(mla_absorb_heads_along_8, 8, true)
MLA_ABSORB_HEADS(mla_absorb_heads_along_16, 16, true)
MLA_ABSORB_HEADS(mla_absorb_heads_along_32, 32, true)
MLA_ABSORB_HEADS(mla_absorb_heads_along_64, 64, true)
MLA_ABSORB_HEADS(mla_absorb_heads_along_128, 128, true)
#endif

MLA_GPU_KERNEL(mla_absorb_across_plain, mla::gpu::kAcrossPlainThreads, ProductArgs) {
  mla::gpu::PlainAcross{args}.Run();
}
