// Rows from anywhere in memory into a tile in shared memory as bf16, asynchronously where the
// machine can, else through registers. Starting early and finishing late hides memory's latency.
#ifndef MLA_GPU_COPY_H_
#define MLA_GPU_COPY_H_

#include "gpu/convert.h"

namespace mla {
namespace gpu {

// 16 bytes in registers. A struct of an array would end up in memory.
#if defined(__HIP__)
typedef uint32_t Chunk __attribute__((ext_vector_type(4)));
#else
typedef uint4 Chunk;
#endif

MLA_DEVICE void StoreChunk(bf16* shared, const Chunk& chunk, const bf16*) {
  *reinterpret_cast<Chunk*>(shared) = chunk;
}
// 16 codes become 32 bytes; bf16 holds every one of them exactly.
MLA_DEVICE void StoreChunk(bf16* shared, const Chunk& chunk, const f8e4m3fn*) {
  const auto codes = BitCast<Pack<f8e4m3fn, 16>>(chunk);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Pack<bf16, 8> values;
#pragma unroll
    for (int i = 0; i < 8; ++i) values.at[i] = FromFloat<bf16>(ToFloat(codes.at[8 * half + i]));
    StorePack(shared + 8 * half, values);
  }
}

// A tile of `rows` rows of `width` values, `stride` apart in shared memory. Row r begins at element
// offsets[r] of the source; a negative offset makes it zeros. T is bf16 or f8e4m3fn.
template <typename T, int width, int rows, int threads, int stride, int stages>
struct RowCopy {
  static constexpr int kChunkValues = 16 / sizeof(T);
  static constexpr int kRowChunks = width / kChunkValues;
  static constexpr int kChunks = rows * kRowChunks;
  static constexpr int kMine = (kChunks + threads - 1) / threads;
#if defined(__HIP__)
  static constexpr bool kAsync = false;
#else
  static constexpr bool kAsync = sizeof(T) == 2 && stages > 1;
#endif
  static_assert(width % kChunkValues == 0, "rows are whole chunks");

  Chunk held[kAsync ? 1 : kMine];

  MLA_DEVICE void Start(const T* source, const int64_t* offsets, [[maybe_unused]] bf16* shared) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int chunk = ThreadX() + i * threads;
      if (kChunks % threads != 0 && chunk >= kChunks) break;
      const int row = chunk / kRowChunks, column = chunk % kRowChunks * kChunkValues;
      const int64_t offset = offsets[row];
#if !defined(__HIP__)
      if constexpr (kAsync) {
        const uint32_t to =
            static_cast<uint32_t>(__cvta_generic_to_shared(shared + row * stride + column));
        const T* from = source + (offset < 0 ? 0 : offset + column);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                     :
                     : "r"(to), "l"(__cvta_generic_to_global(from)), "r"(offset < 0 ? 0 : 16)
                     : "memory");
        continue;
      }
#endif
      Chunk read = {};
      if (offset >= 0) read = *reinterpret_cast<const Chunk*>(source + offset + column);
      held[kAsync ? 0 : i] = read;
    }
#if !defined(__HIP__)
    if constexpr (kAsync) asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }

  // After it and a barrier the tile is there.
  MLA_DEVICE void Finish([[maybe_unused]] bf16* shared) {
    if constexpr (kAsync) {
#if !defined(__HIP__)
      asm volatile("cp.async.wait_group 0;" ::: "memory");
#endif
    } else {
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        const int chunk = ThreadX() + i * threads;
        if (kChunks % threads != 0 && chunk >= kChunks) break;
        const int row = chunk / kRowChunks, column = chunk % kRowChunks * kChunkValues;
        StoreChunk(shared + row * stride + column, held[i], static_cast<const T*>(nullptr));
      }
    }
  }
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_COPY_H_
