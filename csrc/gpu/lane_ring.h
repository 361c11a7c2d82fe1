// Chunks of 16 bytes that a lane reads for itself ahead of time: into a ring of slots in shared
// memory where the machine copies asynchronously, else into registers, one step ahead.
#ifndef MLA_GPU_LANE_RING_H_
#define MLA_GPU_LANE_RING_H_

#include "gpu/copy.h"

namespace mla {
namespace gpu {

// `chunks` chunks a step.
template <int chunks, int threads, int stages>
struct LaneRing {
#if defined(__HIP__)
  static_assert(stages >= 2, "one step ahead");
  Chunk held[chunks], taken[chunks];

  MLA_DEVICE explicit LaneRing(Chunk*) {}
  // Begins to read chunk i of a step; `at(word)` gives the address of a word of four bytes where
  // these do not follow each other.
  MLA_DEVICE void Start(int, int i, const uint8_t* from, bool valid) {
    held[i] = valid ? *reinterpret_cast<const Chunk*>(from) : Chunk{};
  }
  MLA_DEVICE void StartWord(int, int i, int word, const uint8_t* from, bool valid) {
    held[i][word] = valid ? *reinterpret_cast<const uint32_t*>(from) : 0u;
  }
  MLA_DEVICE void Commit() {}
  // The oldest step that was begun and not yet taken.
  MLA_DEVICE void Take(int) {
#pragma unroll
    for (int i = 0; i < chunks; ++i) taken[i] = held[i];
  }
  MLA_DEVICE Chunk At(int i) const { return taken[i]; }
  static constexpr int kAhead = 1;
#else
  Chunk* slots;  // (stages, chunks, threads)
  int slot = 0;

  MLA_DEVICE explicit LaneRing(Chunk* shared) : slots(shared + ThreadX()) {}
  MLA_DEVICE Chunk* Slot(int step_slot, int i) const {
    return slots + (step_slot * chunks + i) * threads;
  }
  MLA_DEVICE void Start(int step_slot, int i, const uint8_t* from, bool valid) {
    CopyAsync<16>(Slot(step_slot, i), from, valid);
  }
  MLA_DEVICE void StartWord(int step_slot, int i, int word, const uint8_t* from, bool valid) {
    CopyAsync<4>(reinterpret_cast<uint32_t*>(Slot(step_slot, i)) + word, from, valid);
  }
  MLA_DEVICE void Commit() { CommitCopies(); }
  MLA_DEVICE void Take(int step_slot) {
    WaitForCopies<stages - 2>();
    slot = step_slot;
  }
  MLA_DEVICE Chunk At(int i) const { return *Slot(slot, i); }
  static constexpr int kAhead = stages - 1;
#endif
};

// Word `i` of a chunk, i known when compiled.
MLA_DEVICE uint32_t WordOf(const Chunk& chunk, int i) {
#if defined(__HIP__)
  return chunk[i];
#else
  return i == 0 ? chunk.x : (i == 1 ? chunk.y : (i == 2 ? chunk.z : chunk.w));
#endif
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_LANE_RING_H_
