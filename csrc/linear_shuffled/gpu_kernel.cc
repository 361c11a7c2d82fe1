// Products with shuffled weights on a GPU.
#include "linear_shuffled/gpu_few.h"
#if !defined(__HIP__)
#include "linear_shuffled/gpu_many.h"
#endif

using mla::LinearShuffledArgs;

#if defined(__HIP__)
extern "C" __shared__ mla::gpu::Chunk mla_shuffled_shared[];
#else
extern __shared__ mla::gpu::Chunk mla_shuffled_shared[];
#endif

namespace mla {
namespace gpu {

// A word of eight codes a thread, in the order in which they lie.
MLA_DEVICE void DecodeShuffled(const LinearShuffledArgs& args) {
  const int64_t at = static_cast<int64_t>(BlockX()) * kDecodeThreads + ThreadX();
  const int64_t chunk = at / 64, group = chunk % args.chunks, tile = chunk / args.chunks;
  const int64_t row = tile * 16 + at / 4 % 16;
  if (row >= args.rows) return;
  const uint32_t scale =
      args.scale[((tile * args.scale_chunks + group / 16) * 16 + row % 16) * 16 + group % 16];
  const Octet values = FromNibbleOrder(
      DecodeE2M1<true>(reinterpret_cast<const uint32_t*>(args.data)[at], GroupScale{scale}));
  reinterpret_cast<Chunk*>(args.y)[(row * args.chunks + group) * 4 + at % 4] =
      BitCast<Chunk>(values);
}

}  // namespace gpu
}  // namespace mla

MLA_GPU_KERNEL(mla_shuffled_dequantize, mla::gpu::kDecodeThreads, LinearShuffledArgs) {
  mla::gpu::DecodeShuffled(args);
}

#define MLA_FEW(name, Shape)                                                                  \
  MLA_GPU_KERNEL_BLOCKS(name, mla::gpu::Shape::kThreads, 1, LinearShuffledArgs) {             \
    mla::gpu::FewProduct<mla::gpu::Shape>(args, reinterpret_cast<char*>(mla_shuffled_shared)) \
        .Run();                                                                               \
  }

MLA_FEW(mla_linear_shuffled_few16, Few16)
#if defined(__HIP__)
MLA_FEW(mla_linear_shuffled_few32, Few32)
#else
MLA_FEW(mla_linear_shuffled_few8, Few8)

#define MLA_ARRANGE(tokens)                                                      \
  MLA_GPU_KERNEL(mla_linear_shuffled_arrange##tokens, mla::gpu::kArrangeThreads, \
                 LinearShuffledArgs) {                                           \
    mla::gpu::ArrangeTokens<tokens>(args);                                       \
  }
#define MLA_MANY(name, Shape)                                                                  \
  extern "C" __global__ void __cluster_dims__(mla::gpu::Shape::kSplits, 1, 1)                  \
      __launch_bounds__(mla::gpu::Shape::kThreads, 1) name(const LinearShuffledArgs args) {    \
    mla::gpu::ManyProduct<mla::gpu::Shape>(args, reinterpret_cast<char*>(mla_shuffled_shared)) \
        .Run();                                                                                \
  }

MLA_ARRANGE(32)
MLA_ARRANGE(64)
MLA_ARRANGE(128)
MLA_MANY(mla_linear_shuffled_many32, Many32)
MLA_MANY(mla_linear_shuffled_many32_split, Many32Split)
MLA_MANY(mla_linear_shuffled_many64, Many64)
MLA_MANY(mla_linear_shuffled_many64_split, Many64Split)
MLA_MANY(mla_linear_shuffled_many128, Many128)
MLA_MANY(mla_linear_shuffled_many128_split, Many128Split)
#endif
