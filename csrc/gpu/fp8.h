// Products of FP8 codes, e4m3fn (OCP) or e4m3fnuz, on matrix cores: 128 columns of 16 rows by 128
// columns of kTileTokens tokens, tiles and sums as in octet.h.
//
// gfx950 multiplies 128 columns of OCP codes by one instruction, of which a lane holds 32 codes of
// its row (CDNA4 ISA, "Matrix Core scaled instructions"); its scales are 1. gfx942 does 32
// of its own e4m3fnuz codes, of which a lane holds eight (CDNA3 ISA, 7.1.4,
// v_mfma_f32_16x16x32_fp8_fp8); OCP codes become such ones in registers, of half their value. Which
// columns a lane's codes are of is the caller's choice, the same for both operands: the sum does
// not mind.
//
// Elsewhere both operands are decoded to bf16, which holds every code: gfx950's e4m3fnuz, as the
// bits of its 240 are OCP's NaN, and all of sm_90's, as the FP8 instructions of Hopper keep about
// 14 bits of their sums ("DeepSeek-V3 Technical Report", 3.3.2), too few for results that are
// rounded once.
#ifndef MLA_GPU_FP8_H_
#define MLA_GPU_FP8_H_

#include "gpu/decode.h"
#include "gpu/lane_ring.h"

namespace mla {
namespace gpu {

// A lane's codes of one row or token.
constexpr int kFp8Columns = 128, kFp8Chunks = 2;
struct Fp8Codes {
  Chunk chunks[kFp8Chunks];
};

// The column of the lane's chunk c: the quarters' chunks lie side by side.
MLA_DEVICE int Fp8Column(int c) { return 64 * c + 16 * Quarter(); }

// HalvedToFnuz of any codes: NaN becomes NaN.
MLA_DEVICE uint32_t AnyHalvedToFnuz(uint32_t word) {
  const uint32_t nan = E4M3Nans<false>(word) & 0x80808080u;
  return (HalvedToFnuz(word) & ~(nan - (nan >> 7))) | nan;
}

template <bool fnuz>
MLA_DEVICE Octet DecodeFp8(const Fp8Codes& codes, int octet) {
  const Chunk& chunk = codes.chunks[octet / 2];
  return DecodeE4M3<fnuz>(WordOf(chunk, octet % 2 * 2), WordOf(chunk, octet % 2 * 2 + 1));
}

template <bool rows_fnuz, bool tokens_fnuz>
struct Fp8Products {
  // What the sums are to be multiplied by.
#if defined(__gfx942__)
  static constexpr float kFactor = (rows_fnuz ? 1.0f : 2.0f) * (tokens_fnuz ? 1.0f : 2.0f);
#else
  static constexpr float kFactor = 1;
#endif

  // The sums of these 128 columns alone.
  template <int row_tiles, int token_tiles>
  MLA_DEVICE static void Multiply(TileSums (&sums)[row_tiles][token_tiles],
                                  const Fp8Codes (&rows)[row_tiles][kLaneRows],
                                  const Fp8Codes (&tokens)[token_tiles]) {
#if defined(__gfx942__)
    Fp8Codes own_rows[row_tiles];
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) own_rows[i] = ToFnuz<rows_fnuz>(rows[i][0]);
#pragma unroll
    for (int t = 0; t < token_tiles; ++t) {
      const Fp8Codes own_token = ToFnuz<tokens_fnuz>(tokens[t]);
#pragma unroll
      for (int i = 0; i < row_tiles; ++i) sums[i][t] = MultiplyTile(own_rows[i], own_token);
    }
    return;
#elif defined(__gfx950__)
    if constexpr (!rows_fnuz && !tokens_fnuz) {
#pragma unroll
      for (int t = 0; t < token_tiles; ++t) {
#pragma unroll
        for (int i = 0; i < row_tiles; ++i) sums[i][t] = MultiplyTile(rows[i][0], tokens[t]);
      }
      return;
    }
#endif
    // An octet of all tiles at a time: decoded as a whole they would not fit into registers.
#pragma unroll
    for (int octet = 0; octet < 4; ++octet) {
      Octet of_rows[row_tiles][kLaneRows];
#pragma unroll
      for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
        for (int j = 0; j < kLaneRows; ++j) of_rows[i][j] = DecodeFp8<rows_fnuz>(rows[i][j], octet);
      }
#pragma unroll
      for (int t = 0; t < token_tiles; ++t) {
        const Octet of_token = DecodeFp8<tokens_fnuz>(tokens[t], octet);
#pragma unroll
        for (int i = 0; i < row_tiles; ++i) {
          if (octet == 0) sums[i][t] = TileSums();
          MmaOctet(sums[i][t], of_rows[i], of_token);
        }
      }
    }
  }

#if defined(__gfx942__)
 private:
  template <bool fnuz>
  MLA_DEVICE static Fp8Codes ToFnuz(Fp8Codes codes) {
    if constexpr (!fnuz) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        codes.chunks[i / 4][i % 4] = AnyHalvedToFnuz(codes.chunks[i / 4][i % 4]);
      }
    }
    return codes;
  }

  MLA_DEVICE static TileSums MultiplyTile(const Fp8Codes& row, const Fp8Codes& token) {
    struct Eights {
      long at[4];
    };
    const auto a = BitCast<Eights>(row), b = BitCast<Eights>(token);
    MmaFloats d = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      d = __builtin_amdgcn_mfma_f32_16x16x32_fp8_fp8(a.at[i], b.at[i], d, 0, 0, 0);
    }
    return BitCast<TileSums>(d);
  }
#elif defined(__gfx950__)
 private:
  MLA_DEVICE static TileSums MultiplyTile(const Fp8Codes& row, const Fp8Codes& token) {
    typedef int Operand __attribute__((ext_vector_type(8)));
    constexpr int kFp8 = 0, kOne = 127;
    return BitCast<TileSums>(__builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4(
        BitCast<Operand>(row), BitCast<Operand>(token), MmaFloats{0, 0, 0, 0}, kFp8, kFp8, 0, kOne,
        0, kOne));
  }
#endif
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_FP8_H_
