// Growable per-thread blocks, freed when the thread ends.
#include "common/scratch.h"

#include <cstdlib>

namespace mla {
namespace {

// A block larger than this is given back as soon as a smaller one will do.
constexpr int64_t kKeepBytes = int64_t{256} << 20;
constexpr int64_t kAlign = 64;

struct Block {
  void* data = nullptr;
  int64_t bytes = 0;
  ~Block() { std::free(data); }
};

thread_local Block blocks[kScratchSlots];

}  // namespace

void* Scratch(ScratchSlot slot, int64_t bytes) {
  Block& block = blocks[slot];
  const int64_t want = (bytes + kAlign - 1) / kAlign * kAlign + kAlign;
  if (block.bytes < want || (block.bytes > kKeepBytes && want <= kKeepBytes)) {
    std::free(block.data);
    block.data = nullptr;
    block.bytes = 0;
    void* data = std::aligned_alloc(kAlign, static_cast<size_t>(want));
    if (data == nullptr) std::abort();  // No memory: nothing sensible can follow.
    block.data = data;
    block.bytes = want;
  }
  return block.data;
}

}  // namespace mla
