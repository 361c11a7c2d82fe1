// Products on the matrix cores of NVIDIA's Hopper, which four waves issue together and which run
// beside them: D (64 x n, f32) += A (64 x 16) * B (16 x n), bf16, both read from shared memory.
//
// Operands lie in SwizzledPanels (copy.h) that begin at multiples of 1024 bytes. NVIDIA "PTX ISA",
// "Asynchronous Warpgroup Level Matrix Instructions" (wgmma.mma_async, its matrix descriptors and
// swizzles).
#ifndef MLA_GPU_WARPGROUP_H_
#define MLA_GPU_WARPGROUP_H_

#include "gpu/copy.h"

namespace mla {
namespace gpu {

constexpr int kWarpgroup = 4 * kWave;

// A matrix in a panel, from byte `address` of shared memory on. Groups of 8 rows are 1024 bytes
// apart; within a row, addresses move on by whole steps of the contraction.
struct SharedMatrix {
  uint32_t low;  // Half of the descriptor, the only one in which matrices differ.

  // From the first lane, so that the compiler sees that a wave has but one.
  MLA_DEVICE explicit SharedMatrix(uint32_t address)
      : low(kGroup << 16 | (__shfl_sync(~0u, address, 0) & 0x3ffff) >> 4) {}
  MLA_DEVICE SharedMatrix At(int bytes) const {
    SharedMatrix moved = *this;
    moved.low += static_cast<uint32_t>(bytes >> 4);
    return moved;
  }
  MLA_DEVICE uint64_t Descriptor() const {
    return static_cast<uint64_t>(kSwizzle128 | kGroup) << 32 | low;
  }

 private:
  static constexpr uint32_t kSwizzle128 = uint32_t{1} << 30, kGroup = 1024 >> 4;
};

// Before the first product after anybody else has touched the sums.
MLA_DEVICE void BeginProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// After the last product; then other work, and FinishProducts() before the sums are read.
MLA_DEVICE void EndProducts() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
MLA_DEVICE void FinishProducts() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
// Until at most the last `later` groups of products are under way.
template <int later>
MLA_DEVICE void FinishProductsBut() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(later) : "memory");
}

// A barrier of one warpgroup; `which` differs from group to group.
MLA_DEVICE void WarpgroupBarrier(int which) {
  asm volatile("bar.sync %0, %1;" ::"r"(which + 1), "n"(kWarpgroup) : "memory");
}

// Value v of `sums` of a product is in row 16 * (wave of the group) + Lane() / 4 + 8 * (v / 2 % 2)
// and column 8 * (v / 4) + 2 * (Lane() % 4) + v % 2. `columns` says that A's rows are the columns
// of its panel; else they are the panel's rows, as B's columns always are. Not `add`: sums were 0.
#define MLA_SUMS4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define MLA_SUMS8(i) MLA_SUMS4(i), MLA_SUMS4(i + 4)
#define MLA_SUMS16(i) MLA_SUMS8(i), MLA_SUMS8(i + 8)
#define MLA_WGMMA(shape, registers, a_at, b_at, add_at, columns_at, ...)                \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" add_at                              \
               ", 0;\nwgmma.mma_async.sync.aligned." shape ".f32.bf16.bf16 {" registers \
               "}, %" a_at ", %" b_at ", p, 1, 1, %" columns_at ", 0;\n}"               \
               : __VA_ARGS__                                                            \
               : "l"(a.Descriptor()), "l"(b.Descriptor()), "r"(add ? 1 : 0), "n"(columns ? 1 : 0))
#define MLA_REGISTERS4 "%0, %1, %2, %3"
#define MLA_REGISTERS8 MLA_REGISTERS4 ", %4, %5, %6, %7"
#define MLA_REGISTERS16 MLA_REGISTERS8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define MLA_REGISTERS32 \
  MLA_REGISTERS16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
template <bool columns, int values>
MLA_DEVICE void WarpgroupMma(float (&sums)[values], SharedMatrix a, SharedMatrix b, bool add) {
  static_assert(values == 4 || values == 8 || values == 16 || values == 32, "n is 8 to 64");
  if constexpr (values == 4) {
    MLA_WGMMA("m64n8k16", MLA_REGISTERS4, "4", "5", "6", "7", MLA_SUMS4(0));
  } else if constexpr (values == 8) {
    MLA_WGMMA("m64n16k16", MLA_REGISTERS8, "8", "9", "10", "11", MLA_SUMS8(0));
  } else if constexpr (values == 16) {
    MLA_WGMMA("m64n32k16", MLA_REGISTERS16, "16", "17", "18", "19", MLA_SUMS16(0));
  } else {
    MLA_WGMMA("m64n64k16", MLA_REGISTERS32, "32", "33", "34", "35", MLA_SUMS16(0), MLA_SUMS16(16));
  }
}
#undef MLA_WGMMA

// sums += A * B, with A in registers: those of mma.m16n8k16 for the wave's 16 of the 64 rows. They
// must stay as they are until the product has finished.
#define MLA_REGISTERS64                                                              \
  MLA_REGISTERS32                                                                    \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MLA_WGMMA_HELD(shape, registers, a_at, b_at, ...)                                     \
  asm volatile("wgmma.mma_async.sync.aligned." shape ".f32.bf16.bf16 {" registers "}, {" a_at \
               "}, %" b_at ", 1, 1, 1, 0;"                                                    \
               : __VA_ARGS__                                                                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.Descriptor()))
template <int values>
MLA_DEVICE void WarpgroupMmaHeld(float (&sums)[values], const uint32_t (&a)[4], SharedMatrix b) {
  static_assert(values == 4 || values == 8 || values == 16 || values == 32 || values == 64,
                "n is 8 to 128");
  if constexpr (values == 4) {
    MLA_WGMMA_HELD("m64n8k16", MLA_REGISTERS4, "%4, %5, %6, %7", "8", MLA_SUMS4(0));
  } else if constexpr (values == 8) {
    MLA_WGMMA_HELD("m64n16k16", MLA_REGISTERS8, "%8, %9, %10, %11", "12", MLA_SUMS8(0));
  } else if constexpr (values == 16) {
    MLA_WGMMA_HELD("m64n32k16", MLA_REGISTERS16, "%16, %17, %18, %19", "20", MLA_SUMS16(0));
  } else if constexpr (values == 32) {
    MLA_WGMMA_HELD("m64n64k16", MLA_REGISTERS32, "%32, %33, %34, %35", "36", MLA_SUMS16(0),
                   MLA_SUMS16(16));
  } else {
    MLA_WGMMA_HELD("m64n128k16", MLA_REGISTERS64, "%64, %65, %66, %67", "68", MLA_SUMS16(0),
                   MLA_SUMS16(16), MLA_SUMS16(32), MLA_SUMS16(48));
  }
}
#undef MLA_WGMMA_HELD
#undef MLA_REGISTERS64
#undef MLA_SUMS4
#undef MLA_SUMS8
#undef MLA_SUMS16
#undef MLA_REGISTERS4
#undef MLA_REGISTERS8
#undef MLA_REGISTERS16
#undef MLA_REGISTERS32

// An 8 x 8 matrix, of which a lane holds row Lane() / 4, columns 2 * (Lane() % 4) and the next,
// into shared memory with rows and columns exchanged: lane i < 8 says where column i goes.
MLA_DEVICE void StoreTransposed(bf16* column, const Pack<bf16, 2>& pair) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(SharedAddress(column)),
      "r"(BitCast<uint32_t>(pair))
      : "memory");
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_WARPGROUP_H_
