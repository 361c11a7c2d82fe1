// Products of FP8 with FP8 on matrix cores, whose sums over a group of 128 columns meet the group's
// two scales.
#include "gpu/fp8.h"
#include "gpu/tile_sums.h"
#include "linear_fp8/gpu_shape.h"

namespace mla {
namespace gpu {
namespace {

template <typename Shape, bool x_fnuz, bool w_fnuz>
struct Fp8Product {
  using Sums = BlockSums<Shape>;
  using Products = Fp8Products<w_fnuz, x_fnuz>;
  static constexpr int kTokenTiles = Sums::kTokenTiles, kRowTiles = Sums::kRowTiles;
  static_assert(kFp8Columns == kFp8Group, "a step is a group");

  const LinearFp8Args& args;
  Sums sums;
  const uint8_t* rows[kRowTiles][kLaneRows];
  const uint8_t* tokens[kTokenTiles];
  // From the first row's or token's scales, which all lanes share, to those of the lane's sums:
  // half the registers of addresses. The compiler sees which of them are the same.
  const float *block_row_scales, *block_token_scales;
  uint32_t row_scales[kRowTiles][TileSums::kValues];
  uint32_t token_scales[kTokenTiles][TileSums::kValues];

  MLA_DEVICE explicit Fp8Product(const LinearFp8Args& product)
      : args(product), sums(product.n, product.m, product.row_blocks) {
    const uint32_t first_block = static_cast<uint32_t>(sums.first_row) / args.block_n;
    block_row_scales = args.w_scale + first_block * args.groups;
    block_token_scales = args.x_scale + sums.first_token * args.groups;
    const auto groups = static_cast<uint32_t>(args.groups);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) rows[i][j] = args.w + sums.Row(i, LaneRow(j)) * args.k;
#pragma unroll
      for (int v = 0; v < TileSums::kValues; ++v) {
        const auto row = static_cast<uint32_t>(sums.Row(i, TileSums::Row(v)));
        row_scales[i][v] = (row / args.block_n - first_block) * groups;
      }
    }
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      tokens[t] = args.x + sums.Token(t, LaneToken()) * args.k;
#pragma unroll
      for (int v = 0; v < TileSums::kValues; ++v) {
        const int64_t token = sums.Token(t, TileSums::Token(v));
        token_scales[t][v] = static_cast<uint32_t>(token - sums.first_token) * groups;
      }
    }
  }

  struct Operands {
    Fp8Codes weights[kRowTiles][kLaneRows];
    Fp8Codes tokens[kTokenTiles];
    float row_scales[kRowTiles][TileSums::kValues];
    float token_scales[kTokenTiles][TileSums::kValues];
  };

  // In place of chunks behind the last column come the first ones.
  MLA_DEVICE Operands Read(int64_t group) const {
    Operands found;
#pragma unroll
    for (int c = 0; c < kFp8Chunks; ++c) {
      const int64_t wanted = group * kFp8Columns + Fp8Column(c);
      const int64_t column = wanted < args.k ? wanted : 0;
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kLaneRows; ++j) {
          found.weights[i][j].chunks[c] = *reinterpret_cast<const Chunk*>(rows[i][j] + column);
        }
      }
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        found.tokens[t].chunks[c] = *reinterpret_cast<const Chunk*>(tokens[t] + column);
      }
    }
#pragma unroll
    for (int v = 0; v < TileSums::kValues; ++v) {
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        found.row_scales[i][v] = (block_row_scales + group)[row_scales[i][v]];
      }
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        found.token_scales[t][v] = (block_token_scales + group)[token_scales[t][v]];
      }
    }
    return found;
  }

  // Zeros for the weights behind the last column. The tokens there may stay: a code that is NaN is
  // one of the same token's.
  MLA_DEVICE void EndRows(Operands& last, int64_t group) const {
#pragma unroll
    for (int c = 0; c < kFp8Chunks; ++c) {
      if (group * kFp8Columns + Fp8Column(c) < args.k) continue;
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kLaneRows; ++j) last.weights[i][j].chunks[c] = Chunk{};
      }
    }
  }

  MLA_DEVICE void Add(const Operands& now) {
    TileSums group[kRowTiles][kTokenTiles];
    Products::Multiply(group, now.weights, now.tokens);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
        for (int v = 0; v < TileSums::kValues; ++v) {
          const float scale = now.token_scales[t][v] * now.row_scales[i][v];
          float& sum = sums.at[i][t].at[v];
          sum = __builtin_fmaf(scale, group[i][t].at[v], sum);
        }
      }
    }
  }

  MLA_DEVICE void Run(float* shared) {
    int64_t group = Sums::Split();
    if (group < args.groups) {
      Operands now = Read(group);
      // Each group is read while the one before it is multiplied.
      for (group += Shape::kSplits; group < args.groups; group += Shape::kSplits) {
        const Operands next = Read(group);
        Add(now);
        now = next;
      }
      EndRows(now, group - Shape::kSplits);
      Add(now);
    }
    if (sums.AddSplits(shared)) sums.Write(args.y, args.y_type, Products::kFactor);
  }
};

}  // namespace
}  // namespace gpu
}  // namespace mla

using mla::LinearFp8Args;

#if defined(__HIP__)
extern "C" __shared__ float mla_fp8_sums[];
#else
extern __shared__ float mla_fp8_sums[];
#endif

#define MLA_FP8_KERNEL(kind, shape, x_fnuz, w_fnuz)                                          \
  MLA_GPU_KERNEL_WAVES(mla_linear_fp8_##kind, mla::gpu::shape::kThreads, 2, LinearFp8Args) { \
    mla::gpu::Fp8Product<mla::gpu::shape, x_fnuz, w_fnuz>(args).Run(mla_fp8_sums);           \
  }

MLA_FP8_KERNEL(ocp_ocp_few, Fp8Few, false, false)
MLA_FP8_KERNEL(ocp_ocp_many, Fp8Many, false, false)
MLA_FP8_KERNEL(ocp_fnuz_few, Fp8Few, false, true)
MLA_FP8_KERNEL(ocp_fnuz_many, Fp8Many, false, true)
MLA_FP8_KERNEL(fnuz_ocp_few, Fp8Few, true, false)
MLA_FP8_KERNEL(fnuz_ocp_many, Fp8Many, true, false)
MLA_FP8_KERNEL(fnuz_fnuz_few, Fp8Few, true, true)
MLA_FP8_KERNEL(fnuz_fnuz_many, Fp8Many, true, true)
