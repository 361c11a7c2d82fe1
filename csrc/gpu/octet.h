// Products of matrix cores whose operands lie in registers as octets: 8 consecutive values of one
// vector, as four pairs of bf16.
//
// A tile is 16 rows of weights by kTileTokens tokens. A lane owns octets of kLaneRows rows and of
// one token, at one of four quarters of the contraction. Which contraction index a quarter stands
// for is the caller's choice, the same for both operands: the sum does not mind.
//
// Lane maps: as in mma.h; here each lane's values along the contraction come in octets, of which
// NVIDIA's mma.m16n8k16 and gfx942's mfma take halves and gfx950's mfma all.
#ifndef MLA_GPU_OCTET_H_
#define MLA_GPU_OCTET_H_

#include "gpu/mma.h"

namespace mla {
namespace gpu {

struct Octet {
  uint32_t pairs[4];
};

#if defined(__HIP__)
constexpr int kTileTokens = 16, kLaneRows = 1;
MLA_DEVICE int LaneRow(int) { return Lane() % 16; }
MLA_DEVICE int LaneToken() { return Lane() % 16; }
MLA_DEVICE int Quarter() { return Lane() / 16; }
#else
constexpr int kTileTokens = 8, kLaneRows = 2;
MLA_DEVICE int LaneRow(int j) { return Lane() / 4 + 8 * j; }
MLA_DEVICE int LaneToken() { return Lane() / 4; }
MLA_DEVICE int Quarter() { return Lane() % 4; }
#endif

// Sums of a tile: value i of a lane is of row Row(i) and token Token(i).
struct TileSums {
  static constexpr int kValues = 4;
  float at[4] = {0, 0, 0, 0};

#if defined(__HIP__)
  static MLA_DEVICE int Row(int i) { return 4 * (Lane() / 16) + i; }
  static MLA_DEVICE int Token(int) { return Lane() % 16; }
#else
  static MLA_DEVICE int Row(int i) { return Lane() / 4 + 8 * (i >> 1); }
  static MLA_DEVICE int Token(int i) { return 2 * (Lane() % 4) + (i & 1); }
#endif
};

MLA_DEVICE void MmaOctet(TileSums& sums, const Octet (&rows)[kLaneRows], const Octet& token) {
#if defined(__gfx950__)
  typedef __bf16 Operand __attribute__((ext_vector_type(8)));
  const MmaFloats d = __builtin_amdgcn_mfma_f32_16x16x32_bf16(
      BitCast<Operand>(rows[0]), BitCast<Operand>(token), BitCast<MmaFloats>(sums), 0, 0, 0);
  sums = BitCast<TileSums>(d);
#elif defined(__HIP__)
  MmaFloats d = BitCast<MmaFloats>(sums);
  struct Halves {
    MmaBits at[2];
  };
  const auto a = BitCast<Halves>(rows[0]), b = BitCast<Halves>(token);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    d = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(a.at[i], b.at[i], d, 0, 0, 0);
  }
  sums = BitCast<TileSums>(d);
#else
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    MmaSync(sums.at, rows[0].pairs[i], rows[1].pairs[i], rows[0].pairs[i + 1], rows[1].pairs[i + 1],
            token.pairs[i], token.pairs[i + 1]);
  }
#endif
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_OCTET_H_
