// Scratch as hostile as its contract allows: exactly the bytes that were asked for, with other
// contents every time, and the thread's earlier block of the slot gone.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "common/scratch.h"

namespace mla {
namespace {

struct Block {
  void* data = nullptr;
  ~Block() { std::free(data); }
};

thread_local Block blocks[kScratchSlots];

}  // namespace

void* Scratch(ScratchSlot slot, int64_t bytes) {
  static std::atomic<unsigned> calls{0};
  Block& block = blocks[slot];
  std::free(block.data);
  block.data = nullptr;
  if (posix_memalign(&block.data, 64, static_cast<size_t>(bytes)) != 0) std::abort();
  std::memset(block.data, static_cast<int>(255 - 37 * calls.fetch_add(1) % 256),
              static_cast<size_t>(bytes));
  return block.data;
}

}  // namespace mla
