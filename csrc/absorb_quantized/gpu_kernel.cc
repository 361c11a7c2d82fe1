// The kernels of absorb_quantized on a GPU that sum across weight rows; the others are products.
#include "absorb_quantized/gpu_across.h"

using mla::gpu::ProductArgs;

#define MLA_ACROSS(name, Format, token_tiles)                                                     \
  MLA_GPU_KERNEL(name, mla::gpu::kAcrossThreads, ProductArgs) {                                   \
    __shared__ mla::gpu::Chunk                                                                    \
        weights[mla::gpu::kAcrossRows * mla::gpu::kAcrossStride * sizeof(mla::bf16) / 16];        \
    mla::gpu::AcrossProduct<mla::gpu::Format, token_tiles>(args,                                  \
                                                           reinterpret_cast<mla::bf16*>(weights)) \
        .Run();                                                                                   \
  }

MLA_ACROSS(mla_absorb_across_e2m1_16, FormatE2M1, 1)
MLA_ACROSS(mla_absorb_across_e2m1_64, FormatE2M1, 4)
MLA_ACROSS(mla_absorb_across_e4m3_16, FormatE4M3, 1)
MLA_ACROSS(mla_absorb_across_e4m3_64, FormatE4M3, 4)

MLA_GPU_KERNEL(mla_absorb_across_plain, mla::gpu::kAcrossPlainThreads, ProductArgs) {
  mla::gpu::PlainAcross{args}.Run();
}
