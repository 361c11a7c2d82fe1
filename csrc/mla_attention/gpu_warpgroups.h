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
  using KeyPanel = SwizzledPanels<Shape::kKeys>;
  using QueryPanel = SwizzledPanels<kHeads>;
  static_assert(Shape::kKeys == 64, "the rows of one product");

  struct Sums {
    float at[kColumnTiles][kHeads / 2] = {};
  };
  // Of this thread's heads: the highest score of all threads, the sum of its own weights.
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

  // The block's queries, zeros for heads that do not exist.
  MLA_DEVICE void StartQueries() const {
    constexpr int kChunks = kWidth / 8, kLatentChunks = kRank / 8;
    bf16* to = Part<bf16>(Shape::kQuery);
    for (int i = ThreadX(); i < kHeads * kChunks; i += kThreads) {
      const int row = i / kChunks, chunk = i - row * kChunks;
      const bool exists = output.block.head + row < args.heads;
      const int64_t head = output.block.token * args.heads + output.block.head + (exists ? row : 0);
      const bf16* from =
          chunk < kLatentChunks
              ? static_cast<const bf16*>(args.q_latent) + head * kRank + chunk * 8
              : static_cast<const bf16*>(args.q_rope) + head * kRope + (chunk - kLatentChunks) * 8;
      CopyAsync<16>(to + QueryPanel::At(row, chunk * 8), from, exists);
    }
    CommitCopies();
  }

  // The scores of this warpgroup's heads with the keys of a tile.
  MLA_DEVICE void Scores(const bf16* tile, float rope_ratio,
                         float (&scores)[kScoreHeads / 2]) const {
    const SharedMatrix keys(SharedByte(tile));
    const SharedMatrix query(SharedByte(Part<char>(Shape::kQuery) + Group() * kScoreHeads * 128));
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
        FinishProducts();
#pragma unroll
        for (int v = 0; v < kScoreHeads / 2; ++v) scores[v] *= rope_ratio;
        BeginProducts();
      }
    }
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
#pragma unroll
        for (int mask = 4; mask < kWave; mask *= 2) {
          const float other = Shuffle(high, Lane() ^ mask);
          high = other > high ? other : high;
        }
        highest[2 * j + i] = high;
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
      float peak[2] = {state.peak[2 * j], state.peak[2 * j + 1]}, base[2], shrink[2];
#pragma unroll
      for (int w = 0; w < kWaves; ++w) {
        const auto read = LoadPack<2>(peaks + w * kScoreHeads + HeadOf(j));
#pragma unroll
        for (int i = 0; i < 2; ++i) peak[i] = read.at[i] > peak[i] ? read.at[i] : peak[i];
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // Where no score is above minus infinity every weight is 0, not the NaN of inf - inf.
        base[i] = peak[i] == -__builtin_inff() ? 0.0f : peak[i];
        shrink[i] = Exp2(state.peak[2 * j + i] - base[i]);
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
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const auto factor = LoadPack<2>(Part<float>(Shape::kFactors) + HeadOf(j));
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) {
#pragma unroll
        for (int v = 0; v < 4; ++v) sums.at[t][4 * j + v] *= factor.at[v % 2];
      }
    }
  }

  MLA_DEVICE void Values(const bf16* tile, Sums& sums) const {
    const SharedMatrix values(SharedByte(tile) + Group() * kColumnTiles * KeyPanel::kBytes);
    const SharedMatrix weights(SharedByte(Part<char>(Shape::kWeights)));
    BeginProducts();
#pragma unroll
    for (int k = 0; k < Shape::kKeys / 16; ++k) {
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) {
        WarpgroupMma<true>(sums.at[t], values.At(t * KeyPanel::kBytes + k * 16 * 128),
                           weights.At(k * 32), true);
      }
    }
    FinishProducts();
  }

  // What every row ends with, for Scale.
  MLA_DEVICE void End(const State& state, bool broken) const {
    float* totals = Part<float>(Shape::kPeaks) + Group() * kWaves * kScoreHeads;
    float total[2 * kScorePairs];
#pragma unroll
    for (int j = 0; j < 2 * kScorePairs; ++j) {
      total[j] = state.total[j];
#pragma unroll
      for (int mask = 4; mask < kWave; mask *= 2) total[j] += Shuffle(total[j], Lane() ^ mask);
    }
    if (Lane() < 4) {
#pragma unroll
      for (int j = 0; j < kScorePairs; ++j) {
        StorePack(totals + Wave() * kScoreHeads + HeadOf(j),
                  Pack<float, 2>{total[2 * j], total[2 * j + 1]});
      }
    }
    WarpgroupBarrier(Group());
    if (Wave() != 0 || Lane() >= 4) return;
    const float latent = kFloat8 ? args.scales[0] : 1.0f;
#pragma unroll
    for (int j = 0; j < 2 * kScorePairs; ++j) {
      const int head = HeadOf(j / 2) + j % 2, row = Group() * kScoreHeads + head;
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kWaves; ++w) sum += totals[w * kScoreHeads + head];
      const RowEnd end = EndOf(state.peak[j], sum, broken);
      Part<float>(Shape::kFactors)[row] = end.factor * latent;
      output.StoreLse(row, end.log2);
    }
  }

  MLA_DEVICE void Store(const Sums& sums) const {
#pragma unroll
    for (int j = 0; j < kHeads / 2; ++j) {
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) {
        const float run[1] = {sums.at[t][j]};
        output.StoreRun(HeadOf(j / 4) + j % 2, (Group() * kColumnTiles + t) * 64 + RowOf(j), run);
      }
    }
  }

  MLA_DEVICE void Run() const {
    StartQueries();
    if (ThreadX() == 0) *Part<int32_t>(Shape::kBroken) = 0;
    const KeyPlan plan = PlanKeys<kThreads>(args, output.block.token, Part<int32_t>(Shape::kPlan));
    const Share share = ShareOf(plan.visible, Shape::kKeys, output.block.split,
                                static_cast<int>(args.splits));
    Sums sums;
    State state;
#pragma unroll
    for (int j = 0; j < 2 * kScorePairs; ++j) {
      state.peak[j] = -__builtin_inff();
      state.total[j] = 0;
    }
    if (share.first < share.end) Loop(plan, share, sums, state);

    // A sequence that the page table cannot hold, or a page that does not exist: no answer.
    const bool broken = plan.too_long || *Part<int32_t>(Shape::kBroken) != 0;
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
      Scores(tile, rope_ratio, scores);
      Softmax(share.end - key, scale, scores, state);
      ShowToProducts();
      Barrier();
      Scale(sums);
      Values(tile, sums);
    }
    Barrier();
  }
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_WARPGROUPS_H_
