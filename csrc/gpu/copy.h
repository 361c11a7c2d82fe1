// Rows from anywhere in memory into a tile in shared memory as bf16: past registers where the
// machine can, else through them. Starting early and finishing late hides memory's latency.
#ifndef MLA_GPU_COPY_H_
#define MLA_GPU_COPY_H_

#include "gpu/decode.h"

namespace mla {
namespace gpu {

// 16 bytes in registers. A struct of an array would end up in memory.
#if defined(__HIP__)
typedef uint32_t Chunk __attribute__((ext_vector_type(4)));
#else
typedef uint4 Chunk;
#endif

// Where the values of a tile lie in shared memory: the element of a row and a column, by runs of 8.
// Rows one after the other, padded to `stride`.
template <int stride>
struct PaddedRows {
  static constexpr bool kForProducts = false;  // Whether matrix cores read it by themselves.
  static constexpr int Size(int rows, int) { return rows * stride; }
  static MLA_DEVICE int At(int row, int column) { return row * stride + column; }
};
// Panels of 64 columns one after the other, in each of them rows of 128 bytes, whose runs are
// exchanged so that 8 rows of a column lie in different banks: what Hopper calls a 128-byte
// swizzle.
template <int rows>
struct SwizzledPanels {
  static constexpr bool kForProducts = true;
  static constexpr int Size(int, int width) { return rows * width; }
  static constexpr int kColumns = 64, kBytes = rows * kColumns * 2;
  static MLA_DEVICE int At(int row, int column) {
    return column / kColumns * (rows * kColumns) + row * kColumns + ((column / 8 ^ row) % 8) * 8 +
           column % 8;
  }
};

template <typename Layout>
MLA_DEVICE void StoreChunk(bf16* tile, int row, int column, const Chunk& chunk, const bf16*) {
  *reinterpret_cast<Chunk*>(tile + Layout::At(row, column)) = chunk;
}
// 16 codes become 32 bytes; bf16 holds every one of them exactly.
template <typename Layout>
MLA_DEVICE void StoreChunk(bf16* tile, int row, int column, const Chunk& chunk, const f8e4m3fn*) {
  const auto words = BitCast<Pack<uint32_t, 4>>(chunk);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Octet values = DecodeE4M3<false>(words.at[2 * half], words.at[2 * half + 1]);
    StorePack(tile + Layout::At(row, column + 8 * half), BitCast<Pack<bf16, 8>>(values));
  }
}

// Offsets of rows that lie `step` apart, `count` of them.
struct EvenRows {
  int64_t first, step;
  int count;
  MLA_DEVICE int64_t operator[](int row) const { return row < count ? first + row * step : -1; }
};

// A tile of `rows` rows of `width` values on its way into shared memory. Row r begins at element
// offsets[r] of the source, an array or what can be asked like one; a negative offset makes it
// zeros. T is bf16 or f8e4m3fn. Start(), then work on the tile before, then Finish() and a barrier.
//
// Through registers: there is one tile, and Finish() overwrites it.
template <typename T, int width, int rows, int threads, typename Layout>
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

  MLA_DEVICE void Commit() {}

  template <int later>
  MLA_DEVICE void Finish(bf16* tiles) {
    static_assert(later == 0, "one tile at a time");
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int chunk = ThreadX() + i * threads;
      if (kChunks % threads != 0 && chunk >= kChunks) break;
      const int row = chunk / kRowChunks, column = chunk % kRowChunks * kChunkValues;
      StoreChunk<Layout>(tiles, row, column, held[i], static_cast<const T*>(nullptr));
    }
  }
};

#if defined(__gfx950__)
// 16 bytes of every active lane, from its own address to shared memory: lane l's to `place` + 16 l,
// and `place` is the same in all lanes. AMD "CDNA4 ISA": memory instructions that write LDS, and
// one wait state behind a write of M0. The builtin does the same, but clang waits for it at every
// barrier, which would undo the head start; of this the compiler knows nothing, and who issues it
// waits. It warns of M0, which it must know to be overwritten.
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Winline-asm"
MLA_DEVICE void LoadToShared(uint32_t place, const void* from) {
  asm volatile("s_mov_b32 m0, %0\n\ts_nop 0\n\tglobal_load_lds_dwordx4 %1, off"
               :
               : "s"(place), "v"(from)
               : "memory", "m0");
}
#pragma clang diagnostic pop
// Until all of this wave's loads have arrived. By the builtin, from which the compiler knows that
// it need not wait for its own any more.
MLA_DEVICE void WaitForLoads() {
  constexpr int kNoLoadUnderWay = 0x0f70;  // vmcnt(0); the other counters at their most.
  asm volatile("" ::: "memory");
  __builtin_amdgcn_s_waitcnt(kNoLoadUnderWay);
  asm volatile("" ::: "memory");
}

// Past registers, with room for two tiles: those of bf16 take turns, float8 arrives where the
// second would be and is converted into the first. A wave takes whole rows, in runs of a chunk a
// lane: pads between rows are never written, and a row that does not exist is stored as zeros.
template <typename T, int width, int rows, int threads, typename Layout>
struct DirectCopy {
  static constexpr bool kTakesTurns = sizeof(T) == 2;
  static constexpr int kChunkValues = 16 / sizeof(T);
  static constexpr int kRowChunks = width / kChunkValues;
  static constexpr int kTile = Layout::Size(rows, width);
  static constexpr int kWaves = threads / kWave;
  static_assert(width % kChunkValues == 0, "rows are whole chunks");
  static_assert(rows % kWaves == 0, "waves share the rows evenly");
  static_assert(!Layout::kForProducts, "the chunks of a row follow each other");

  MLA_DEVICE static bf16* Tile(bf16* tiles, int turn) {
    return tiles + (kTakesTurns ? turn * kTile : 0);
  }

  // Calls fn(row) for this wave's rows, the same in all lanes.
  template <typename Fn>
  MLA_DEVICE static void ForRows(const Fn& fn) {
    const int wave = Uniform(ThreadX() / kWave);
#pragma unroll
    for (int r = 0; r < rows; r += kWaves) fn(r + wave);
  }
  // Calls fn(first) for the runs of a row in those lanes that have a chunk; lane l's is first + l.
  template <typename Fn>
  MLA_DEVICE static void ForRuns(const Fn& fn) {
#pragma unroll
    for (int i = 0; i < kRowChunks; i += kWave) {
      if (i + kWave <= kRowChunks || i + Lane() < kRowChunks) fn(i);
    }
  }
  // Where row `row` arrives.
  MLA_DEVICE static T* Arrival(bf16* tiles, int turn, int row) {
    if constexpr (kTakesTurns) {
      return Tile(tiles, turn) + Layout::At(row, 0);
    } else {
      return reinterpret_cast<T*>(tiles + kTile) + row * width;
    }
  }

  template <typename Offsets>
  MLA_DEVICE void Start(const T* source, const Offsets& offsets, bf16* tiles, int turn) {
    ForRows([&](int row) {
      T* to = Arrival(tiles, turn, row);
      const int64_t offset = Uniform(offsets[row]);
      if (offset >= 0) {
        const T* from = source + offset + Lane() * kChunkValues;
        ForRuns([&](int first) {
          LoadToShared(SharedAddress(to + first * kChunkValues), from + first * kChunkValues);
        });
      } else {
        ForRuns([&](int first) {
          *reinterpret_cast<Chunk*>(to + (first + Lane()) * kChunkValues) = Chunk{};
        });
      }
    });
  }
  MLA_DEVICE void Commit() {}

  template <int later>
  MLA_DEVICE void Finish(bf16* tiles) {
    static_assert(later == 0, "one tile is under way at a time");
    WaitForLoads();
    if constexpr (!kTakesTurns) {
      // Every wave reads what it has copied itself: none need wait for another.
      ForRows([&](int row) {
        ForRuns([&](int first) {
          const int column = (first + Lane()) * kChunkValues;
          StoreChunk<Layout>(tiles, row, column,
                             *reinterpret_cast<const Chunk*>(Arrival(tiles, 0, row) + column),
                             static_cast<const T*>(nullptr));
        });
      });
    }
  }
};
#endif

#if !defined(__HIP__)
// 16 bytes, past the first-level cache, or 8 or 4, to shared memory; zeros where `exists` is false.
template <int bytes>
MLA_DEVICE void CopyAsync(void* shared, const void* from, bool exists) {
  const uint32_t to = SharedAddress(shared);
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(to), "l"(__cvta_generic_to_global(from)), "r"(exists ? 16 : 0)
                 : "memory");
  } else {
    static_assert(bytes == 8 || bytes == 4, "16 bytes, 8 or 4");
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;"
                 :
                 : "r"(to), "l"(__cvta_generic_to_global(from)), "r"(exists ? bytes : 0), "n"(bytes)
                 : "memory");
  }
}
MLA_DEVICE void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `later` groups of copies are under way.
template <int later>
MLA_DEVICE void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(later) : "memory");
}

// Makes this thread's writes to shared memory visible, behind the next barrier, to matrix cores
// that read it by themselves (warpgroup.h).
MLA_DEVICE void ShowToProducts() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Past registers, with room for two tiles: those of bf16 take turns, float8 arrives where the
// second would be and is converted into the first. (Bulk copies, a row an instruction, were tried:
// slower by a fifth, however early they start.)
template <typename T, int width, int rows, int threads, typename Layout>
struct AsyncCopy {
  static constexpr bool kTakesTurns = sizeof(T) == 2;
  static constexpr int kChunkValues = 16 / sizeof(T);
  static constexpr int kRowChunks = width / kChunkValues;
  static constexpr int kTile = Layout::Size(rows, width);
  // Few addresses to keep: a wave takes whole rows. Of swizzled rows 8 threads share one, an eighth
  // of each 128 bytes.
  static constexpr int kRowThreads =
      Layout::kForProducts ? 8 : (kRowChunks < kWave ? kRowChunks : kWave);
  static constexpr int kRowsAtOnce = threads / kRowThreads;
  // Whoever multiplies from registers has none left for more addresses.
  static constexpr int kUnrolled = Layout::kForProducts ? rows / kRowsAtOnce : 2;
  static_assert(width % kChunkValues == 0, "rows are whole chunks");
  static_assert(rows % kRowsAtOnce == 0, "threads share the rows evenly");

  MLA_DEVICE static bf16* Tile(bf16* tiles, int turn) {
    return tiles + (kTakesTurns ? turn * kTile : 0);
  }

  // Calls row_fn(row) for this thread's rows and what it returns for the columns of the chunks.
  template <typename Fn>
  MLA_DEVICE static void ForMine(const Fn& row_fn) {
#pragma unroll kUnrolled
    for (int r = 0; r < rows; r += kRowsAtOnce) {
      const auto chunk_fn = row_fn(r + ThreadX() / kRowThreads);
      const int mine = ThreadX() % kRowThreads;
#pragma unroll
      for (int i = 0; i < kRowChunks; i += kRowThreads) {
        if (i + kRowThreads <= kRowChunks || i + mine < kRowChunks) {
          chunk_fn((i + mine) * kChunkValues);
        }
      }
    }
  }

  template <typename Offsets>
  MLA_DEVICE void Start(const T* source, const Offsets& offsets, bf16* tiles, int turn) {
    ForMine([&](int row) {
      const int64_t offset = offsets[row];
      const T* from = source + (offset < 0 ? 0 : offset);
      return [=](int column) {
        void* to;
        if constexpr (kTakesTurns) {
          to = Tile(tiles, turn) + Layout::At(row, column);
        } else {
          to = reinterpret_cast<T*>(tiles + kTile) + row * width + column;
        }
        CopyAsync<16>(to, from + column, offset >= 0);
      };
    });
  }
  MLA_DEVICE void Commit() { CommitCopies(); }

  // All tiles but the last `later` have arrived.
  template <int later>
  MLA_DEVICE void Finish(bf16* tiles) {
    WaitForCopies<later>();
    if constexpr (!kTakesTurns) {
      // Every thread reads what it has copied itself: nobody need wait for anybody.
      ForMine([&](int row) {
        return [=](int column) {
          const T* from = reinterpret_cast<const T*>(tiles + kTile) + row * width + column;
          StoreChunk<Layout>(tiles, row, column, *reinterpret_cast<const Chunk*>(from),
                             static_cast<const T*>(nullptr));
        };
      });
    }
    if constexpr (Layout::kForProducts) ShowToProducts();
  }
};
#endif

// The machine's own way.
#if defined(__gfx950__)
template <typename T, int width, int rows, int threads, typename Layout>
using TileCopy = DirectCopy<T, width, rows, threads, Layout>;
#elif defined(__HIP__)
template <typename T, int width, int rows, int threads, typename Layout>
using TileCopy = RegisterCopy<T, width, rows, threads, Layout>;
#else
template <typename T, int width, int rows, int threads, typename Layout>
using TileCopy = AsyncCopy<T, width, rows, threads, Layout>;
#endif

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_COPY_H_
