// How a block's keys come into shared memory, a tile of Shape::kKeys rows after the other.
#ifndef MLA_MLA_ATTENTION_GPU_KEYS_H_
#define MLA_MLA_ATTENTION_GPU_KEYS_H_

#include "gpu/copy.h"
#include "mla_attention/gpu_plan.h"

namespace mla {
namespace gpu {

// Made by every thread of a block; then Next(), Prefetch() and Done() are called once a tile.
template <typename Shape, typename Cache, int threads>
class Keys {
 public:
  MLA_DEVICE Keys(const MlaAttentionArgs& args, const KeyPlan& plan, Share share, char* shared)
      : args_(args),
        plan_(plan),
        next_(share.first),
        end_(share.end),
        tiles_(reinterpret_cast<bf16*>(shared + Shape::kCache)),
        rows_(reinterpret_cast<int64_t*>(shared + Shape::kOffsets)),
        broken_(reinterpret_cast<int32_t*>(shared + Shape::kBroken)) {
    // Three reads at once: each would make the block wait.
    const int32_t first = ReadPage(0), second = ReadPage(1);
    page_ = ReadPage(2);
    NoteRow(first);
    NoteRow(second);
    Barrier();
    Start(2);
    if (kEarly) Start(1);
  }

  // The next tile, behind a barrier. Then Prefetch() once while the tile is worked on, and Done().
  MLA_DEVICE const bf16* Next() {
    if (!Copy::kTakesTurns) Barrier();  // Until everybody is done with the tile before.
    copy_.template Finish<kEarly ? 1 : 0>(tiles_);
    const bf16* tile = Copy::Tile(tiles_, taken_);
    taken_ ^= 1;
    Barrier();
    return tile;
  }

  // Sends the tile after it on its way, unless it already is.
  MLA_DEVICE void Prefetch() {
    if (!kEarly) Start(1);
    NoteRow(page_);
    page_ = ReadPage(0);
  }

  // The tile may be overwritten.
  MLA_DEVICE void Done() {
    if (!kEarly) return;
    Barrier();
    Start(1);
  }

 private:
#if defined(__HIP__)
  using Layout = PaddedRows<Shape::kStride>;
#else
  using Layout = SwizzledPanels<Shape::kKeys>;
#endif
  using Copy = TileCopy<Cache, kWidth, Shape::kKeys, threads, Layout>;
  // Two tiles are on their way while there is none to work on: where memory is the limit, at the
  // cost of one more barrier.
  static constexpr bool kEarly = Copy::kTakesTurns && Shape::kMemoryBound;
  static_assert(threads >= Shape::kKeys, "a thread finds the row of one key");

  // Whether this thread finds the row of a key of the step `steps` after the next one.
  MLA_DEVICE bool Mine(int steps) const {
    return ThreadX() < Shape::kKeys && KeyAfter(steps) < end_;
  }
  MLA_DEVICE int KeyAfter(int steps) const { return next_ + steps * Shape::kKeys + ThreadX(); }

  // Long before the row is noted: the wait for memory would hold up the whole block.
  MLA_DEVICE int32_t ReadPage(int steps) const {
    return Mine(steps) ? PageOfKey(args_, plan_, KeyAfter(steps)) : -1;
  }

  // The row of this thread's key in the next step but one, which is on page `page`, for everybody;
  // -1 for what is not to be read. Says if a visible key has no row.
  MLA_DEVICE void NoteRow(int32_t page) {
    int64_t row = -1;
    if (Mine(0)) {
      row = RowOfKey(args_, plan_, page, KeyAfter(0));
      if (row < 0) *broken_ = 1;
    }
    if (ThreadX() < Shape::kKeys) rows_[noted_ * Shape::kKeys + ThreadX()] = row;
    noted_ ^= 1;
    next_ += Shape::kKeys;
  }

  // The tile of the step `steps` before the next whose rows are to be noted, if the share has it.
  MLA_DEVICE void Start(int steps) {
    if (next_ - steps * Shape::kKeys < end_) {
      copy_.Start(static_cast<const Cache*>(args_.cache), rows_ + turn_ * Shape::kKeys, tiles_,
                  turn_);
    }
    copy_.Commit();
    turn_ ^= 1;
  }

  const MlaAttentionArgs& args_;
  const KeyPlan& plan_;
  int next_, end_;  // The first key of the step whose rows are noted next; where the share ends.
  bf16* tiles_;
  int64_t* rows_;  // Of two steps
  int32_t* broken_;
  int32_t page_;
  int noted_ = 0, turn_ = 0, taken_ = 0;  // Turns of rows, of copies, of tiles.
  Copy copy_;
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_KEYS_H_
