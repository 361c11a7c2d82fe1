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

using ColumnFragment = Fragment;

MLA_DEVICE void MmaRows(Accumulator& d, const Fragment& rows, const ColumnFragment& columns) {
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

// Four 8x8 matrices: k 0-7 and 8-15 of vectors 0-7, then of 8-15. In a Fragment's order the two
// that an instruction takes would not be neighbours, and half of all instructions would move them
// there.
struct ColumnFragment {
  uint32_t at[4];
};

MLA_DEVICE void MmaRows(Accumulator& d, const Fragment& rows, const ColumnFragment& columns) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    MmaSync(d.halves[half], rows.at[0], rows.at[1], rows.at[2], rows.at[3], columns.at[2 * half],
            columns.at[2 * half + 1]);
  }
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

#if defined(__HIP__)

// A tile's columns, vectors in shared memory as LoadFragment has them.
MLA_DEVICE ColumnFragment LoadTileColumns(const bf16* shared, int stride, int tile) {
  return BitCast<Fragment>(
      LoadPack<kLaneK>(shared + SourceColumn(tile, Lane() % 16) * stride + kLaneK * (Lane() / 16)));
}

// kMmaK rows of 64 columns in shared memory, as LoadColumns has them.
MLA_DEVICE void LoadRowsColumns(const bf16* shared, int stride, ColumnFragment (&fragments)[4]) {
  LoadColumns(shared, stride, fragments);
}

#else

MLA_DEVICE ColumnFragment LoadTileColumns(const bf16* shared, int stride, int tile) {
  ColumnFragment f;
  const bf16* row =
      shared + (16 * tile + Lane() % 8 + 8 * (Lane() / 16)) * stride + 8 * (Lane() / 8 % 2);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(f.at[0]), "=r"(f.at[1]), "=r"(f.at[2]), "=r"(f.at[3])
               : "r"(SharedAddress(row))
               : "memory");
  return f;
}

MLA_DEVICE void LoadRowsColumns(const bf16* shared, int stride, ColumnFragment (&fragments)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    ColumnFragment& f = fragments[j];
    const bf16* row = shared + (Lane() % 16) * stride + 16 * j + 8 * (Lane() / 16);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f.at[0]), "=r"(f.at[1]), "=r"(f.at[2]), "=r"(f.at[3])
                 : "r"(SharedAddress(row))
                 : "memory");
  }
}

#endif

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
