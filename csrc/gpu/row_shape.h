// How rows are spread over the threads of blocks, as the host and the device agree on it.
//
// A thread takes runs of 8 neighbouring values, one a turn of the row's threads. A row of up to 512
// values has 64 threads, a longer one the whole block. That depends on nothing but the length, and
// so does the order in which a row is added up.
#ifndef MLA_GPU_ROW_SHAPE_H_
#define MLA_GPU_ROW_SHAPE_H_

#include <cstdint>

namespace mla {
namespace gpu {

constexpr int kRowBlock = 256;  // Threads
constexpr int kShortRowThreads = 64;
constexpr int kRunValues = 8;

// Held: the row stays in registers, so many runs a thread; its accesses are of 16 bytes. Read
// twice: of any length and alignment.
enum class RowKind : int32_t {
  kShortHeld,
  kHeld1,
  kHeld4,
  kHeld8,
  kShortTwice,
  kTwice,
};
constexpr int kRowKinds = 6;

constexpr bool WholeRuns(int64_t n) { return n % kRunValues == 0; }
constexpr bool IsShortRow(int64_t n) { return n <= int64_t{kShortRowThreads} * kRunValues; }

// `wide`: every row that is read or written begins at a multiple of 16 bytes and is whole runs.
constexpr RowKind RowKindOf(int64_t n, bool wide) {
  constexpr int64_t kTurn = int64_t{kRowBlock} * kRunValues;
  if (!wide || n > 8 * kTurn) return IsShortRow(n) ? RowKind::kShortTwice : RowKind::kTwice;
  if (IsShortRow(n)) return RowKind::kShortHeld;
  return n <= kTurn ? RowKind::kHeld1 : (n <= 4 * kTurn ? RowKind::kHeld4 : RowKind::kHeld8);
}

// Blocks that `rows` rows take.
constexpr int64_t RowBlocks(int64_t rows, int64_t n) {
  constexpr int64_t kShortRows = kRowBlock / kShortRowThreads;
  return IsShortRow(n) ? (rows + kShortRows - 1) / kShortRows : rows;
}

}  // namespace gpu
}  // namespace mla

// The kernels of one element type, in the order of RowKind: kernel(name, T, threads, runs) for
// each, where no runs stand for rows that are read twice; and their names as the host looks them
// up.
#define MLA_ROW_KERNELS(kernel, name, T)                                                         \
  kernel(name##_short, T, 64, 1) kernel(name##_held1, T, 256, 1) kernel(name##_held4, T, 256, 4) \
      kernel(name##_held8, T, 256, 8) kernel(name##_short_twice, T, 64, 0)                       \
          kernel(name##_twice, T, 256, 0)
#define MLA_ROW_KERNEL_NAMES(name) \
  {name "_short", name "_held1", name "_held4", name "_held8", name "_short_twice", name "_twice"}

#endif  // MLA_GPU_ROW_SHAPE_H_
