// Products of any element types and sizes in f32: a wave an output, for up to kPlainTokens tokens.
#ifndef MLA_GPU_PRODUCT_PLAIN_H_
#define MLA_GPU_PRODUCT_PLAIN_H_

#include "gpu/product_block.h"

namespace mla {
namespace gpu {

struct PlainProduct {
  const ProductArgs& args;
  const ProductBlock block;

  MLA_DEVICE explicit PlainProduct(const ProductArgs& product)
      : args(product), block(product, kPlainTokens) {}

  MLA_DEVICE void Sum(int64_t row, float (&sums)[kPlainTokens]) const {
    int64_t tokens[kPlainTokens];
#pragma unroll
    for (int t = 0; t < kPlainTokens; ++t) {
      tokens[t] = block.TokenOffset(t < block.count ? t : 0) + block.batch * args.x_batch;
      sums[t] = 0;
    }
    for (int64_t k = Lane(); k < args.k; k += kWave) {
      const float weight = ReadWeight(args, block.data, block.scale, row, k);
#pragma unroll
      for (int t = 0; t < kPlainTokens; ++t) {
        sums[t] += ReadOne(args.x, args.x_type, tokens[t] + k) * weight;
      }
    }
#pragma unroll
    for (int t = 0; t < kPlainTokens; ++t) sums[t] = LanesSum<kWave>(sums[t]);
  }

  // A block has as many waves as the machine's wave allows and as many outputs as it has waves.
  MLA_DEVICE void Run() const {
    constexpr int kWaves = kPlainThreads / kWave;
    const int64_t output = block.row_block * kWaves + ThreadX() / kWave;
    if (block.count <= 0 || output >= block.Outputs()) return;
    float sums[kPlainTokens];
    Sum(block.WeightRow(output, 0), sums);
    if (args.gated) {
      float up[kPlainTokens];
      Sum(block.WeightRow(output, 1), up);
#pragma unroll
      for (int t = 0; t < kPlainTokens; ++t) sums[t] = Gated(sums[t], up[t]);
    }
#pragma unroll
    for (int t = 0; t < kPlainTokens; ++t) {
      if (Lane() == t && t < block.count) block.Emit(output, t, sums[t]);
    }
  }
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_PRODUCT_PLAIN_H_
