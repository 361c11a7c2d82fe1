// The kernels of products on a GPU by name; every op that is made of products launches them.
#include "gpu/product_plain.h"
#include "gpu/product_tiles.h"
#if !defined(__HIP__)
#include "gpu/product_warpgroups.h"
#endif

using mla::gpu::ProductArgs;

#if defined(__HIP__)
extern "C" __shared__ mla::gpu::Chunk mla_product_shared[];
#else
extern __shared__ mla::gpu::Chunk mla_product_shared[];
#endif

// Scales that multiply sums cost registers.
template <typename Format, typename Shape>
constexpr int BlocksTogether() {
  return Shape::kBlocks > 1 && Format::kFoldOctets > 0 ? Shape::kBlocks - 1 : Shape::kBlocks;
}

#define MLA_PRODUCT(name, Format, Shape)                                                      \
  MLA_GPU_KERNEL_BLOCKS(name, mla::gpu::Shape::kThreads,                                      \
                        (BlocksTogether<mla::gpu::Format, mla::gpu::Shape>()), ProductArgs) { \
    mla::gpu::TileProduct<mla::gpu::Format, mla::gpu::Shape>(                                 \
        args, reinterpret_cast<char*>(mla_product_shared))                                    \
        .Run();                                                                               \
  }

#define MLA_PRODUCTS(format, Format)                                  \
  MLA_PRODUCT(mla_product_##format##_stream8, Format, StreamShape8)   \
  MLA_PRODUCT(mla_product_##format##_stream16, Format, StreamShape16) \
  MLA_PRODUCT(mla_product_##format##_narrow8, Format, NarrowShape8)   \
  MLA_PRODUCT(mla_product_##format##_narrow16, Format, NarrowShape16) \
  MLA_PRODUCT(mla_product_##format##_tile32, Format, TileShape32)

// For products that are not gated.
#define MLA_UNGATED_PRODUCTS(format, Format)                      \
  MLA_PRODUCT(mla_product_##format##_wide8, Format, WideShape8)   \
  MLA_PRODUCT(mla_product_##format##_low16, Format, LowShape16)   \
  MLA_PRODUCT(mla_product_##format##_low32, Format, LowShape32)   \
  MLA_PRODUCT(mla_product_##format##_high16, Format, HighShape16) \
  MLA_PRODUCT(mla_product_##format##_high32, Format, HighShape32)

MLA_PRODUCTS(e2m1, FormatE2M1)
MLA_PRODUCTS(e4m3, FormatE4M3)
MLA_PRODUCTS(int4, FormatInt4)
MLA_PRODUCTS(e4m3fnuz, FormatE4M3Fnuz)
MLA_PRODUCTS(bf16, FormatBF16)
MLA_UNGATED_PRODUCTS(e2m1, FormatE2M1)
MLA_UNGATED_PRODUCTS(e4m3, FormatE4M3)
MLA_UNGATED_PRODUCTS(int4, FormatInt4)
MLA_UNGATED_PRODUCTS(e4m3fnuz, FormatE4M3Fnuz)
// Not int4: with a scale every 32 values its sums want too many registers.
MLA_PRODUCT(mla_product_e2m1_tile64, FormatE2M1, TileShape64)
MLA_PRODUCT(mla_product_e4m3_tile64, FormatE4M3, TileShape64)
MLA_PRODUCT(mla_product_e4m3fnuz_tile64, FormatE4M3Fnuz, TileShape64)
MLA_PRODUCT(mla_product_bf16_tile64, FormatBF16, TileShape64)

#if !defined(__HIP__)
#define MLA_WARPGROUP_PRODUCT(name, Shape)                                                       \
  extern "C" __global__ void __cluster_dims__(mla::gpu::Shape::kSplits, 1, 1) __launch_bounds__( \
      mla::gpu::Shape::kThreads, mla::gpu::Shape::kBlocks) name(const ProductArgs args) {        \
    mla::gpu::WarpgroupProduct<mla::gpu::FormatE2M1, mla::gpu::Shape>(                           \
        args, reinterpret_cast<char*>(mla_product_shared))                                       \
        .Run();                                                                                  \
  }

MLA_WARPGROUP_PRODUCT(mla_product_e2m1_warpgroups16_split4, Warpgroups16Split4)
MLA_WARPGROUP_PRODUCT(mla_product_e2m1_warpgroups16, Warpgroups16)
MLA_WARPGROUP_PRODUCT(mla_product_e2m1_warpgroups32_split4, Warpgroups32Split4)
MLA_WARPGROUP_PRODUCT(mla_product_e2m1_warpgroups32, Warpgroups32)
MLA_WARPGROUP_PRODUCT(mla_product_e2m1_warpgroups64_split4, Warpgroups64Split4)
MLA_WARPGROUP_PRODUCT(mla_product_e2m1_warpgroups64, Warpgroups64)
MLA_WARPGROUP_PRODUCT(mla_product_e2m1_warpgroups128_split4, Warpgroups128Split4)
MLA_WARPGROUP_PRODUCT(mla_product_e2m1_warpgroups128_split2, Warpgroups128Split2)
MLA_WARPGROUP_PRODUCT(mla_product_e2m1_warpgroups128, Warpgroups128)
#endif

MLA_GPU_KERNEL(mla_product_plain, mla::gpu::kPlainThreads, ProductArgs) {
  mla::gpu::PlainProduct(args).Run();
}
