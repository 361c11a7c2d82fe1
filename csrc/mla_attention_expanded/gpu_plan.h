// Which queries a block takes, from metadata on the device, which may hold anything.
#ifndef MLA_MLA_ATTENTION_EXPANDED_GPU_PLAN_H_
#define MLA_MLA_ATTENTION_EXPANDED_GPU_PLAN_H_

#include "gpu/convert.h"
#include "mla_attention_expanded/gpu_shape.h"

namespace mla {
namespace gpu {

// Queries [begin, end) see keys from token0 on, each up to itself; none where nobody owns them.
struct QueryTile {
  int32_t token0, begin, end;
  bool owned;
};

MLA_DEVICE int Larger(int a, int b) { return a > b ? a : b; }

// The tile in slot `slot`, empty where there is none. Every wave finds it for itself.
template <int rows>
MLA_DEVICE QueryTile FindTile(const ExpandedAttentionArgs& args, int slot) {
  const int tokens = static_cast<int>(args.tokens), sequences = static_cast<int>(args.sequences);
  // Bound 0 is token 0, bounds 1 to sequences + 1 are query_start_loc's, the last one is `tokens`.
  const auto bound = [&](int i) {
    if (i <= 0) return 0;
    if (i > sequences + 1) return tokens;
    const int32_t start = args.query_start_loc[i - 1];
    return start > tokens ? tokens : start;
  };
  // A bound below an earlier one, or below 0, is moved up to it: ranges are ordered and disjoint,
  // whatever the array holds.
  int before = 0, range = -1, begin = 0, end = 0;
  for (int first = 0; first < sequences + 2; first += kWave) {
    const int i = first + Lane();
    int from = bound(i);
#pragma unroll
    for (int step = 1; step < kWave; step *= 2) {
      from = Larger(from, ShuffleBits(from, Lane() >= step ? Lane() - step : Lane()));
    }
    from = Larger(from, before);
    const int to = Larger(from, bound(i + 1));
    const int tile = slot - (from / rows + i);
    if (i < sequences + 2 && tile >= 0 && tile < (to - from + rows - 1) / rows) {
      range = i;
      begin = from;
      end = to;
    }
    before = ShuffleBits(from, kWave - 1);
  }
  // One lane at most has found it.
#pragma unroll
  for (int mask = kWave / 2; mask > 0; mask /= 2) {
    const int lane = Lane() ^ mask;
    range = Larger(range, ShuffleBits(range, lane));
    begin = Larger(begin, ShuffleBits(begin, lane));
    end = Larger(end, ShuffleBits(end, lane));
  }
  if (range < 0) return {0, 0, 0, false};
  const int at = begin + (slot - (begin / rows + range)) * rows;
  return {begin, at, end - at < rows ? end : at + rows, range > 0 && range <= sequences};
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_EXPANDED_GPU_PLAN_H_
