// Work memory that a thread keeps between calls, so that large results do not fault in fresh
// pages every time.
#ifndef MLA_COMMON_SCRATCH_H_
#define MLA_COMMON_SCRATCH_H_

#include <cstdint>

namespace mla {

// What a piece of scratch is for. One thread may hold one live block a slot. The caller of a
// kernel also runs tasks, so what a call holds and what a task holds are different slots; so is
// what a task's matrix product packs, and the weights that it decodes.
enum ScratchSlot {
  kCallScratch = 0,
  kCallScratch2 = 1,
  kCallScratch3 = 2,
  kTaskScratch = 3,
  kPackScratch = 4,
  kPanelScratch = 5,
  kScratchSlots = 6
};

// At least `bytes` bytes, 64-byte aligned, contents undefined; valid until this thread's next call
// for the same slot. Never null.
void* Scratch(ScratchSlot slot, int64_t bytes);

}  // namespace mla

#endif  // MLA_COMMON_SCRATCH_H_
