// How rows are spread over the threads of blocks, as the host and the device agree on it.
//
// A thread takes runs of 8 neighbouring values, one a turn of the row's threads: 32 of them for up
// to 1024 values, 64 for up to 2048, otherwise the whole block. That depends on nothing but the
// length, and so does the order in which a row is added up. Few threads a row, because what a row
// costs beside its values it costs every wave of it.
#ifndef MLA_GPU_ROW_SHAPE_H_
#define MLA_GPU_ROW_SHAPE_H_

#include <cstdint>

namespace mla {
namespace gpu {

constexpr int kRowBlock = 256;  // Threads
constexpr int kRunValues = 8;

// Held: the row stays in registers, up to 4 runs a thread (long: 8), and its accesses are of 16
// bytes. Twice: of any length and alignment, read again behind the sum.
enum class RowKind : int32_t {
  kHeld32,
  kHeld64,
  kHeld256,
  kHeldLong,
  kTwice32,
  kTwice64,
  kTwice256,
};
constexpr int kRowKinds = 7;

constexpr bool WholeRuns(int64_t n) { return n % kRunValues == 0; }
constexpr int RowThreads(int64_t n) { return n <= 1024 ? 32 : (n <= 2048 ? 64 : kRowBlock); }

// `wide`: every row that is read or written begins at a multiple of 16 bytes and is whole runs.
constexpr RowKind RowKindOf(int64_t n, bool wide) {
  constexpr int64_t kTurn = int64_t{kRowBlock} * kRunValues;
  const int threads = RowThreads(n);
  if (!wide || n > 8 * kTurn) {
    return threads == 32 ? RowKind::kTwice32
                         : (threads == 64 ? RowKind::kTwice64 : RowKind::kTwice256);
  }
  if (threads < kRowBlock) return threads == 32 ? RowKind::kHeld32 : RowKind::kHeld64;
  return n <= 4 * kTurn ? RowKind::kHeld256 : RowKind::kHeldLong;
}

// Blocks that `rows` rows take.
constexpr int64_t RowBlocks(int64_t rows, int64_t n) {
  const int64_t at_once = kRowBlock / RowThreads(n);
  return (rows + at_once - 1) / at_once;
}

}  // namespace gpu
}  // namespace mla

// The kernels of one element type, in the order of RowKind: kernel(name, T, threads, runs) for
// each, where no runs stand for rows that are read twice; and their names as the host looks them
// up.
#define MLA_HELD_ROW_KERNELS(kernel, name, T)                                           \
  kernel(name##_32, T, 32, 4) kernel(name##_64, T, 64, 4) kernel(name##_256, T, 256, 4) \
      kernel(name##_long, T, 256, 8)
#define MLA_TWICE_ROW_KERNELS(kernel, name, T)                        \
  kernel(name##_32_twice, T, 32, 0) kernel(name##_64_twice, T, 64, 0) \
      kernel(name##_256_twice, T, 256, 0)
#define MLA_HELD_ROW_NAMES(name) name "_32", name "_64", name "_256", name "_long"
#define MLA_TWICE_ROW_NAMES(name) name "_32_twice", name "_64_twice", name "_256_twice"

#endif  // MLA_GPU_ROW_SHAPE_H_
