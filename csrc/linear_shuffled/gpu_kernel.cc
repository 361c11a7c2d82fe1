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

// A block has 16 chunks of a tile, a thread four words of eight codes of a row: neighbours write
// 256 bytes one behind the other, and two rows fill a sector that is read.
MLA_DEVICE void DecodeShuffled(const LinearShuffledArgs& args) {
  const int64_t set = BlockX() % args.scale_chunks, tile = BlockX() / args.scale_chunks;
  const int64_t row = ThreadX() / 32 * 2 + ThreadX() / 4 % 2;
  if (tile * 16 + row >= args.rows) return;
  const auto* words = reinterpret_cast<const uint32_t*>(args.data);
  const uint8_t* scales = args.scale + ((tile * args.scale_chunks + set) * 16 + row) * 16;
  uint32_t word[4], scale[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int in_set = 4 * i + ThreadX() / 8 % 4;
    const int64_t chunk = set * 16 + in_set;
    scale[i] = scales[in_set];
    word[i] = 0;
    if (chunk < args.chunks) {
      word[i] = words[((tile * args.chunks + chunk) * 16 + row) * 4 + ThreadX() % 4];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t chunk = set * 16 + 4 * i + ThreadX() / 8 % 4;
    if (chunk >= args.chunks) return;
    const Octet values = FromNibbleOrder(DecodeE2M1<true>(word[i], GroupScale{scale[i]}));
    reinterpret_cast<Chunk*>(
        args.y)[((tile * 16 + row) * args.chunks + chunk) * 4 + ThreadX() % 4] =
        BitCast<Chunk>(values);
  }
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
