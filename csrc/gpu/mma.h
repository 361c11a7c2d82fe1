// Products of 16x16 tiles on matrix cores: D (16 x 16, f32) += A (16 x kMmaK) * B (kMmaK x 16),
// bf16.
//
// A fragment is 16 vectors of kMmaK values along the contraction: rows of A or, just the same,
// columns of B. Which lane holds what differs an architecture and is nobody else's business:
// fragments come from shared memory or from a function of (vector, k), and an accumulator says
// where its values lie.
//
// Lane maps: AMD "Instinct MI300 (CDNA3) ISA", 7.1.4, and "CDNA4 ISA", 7.1.4 (matrix arithmetic,
// v_mfma_f32_16x16x16_bf16 and v_mfma_f32_16x16x32_bf16); NVIDIA "PTX ISA", 9.7.14.5.8
// (mma.m16n8k16) and 9.7.14.5.15 (ldmatrix).
#ifndef MLA_GPU_MMA_H_
#define MLA_GPU_MMA_H_

#include "gpu/convert.h"

namespace mla {
namespace gpu {

#if defined(__HIP__)

#if defined(__gfx950__)
constexpr int kMmaK = 32;
#else
constexpr int kMmaK = 16;
#endif

// Lane l holds vector l % 16, k from kLaneK * (l / 16) on.
constexpr int kLaneK = kMmaK / 4;
typedef short MmaBits __attribute__((ext_vector_type(kLaneK)));
typedef float MmaFloats __attribute__((ext_vector_type(4)));

struct Fragment {
  MmaBits bits;
};

struct Accumulator {
  static constexpr int kValues = 4;
  MmaFloats values = {0, 0, 0, 0};

  MLA_DEVICE float at(int i) const { return values[i]; }
  MLA_DEVICE void set(int i, float value) { values[i] = value; }
  // Of value i in the tile.
  static MLA_DEVICE int Row(int i) { return 4 * (Lane() / 16) + i; }
  static MLA_DEVICE int Column(int) { return Lane() % 16; }
};

MLA_DEVICE void Mma(Accumulator& d, const Fragment& a, const Fragment& b) {
#if defined(__gfx950__)
  typedef __bf16 Operand __attribute__((ext_vector_type(8)));
  d.values = __builtin_amdgcn_mfma_f32_16x16x32_bf16(BitCast<Operand>(a), BitCast<Operand>(b),
                                                     d.values, 0, 0, 0);
#else
  d.values = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(a.bits, b.bits, d.values, 0, 0, 0);
#endif
}

// 16 vectors in shared memory, `stride` elements apart, each kMmaK long and aligned to 16 bytes.
MLA_DEVICE Fragment LoadFragment(const bf16* shared, int stride) {
  return BitCast<Fragment>(
      LoadPack<kLaneK>(shared + (Lane() % 16) * stride + kLaneK * (Lane() / 16)));
}

// The vectors' values by a function of (vector, first k): kFragmentRun values along k from there.
constexpr int kFragmentRun = kLaneK;
template <typename Fn>
MLA_DEVICE Fragment MakeFragment(const Fn& run) {
  return BitCast<Fragment>(run(Lane() % 16, kLaneK * (Lane() / 16)));
}

// kMmaK rows of 64 columns in shared memory, as 4 fragments whose vectors are columns.
MLA_DEVICE void LoadColumns(const bf16* shared, int stride, Fragment (&fragments)[4]) {
  // A lane reads 4 columns of its kLaneK rows and turns them in registers.
  const bf16* first = shared + kLaneK * (Lane() / 16) * stride + 4 * (Lane() % 16);
  Pack<uint32_t, 2> rows[kLaneK];
#pragma unroll
  for (int i = 0; i < kLaneK; ++i) {
    rows[i] = BitCast<Pack<uint32_t, 2>>(LoadPack<4>(first + i * stride));
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    uint32_t pairs[kLaneK / 2];
#pragma unroll
    for (int i = 0; i < kLaneK; i += 2) {
      pairs[i / 2] = __builtin_amdgcn_perm(rows[i + 1].at[j / 2], rows[i].at[j / 2],
                                           j % 2 == 0 ? 0x05040100u : 0x07060302u);
    }
    __builtin_memcpy(&fragments[j], pairs, sizeof(pairs));
  }
}
// The column of vector n of fragment j.
MLA_DEVICE int ColumnOf(int j, int n) { return 4 * n + j; }

#else  // CUDA

constexpr int kMmaK = 16;

// Four 8x8 matrices: vectors 0-7 and 8-15 of k 0-7, then of k 8-15.
struct Fragment {
  uint32_t at[4];
};

struct Accumulator {
  static constexpr int kValues = 8;
  float halves[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};  // Of 8 columns each.

  MLA_DEVICE float at(int i) const { return halves[i / 4][i % 4]; }
  MLA_DEVICE void set(int i, float value) { halves[i / 4][i % 4] = value; }
  static MLA_DEVICE int Row(int i) { return Lane() / 4 + 8 * ((i >> 1) & 1); }
  static MLA_DEVICE int Column(int i) { return 8 * (i >> 2) + 2 * (Lane() % 4) + (i & 1); }
};

// mma.m16n8k16: sums += A * B, with the registers of A and B in the document's order.
MLA_DEVICE void MmaSync(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                        uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

MLA_DEVICE void Mma(Accumulator& d, const Fragment& a, const Fragment& b) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    MmaSync(d.halves[half], a.at[0], a.at[1], a.at[2], a.at[3], b.at[half], b.at[2 + half]);
  }
}

MLA_DEVICE Fragment LoadFragment(const bf16* shared, int stride) {
  Fragment f;
  const bf16* row = shared + (Lane() % 16) * stride + 8 * (Lane() / 16);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(f.at[0]), "=r"(f.at[1]), "=r"(f.at[2]), "=r"(f.at[3])
               : "r"(SharedAddress(row))
               : "memory");
  return f;
}

constexpr int kFragmentRun = 2;
template <typename Fn>
MLA_DEVICE Fragment MakeFragment(const Fn& run) {
  Fragment f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    f.at[i] = BitCast<uint32_t>(run(Lane() / 4 + 8 * (i & 1), 2 * (Lane() % 4) + 8 * (i >> 1)));
  }
  return f;
}

MLA_DEVICE void LoadColumns(const bf16* shared, int stride, Fragment (&fragments)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    // Lanes 0-7, 8-15, 16-23, 24-31 give the rows of the four matrices: k 0-7 of columns 0-7 and
    // 8-15, then k 8-15.
    const int row = Lane() % 8 + 8 * (Lane() / 16), column = 16 * j + 8 * (Lane() / 8 % 2);
    Fragment& f = fragments[j];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f.at[0]), "=r"(f.at[1]), "=r"(f.at[2]), "=r"(f.at[3])
                 : "r"(SharedAddress(shared + row * stride + column))
                 : "memory");
  }
}
MLA_DEVICE int ColumnOf(int j, int n) { return 16 * j + n; }

#endif

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_MMA_H_
