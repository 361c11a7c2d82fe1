// Decode attention on Hopper's matrix cores: a block takes up to 16, 32 or 64 heads of one token
// through its share of the keys.
//
// Products are turned around, so that few heads waste nothing: keys and latent columns are the 64
// rows of a product, heads its columns. scores (keys x heads) = K * Q^T; sums (latent columns x
// heads) += V^T * weights. Every warpgroup has scores of its share of the heads and sums of its
// share of the latent columns. Keys come through shared memory once for both.
#ifndef MLA_MLA_ATTENTION_GPU_WARPGROUPS_H_
#define MLA_MLA_ATTENTION_GPU_WARPGROUPS_H_

#include "gpu/warpgroup.h"
#include "mla_attention/gpu_keys.h"
#include "mla_attention/gpu_output.h"

namespace mla {
namespace gpu {

template <typename Shape, typename Cache>
struct WarpgroupAttention {
  static constexpr int kThreads = Shape::kThreads, kHeads = Shape::kRows;
  static constexpr int kScoreHeads = kHeads / Shape::kWarpgroups;
  static constexpr int kScorePairs = kScoreHeads / 8;  // Pairs of heads whose scores a thread has.
  static constexpr int kPairs = kHeads / 8;            // And of those whose sums.
  static constexpr int kWaves = kWarpgroup / kWave;
  static constexpr int kColumnTiles = kRank / 64 / Shape::kWarpgroups;
  static constexpr bool kFloat8 = sizeof(Cache) == 1;
  // How far, in powers of 2, scores may rise above the peak that weights are relative to before all
  // sums are scaled: weights of 256 are as exact as weights of 1.
  static constexpr float kSlack = 8;
  using KeyPanel = SwizzledPanels<Shape::kKeys>;
  using QueryPanel = SwizzledPanels<kHeads>;
  static_assert(Shape::kKeys == 64, "the rows of one product");

  struct Sums {
    float at[kColumnTiles][kHeads / 2] = {};
  };
  // Of this thread's heads: what the weights are relative to, the sum of its own weights.
  struct State {
    float peak[2 * kScorePairs], total[2 * kScorePairs];
  };

  const MlaAttentionArgs& args;
  char* shared;
  AttentionOutput output;

  MLA_DEVICE WarpgroupAttention(const MlaAttentionArgs& args, char* shared,
                                const AttentionBlock& block)
      : args(args), shared(shared), output{args, block} {}

  template <typename T>
  MLA_DEVICE T* Part(int offset) const {
    return reinterpret_cast<T*>(shared + offset);
  }
  MLA_DEVICE static int Group() { return Shape::kWarpgroups == 1 ? 0 : ThreadX() / kWarpgroup; }
  MLA_DEVICE static int Wave() { return ThreadX() / kWave % kWaves; }
  // Of the first head of pair j, in the share of a product's columns that begins at 0.
  MLA_DEVICE static int HeadOf(int j) { return 8 * j + 2 * (Lane() % 4); }
  // Of value v in a product's 64 rows.
  MLA_DEVICE static int RowOf(int v) { return 16 * Wave() + Lane() / 4 + 8 * (v / 2 % 2); }

  // The block's queries, zeros for heads that do not exist: 8 threads a row, 16 bytes of each
  // panel.
  MLA_DEVICE void StartQueries() const {
    bf16* to = Part<bf16>(Shape::kQuery);
    const int column = ThreadX() % 8 * 8;
#pragma unroll
    for (int first = 0; first < kHeads; first += kThreads / 8) {
      const int row = first + ThreadX() / 8;
      if (kHeads % (kThreads / 8) != 0 && row >= kHeads) break;
      const bool exists = output.block.head + row < args.heads;
      const int64_t head = output.block.token * args.heads + output.block.head + (exists ? row : 0);
      const bf16* latent = static_cast<const bf16*>(args.q_latent) + head * kRank + column;
      const bf16* rope = static_cast<const bf16*>(args.q_rope) + head * kRope + column;
#pragma unroll
      for (int panel = 0; panel < kRank; panel += 64) {
        CopyAsync<16>(to + QueryPanel::At(row, panel + column), latent + panel, exists);
      }
      CopyAsync<16>(to + QueryPanel::At(row, kRank + column), rope, exists);
    }
    CommitCopies();
  }

  // The scores of this warpgroup's heads with the keys of a tile; beside() is done meanwhile.
  template <typename Fn>
  MLA_DEVICE void Scores(const bf16* tile, float rope_ratio, float (&scores)[kScoreHeads / 2],
                         const Fn& beside) const {
    const SharedMatrix keys(SharedAddress(tile));
    const SharedMatrix query(
        SharedAddress(Part<char>(Shape::kQuery) + Group() * kScoreHeads * 128));
    constexpr int kLatentPanels = kRank / 64, kPanels = kWidth / 64;
    BeginProducts();
    // The rope part comes first and is brought to the latent part's scale.
#pragma unroll
    for (int i = 0; i < kPanels; ++i) {
      const int panel = (i + kLatentPanels) % kPanels;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        WarpgroupMma<false>(scores, keys.At(panel * KeyPanel::kBytes + k * 32),
                            query.At(panel * QueryPanel::kBytes + k * 32), i + k > 0);
      }
      if (kFloat8 && panel == kLatentPanels) {
        EndProducts();
        FinishProducts();
#pragma unroll
        for (int v = 0; v < kScoreHeads / 2; ++v) scores[v] *= rope_ratio;
        BeginProducts();
      }
    }
    EndProducts();
    beside();
    FinishProducts();
  }

  // The weights of a tile's keys relative to the new peaks, into shared memory; what a head had
  // before shrinks by the factor that is left there.
  MLA_DEVICE void Softmax(int keys_left, float scale, float (&scores)[kScoreHeads / 2],
                          State& state) const {
    float highest[2 * kScorePairs];
#pragma unroll
    for (int j = 0; j < kScorePairs; ++j) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        float& score = scores[4 * j + v];
        score = RowOf(v) < keys_left ? score * scale : -__builtin_inff();
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float a = scores[4 * j + i], b = scores[4 * j + 2 + i];
        // A NaN is not a peak.
        float high = a > -__builtin_inff() ? a : -__builtin_inff();
        high = b > high ? b : high;
        highest[2 * j + i] = LanesMaxAbove<4>(high);
      }
    }
    float* peaks = Part<float>(Shape::kPeaks) + Group() * kWaves * kScoreHeads;
    if (Lane() < 4) {
#pragma unroll
      for (int j = 0; j < kScorePairs; ++j) {
        StorePack(peaks + Wave() * kScoreHeads + HeadOf(j),
                  Pack<float, 2>{highest[2 * j], highest[2 * j + 1]});
      }
    }
    WarpgroupBarrier(Group());
    bf16* weights = Part<bf16>(Shape::kWeights) + Group() * kScoreHeads * 64;
    float* factors = Part<float>(Shape::kFactors) + Group() * kScoreHeads;
#pragma unroll
    for (int j = 0; j < kScorePairs; ++j) {
      float peak[2] = {highest[2 * j], highest[2 * j + 1]}, base[2], shrink[2];
#pragma unroll
      for (int w = 0; w < kWaves; ++w) {
        const auto read = LoadPack<2>(peaks + w * kScoreHeads + HeadOf(j));
#pragma unroll
        for (int i = 0; i < 2; ++i) peak[i] = read.at[i] > peak[i] ? read.at[i] : peak[i];
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (peak[i] <= state.peak[2 * j + i] + kSlack) peak[i] = state.peak[2 * j + i];
        // Where no score is above minus infinity every weight is 0, not the NaN of inf - inf.
        base[i] = peak[i] == -__builtin_inff() ? 0.0f : peak[i];
        // Before the first peak there is nothing that could shrink.
        const float before = state.peak[2 * j + i];
        shrink[i] = before == -__builtin_inff() ? 1.0f : Exp2(before - base[i]);
        state.total[2 * j + i] *= shrink[i];
        state.peak[2 * j + i] = peak[i];
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Pack<bf16, 2> pair;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float weight = Exp2(scores[4 * j + 2 * half + i] - base[i]);
          state.total[2 * j + i] += weight;
          pair.at[i] = FromFloat<bf16>(weight);
        }
        StoreTransposed(
            weights + SwizzledPanels<kHeads>::At(8 * j + Lane() % 8, 16 * Wave() + 8 * half), pair);
      }
      if (Wave() == 0 && Lane() < 4) {
        StorePack(factors + HeadOf(j), Pack<float, 2>{shrink[0], shrink[1]});
      }
    }
  }

  MLA_DEVICE void Scale(Sums& sums) const {
    Pack<float, 2> factors[kPairs];
    bool moved = false;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      factors[j] = LoadPack<2>(Part<float>(Shape::kFactors) + HeadOf(j));
      moved |= factors[j].at[0] != 1.0f || factors[j].at[1] != 1.0f;
    }
    if (__any_sync(~0u, moved) == 0) return;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) {
#pragma unroll
        for (int v = 0; v < 4; ++v) sums.at[t][4 * j + v] *= factors[j].at[v % 2];
      }
    }
  }

  MLA_DEVICE void Values(const bf16* tile, Sums& sums) const {
    const SharedMatrix values(SharedAddress(tile) + Group() * kColumnTiles * KeyPanel::kBytes);
    const SharedMatrix weights(SharedAddress(Part<char>(Shape::kWeights)));
    BeginProducts();
#pragma unroll
    for (int k = 0; k < Shape::kKeys / 16; ++k) {
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) {
        WarpgroupMma<true>(sums.at[t], values.At(t * KeyPanel::kBytes + k * 16 * 128),
                           weights.At(k * 32), true);
      }
    }
    EndProducts();
    FinishProducts();
  }

  // What every row ends with, for Scale: the waves' sums meet in shared memory, then a thread a
  // row.
  MLA_DEVICE void End(const State& state, bool broken) const {
    float* totals = Part<float>(Shape::kPeaks);
    float* peaks = Part<float>(Shape::kFactors);
    const int first = Group() * kScoreHeads;
#pragma unroll
    for (int j = 0; j < kScorePairs; ++j) {
      Pack<float, 2> total;
#pragma unroll
      for (int i = 0; i < 2; ++i) total.at[i] = LanesSumAbove<4>(state.total[2 * j + i]);
      if (Lane() >= 4) continue;
      StorePack(totals + Wave() * kHeads + first + HeadOf(j), total);
      if (Wave() == 0) {
        StorePack(peaks + first + HeadOf(j),
                  Pack<float, 2>{state.peak[2 * j], state.peak[2 * j + 1]});
      }
    }
    Barrier();
    const int row = ThreadX();
    if (row >= kHeads) return;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWaves; ++w) sum += totals[w * kHeads + row];
    const RowEnd end = EndOf(peaks[row], sum, broken);
    peaks[row] = end.factor * (kFloat8 ? args.scales[0] : 1.0f);
    output.StoreLse(row, end.log2);
  }

  // By way of shared memory, so that rows are written in one piece.
  MLA_DEVICE void Store(const Sums& sums) const {
    constexpr int kStride = kRank + 4;  // 4 heads of a wave lie in different banks.
    static_assert(kHeads * kStride * 4 <= Shape::kQuery, "rows fit where the keys were");
    float* rows = Part<float>(Shape::kCache);
#pragma unroll
    for (int j = 0; j < kHeads / 2; ++j) {
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) {
        rows[(HeadOf(j / 4) + j % 2) * kStride + (Group() * kColumnTiles + t) * 64 + RowOf(j)] =
            sums.at[t][j];
      }
    }
    Barrier();
    constexpr int kRowThreads = kRank / 4;
    const int column = ThreadX() % kRowThreads * 4;
#pragma unroll 8
    for (int row = ThreadX() / kRowThreads; row < kHeads; row += kThreads / kRowThreads) {
      output.StoreRun(row, column, LoadPack<4>(rows + row * kStride + column).at);
    }
  }

  MLA_DEVICE void Run() const {
    int32_t* is_broken = Part<int32_t>(Shape::kBroken);
    if (ThreadX() == 0) *is_broken = 0;
    StartQueries();
    const KeyPlan plan = PlanKeys<kThreads>(args, output.block.token, Part<int32_t>(Shape::kPlan));
    // Kept there, and not in a register, until the end.
    if (plan.too_long) *is_broken = 1;
    const Share share =
        ShareOf(plan.visible, Shape::kKeys, output.block.split, static_cast<int>(args.splits));
    Sums sums;
    State state;
#pragma unroll
    for (int j = 0; j < 2 * kScorePairs; ++j) {
      state.peak[j] = -__builtin_inff();
      state.total[j] = 0;
    }
    if (share.first < share.end) Loop(plan, share, sums, state);

    Barrier();
    // A sequence that the page table cannot hold, or a page that does not exist: no answer.
    const bool broken = *is_broken != 0;
    End(state, broken);
    // Nobody reads what a share without keys would have given.
    if (args.partial != nullptr && share.first >= share.end && !broken) return;
    Barrier();
    Scale(sums);
    Store(sums);
  }

  MLA_DEVICE void Loop(const KeyPlan& plan, Share share, Sums& sums, State& state) const {
    Keys<Shape, Cache, kThreads> keys(args, plan, share, shared);
    const float rope_ratio = kFloat8 ? args.scales[1] / args.scales[0] : 1.0f;
    const float scale = args.softmax_scale * kLog2E * (kFloat8 ? args.scales[0] : 1.0f);
    for (int key = share.first; key < share.end; key += Shape::kKeys) {
      const bf16* tile = keys.Next();
      float scores[kScoreHeads / 2];
      Scores(tile, rope_ratio, scores, [&] { keys.Prefetch(); });
      Softmax(share.end - key, scale, scores, state);
      ShowToProducts();
      Barrier();
      Scale(sums);
      Values(tile, sums);
      keys.Done();
    }
  }
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_WARPGROUPS_H_
