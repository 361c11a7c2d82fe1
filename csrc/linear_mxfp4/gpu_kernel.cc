// Products of MXFP4 with MXFP4 on matrix cores.
//
// gfx950 has an instruction for it, v_mfma_scale_f32_16x16x128_f8f6f4: a lane holds 32 codes of one
// row, which is one group, and that group's scale byte (CDNA4 ISA, "Matrix Core scaled
// instructions"). Elsewhere both operands are decoded to bf16, which holds every one of their
// values, in the same order; the sums are the same products in f32.
#include "gpu/decode.h"
#include "gpu/lane_ring.h"
#include "gpu/tile_sums.h"
#include "linear_mxfp4/gpu_shape.h"

namespace mla {
namespace gpu {
namespace {

// One group of a lane's row: 32 codes and their scale.
struct Group {
  Chunk codes;
  uint32_t scale;
};

#if defined(__gfx950__)
// The lane's rows of one tile; one row.
struct LaneGroups {
  Group at[1];
};

MLA_DEVICE void Multiply(TileSums& sums, const LaneGroups& rows, const Group& token) {
  typedef int Operand __attribute__((ext_vector_type(8)));
  constexpr int kFp4 = 4;
  const Chunk a = rows.at[0].codes, b = token.codes;
  const Operand left = {static_cast<int>(a[0]),
                        static_cast<int>(a[1]),
                        static_cast<int>(a[2]),
                        static_cast<int>(a[3]),
                        0,
                        0,
                        0,
                        0};
  const Operand right = {static_cast<int>(b[0]),
                         static_cast<int>(b[1]),
                         static_cast<int>(b[2]),
                         static_cast<int>(b[3]),
                         0,
                         0,
                         0,
                         0};
  const MmaFloats d = __builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4(
      left, right, BitCast<MmaFloats>(sums), kFp4, kFp4, 0, static_cast<int>(rows.at[0].scale), 0,
      static_cast<int>(token.scale));
  sums = BitCast<TileSums>(d);
}
#else
struct LaneGroups {
  Group at[kLaneRows];
};

MLA_DEVICE Octet DecodeGroup(const Group& group, int o) {
  return DecodeE2M1<true>(WordOf(group.codes, o), GroupScale{group.scale});
}

MLA_DEVICE void Multiply(TileSums& sums, const LaneGroups& rows, const Group& token) {
#pragma unroll
  for (int o = 0; o < 4; ++o) {
    Octet weights[kLaneRows];
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) weights[j] = DecodeGroup(rows.at[j], o);
    MmaOctet(sums, weights, DecodeGroup(token, o));
  }
}
#endif

template <typename Shape>
struct Mxfp4Product {
  using Sums = BlockSums<Shape>;
  static constexpr int kTokenTiles = Sums::kTokenTiles, kRowTiles = Sums::kRowTiles;
  static constexpr int kStepGroups = 4;  // One a quarter.

  const LinearMxfp4Args& args;
  Sums sums;
  const uint8_t* rows[kRowTiles][kLaneRows];
  const uint8_t* row_scales[kRowTiles][kLaneRows];
  const uint8_t* tokens[kTokenTiles];
  const uint8_t* token_scales[kTokenTiles];

  MLA_DEVICE explicit Mxfp4Product(const LinearMxfp4Args& product)
      : args(product), sums(product.n, product.m, product.row_blocks) {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        const int64_t row = sums.Row(i, LaneRow(j));
        rows[i][j] = args.w + row * args.groups * 16;
        row_scales[i][j] = args.w_scale + row * args.groups;
      }
    }
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      const int64_t token = sums.Token(t, LaneToken());
      tokens[t] = args.x + token * args.groups * 16;
      token_scales[t] = args.x_scale + token * args.groups;
    }
  }

  // Behind the last group there are zeros under scale 1.
  MLA_DEVICE Group Read(const uint8_t* codes, const uint8_t* scales, int64_t group) const {
    if (group >= args.groups) return {Chunk{}, 127u};
    return {*reinterpret_cast<const Chunk*>(codes + group * 16), scales[group]};
  }

  struct Operands {
    LaneGroups weights[kRowTiles];
    Group token[kTokenTiles];
  };

  MLA_DEVICE Operands Read(int64_t step) const {
    const int64_t group = step * kStepGroups + Quarter();
    Operands found;
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        found.weights[i].at[j] = Read(rows[i][j], row_scales[i][j], group);
      }
    }
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) found.token[t] = Read(tokens[t], token_scales[t], group);
    return found;
  }

  MLA_DEVICE void Run(float* shared) {
    const int64_t steps = (args.groups + kStepGroups - 1) / kStepGroups;
    // Each step is read while the one before it is multiplied.
    int64_t step = Sums::Split();
    Operands next = Read(step);
    while (step < steps) {
      const Operands now = next;
      step += Shape::kSplits;
      next = Read(step);
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) Multiply(sums.at[i][t], now.weights[i], now.token[t]);
      }
    }
    if (sums.AddSplits(shared)) sums.Write(args.y, args.y_type);
  }
};

}  // namespace
}  // namespace gpu
}  // namespace mla

using mla::LinearMxfp4Args;

#if defined(__HIP__)
extern "C" __shared__ float mla_mxfp4_sums[];
#else
extern __shared__ float mla_mxfp4_sums[];
#endif

MLA_GPU_KERNEL(mla_linear_mxfp4_few, mla::gpu::Mxfp4Few::kThreads, LinearMxfp4Args) {
  mla::gpu::Mxfp4Product<mla::gpu::Mxfp4Few>(args).Run(mla_mxfp4_sums);
}
MLA_GPU_KERNEL(mla_linear_mxfp4_many, mla::gpu::Mxfp4Many::kThreads, LinearMxfp4Args) {
  mla::gpu::Mxfp4Product<mla::gpu::Mxfp4Many>(args).Run(mla_mxfp4_sums);
}
