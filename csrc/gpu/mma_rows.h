// Products of tiles in a chain: the sums of one, row by row made into weights, are an operand of
// the next and never leave the lanes that added them up.
//
// The accumulator's layout must be that of an operand. On NVIDIA it is; on AMD it is if the product
// is transposed, so that a lane holds four columns of one row. Rows and columns are counted here as
// if nothing had been transposed.
#ifndef MLA_GPU_MMA_ROWS_H_
#define MLA_GPU_MMA_ROWS_H_

#include "gpu/mma.h"

namespace mla {
namespace gpu {

// Two values rounded to bf16, the first one in the low half.
MLA_DEVICE uint32_t RoundPair(float low, float high) {
#if defined(__HIP__)
  const Pack<bf16, 2> pair = {{FromFloat<bf16>(low), FromFloat<bf16>(high)}};
  return BitCast<uint32_t>(pair);
#else
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

constexpr int kTilesOfK = kMmaK / 16;  // Tiles whose columns are one step's contraction.

#if defined(__HIP__)

// Rows that a lane has values of.
constexpr int kHeldRows = 1;
MLA_DEVICE int HeldRow(int) { return Lane() % 16; }
// Which of them value i of an accumulator belongs to.
constexpr int SlotOf(int) { return 0; }
// Its column in a tile.
MLA_DEVICE int ColumnInTile(int i) { return Accumulator::Row(i); }

MLA_DEVICE void MmaRows(Accumulator& d, const Fragment& rows, const Fragment& columns) {
  Mma(d, columns, rows);
}

template <typename Fn>
MLA_DEVICE float OverLanesOfRow(float value, const Fn& combine) {
  value = combine(value, Shuffle(value, Lane() ^ 16));
  return combine(value, Shuffle(value, Lane() ^ 32));
}

#else

constexpr int kHeldRows = 2;
MLA_DEVICE int HeldRow(int slot) { return Lane() / 4 + 8 * slot; }
constexpr __device__ int SlotOf(int i) { return (i >> 1) & 1; }
MLA_DEVICE int ColumnInTile(int i) { return Accumulator::Column(i); }

MLA_DEVICE void MmaRows(Accumulator& d, const Fragment& rows, const Fragment& columns) {
  Mma(d, rows, columns);
}

template <typename Fn>
MLA_DEVICE float OverLanesOfRow(float value, const Fn& combine) {
  value = combine(value, Shuffle(value, Lane() ^ 1));
  return combine(value, Shuffle(value, Lane() ^ 2));
}

#endif

// Where column n of tile `tile` is taken from. Two tiles that become one step of 32 share their
// columns in groups of four, as the operand's lanes do.
MLA_DEVICE int SourceColumn(int tile, int n) {
  return kTilesOfK == 1 ? 16 * tile + n : 32 * (tile / 2) + 8 * (n / 4) + 4 * (tile % 2) + n % 4;
}

// A tile's columns, vectors in shared memory as LoadFragment has them.
MLA_DEVICE Fragment LoadTileColumns(const bf16* shared, int stride, int tile) {
#if defined(__gfx950__)
  return BitCast<Fragment>(
      LoadPack<kLaneK>(shared + SourceColumn(tile, Lane() % 16) * stride + kLaneK * (Lane() / 16)));
#else
  return LoadFragment(shared + tile * 16 * stride, stride);
#endif
}

// Neighbouring tiles of weights as rows of the next product, their columns the contraction.
MLA_DEVICE Fragment RowsOf(const Accumulator (&tiles)[kTilesOfK]) {
#if defined(__HIP__)
  uint32_t pairs[kLaneK / 2];
#pragma unroll
  for (int i = 0; i < kLaneK; i += 2)
    pairs[i / 2] = RoundPair(tiles[i / 4].at(i % 4), tiles[i / 4].at(i % 4 + 1));
  Fragment f;
  __builtin_memcpy(&f, pairs, sizeof(f));
  return f;
#else
  Fragment f;
#pragma unroll
  for (int i = 0; i < 4; ++i) f.at[i] = RoundPair(tiles[0].at(2 * i), tiles[0].at(2 * i + 1));
  return f;
#endif
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_MMA_ROWS_H_
