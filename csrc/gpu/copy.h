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

// Offsets of rows that lie `step` apart, `count` of them.
struct EvenRows {
  int64_t first, step;
  int count;
  MLA_DEVICE int64_t operator[](int row) const { return row < count ? first + row * step : -1; }
};

// A tile of `rows` rows of `width` values, `stride` apart in shared memory, on its way there. Row r
// begins at element offsets[r] of the source, an array or what can be asked like one; a negative
// offset makes it zeros. T is bf16 or f8e4m3fn. Start(), then work on the tile before, then
// Finish() and a barrier.
//
// Through registers: there is one tile, and Finish() overwrites it.
template <typename T, int width, int rows, int threads, int stride>
struct RegisterCopy {
  static constexpr bool kTakesTurns = false;
  static constexpr int kChunkValues = 16 / sizeof(T);
  static constexpr int kRowChunks = width / kChunkValues;
  static constexpr int kChunks = rows * kRowChunks;
  static constexpr int kMine = (kChunks + threads - 1) / threads;
  static_assert(width % kChunkValues == 0, "rows are whole chunks");

  Chunk held[kMine];

  MLA_DEVICE static bf16* Tile(bf16* tiles, int) { return tiles; }

  template <typename Offsets>
  MLA_DEVICE void Start(const T* source, const Offsets& offsets, bf16*, int) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int chunk = ThreadX() + i * threads;
      if (kChunks % threads != 0 && chunk >= kChunks) break;
      const int row = chunk / kRowChunks, column = chunk % kRowChunks * kChunkValues;
      const int64_t offset = offsets[row];
      Chunk read = {};
      if (offset >= 0) read = *reinterpret_cast<const Chunk*>(source + offset + column);
      held[i] = read;
    }
  }

  MLA_DEVICE void Finish(bf16* tiles) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int chunk = ThreadX() + i * threads;
      if (kChunks % threads != 0 && chunk >= kChunks) break;
      const int row = chunk / kRowChunks, column = chunk % kRowChunks * kChunkValues;
      StoreChunk(tiles + row * stride + column, held[i], static_cast<const T*>(nullptr));
    }
  }
};

#if !defined(__HIP__)
// 16 bytes, past the first-level cache, or 4, to shared memory; zeros where `exists` is false.
template <int bytes>
MLA_DEVICE void CopyAsync(void* shared, const void* from, bool exists) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(to), "l"(__cvta_generic_to_global(from)), "r"(exists ? 16 : 0)
                 : "memory");
  } else {
    static_assert(bytes == 4, "16 bytes or 4");
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :
                 : "r"(to), "l"(__cvta_generic_to_global(from)), "r"(exists ? 4 : 0)
                 : "memory");
  }
}
MLA_DEVICE void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `later` groups of copies are under way.
template <int later>
MLA_DEVICE void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(later) : "memory");
}

// Past registers, with room for two tiles: those of bf16 take turns, float8 arrives where the
// second would be and is converted into the first. (Bulk copies, a row an instruction, were tried:
// slower by a fifth, however early they start.)
template <typename T, int width, int rows, int threads, int stride>
struct AsyncCopy {
  static constexpr bool kTakesTurns = sizeof(T) == 2;
  static constexpr int kChunkValues = 16 / sizeof(T);
  static constexpr int kRowChunks = width / kChunkValues;
  // That a wave takes at once.
  static constexpr int kRowsAtOnce = kRowChunks < kWave ? kWave / kRowChunks : 1;
  static_assert(width % kChunkValues == 0, "rows are whole chunks");
  static_assert(kRowsAtOnce == 1 || kWave % kRowChunks == 0, "no lane is left over");

  MLA_DEVICE static bf16* Tile(bf16* tiles, int turn) {
    return tiles + (kTakesTurns ? turn * rows * stride : 0);
  }

  // Calls row_fn(row) for this thread's rows and what it returns for the row's chunks. A wave takes
  // whole rows: few addresses to keep.
  template <typename Fn>
  MLA_DEVICE static void ForMine(const Fn& row_fn) {
    constexpr int kLanes = kWave / kRowsAtOnce;  // Of a row
#pragma unroll 2
    for (int row = ThreadX() / kLanes; row < rows; row += threads / kLanes) {
      const auto chunk_fn = row_fn(row);
#pragma unroll
      for (int i = 0; i < (kRowChunks + kLanes - 1) / kLanes; ++i) {
        const int chunk = Lane() % kLanes + i * kLanes;
        if (chunk < kRowChunks) chunk_fn(chunk);
      }
    }
  }

  template <typename Offsets>
  MLA_DEVICE void Start(const T* source, const Offsets& offsets, bf16* tiles, int turn) {
    char* tile = reinterpret_cast<char*>(kTakesTurns ? Tile(tiles, turn) : tiles + rows * stride);
    constexpr int kPitch = kTakesTurns ? stride * 2 : width;  // Bytes
    ForMine([&](int row) {
      const int64_t offset = offsets[row];
      const T* from = source + (offset < 0 ? 0 : offset);
      char* to = tile + row * kPitch;
      return [from, to, offset](int chunk) {
        CopyAsync<16>(to + chunk * 16, from + chunk * kChunkValues, offset >= 0);
      };
    });
    CommitCopies();
  }

  MLA_DEVICE void Finish(bf16* tiles) {
    WaitForCopies<0>();
    if constexpr (!kTakesTurns) {
      // Every thread reads what it has copied itself: nobody need wait for anybody.
      const char* arrived = reinterpret_cast<const char*>(tiles + rows * stride);
      ForMine([&](int row) {
        const char* from = arrived + row * width;
        bf16* to = tiles + row * stride;
        return [from, to](int chunk) {
          StoreChunk(to + chunk * kChunkValues, *reinterpret_cast<const Chunk*>(from + chunk * 16),
                     static_cast<const T*>(nullptr));
        };
      });
    }
  }
};
#endif

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_COPY_H_
