// Decode attention on AMD's matrix cores: a block takes up to 16, 32 or 64 heads of one token
// through its share of the keys. Heads are rows, keys come through shared memory once for scores
// and values.
//
// The waves of a row share the contraction of the scores (each adds up its part of the 576
// columns, of all keys or of some), meet in shared memory for the softmax, and share the output's
// columns.
#ifndef MLA_MLA_ATTENTION_GPU_TILES_H_
#define MLA_MLA_ATTENTION_GPU_TILES_H_

#include "gpu/mma.h"
#include "mla_attention/gpu_keys.h"
#include "mla_attention/gpu_output.h"

namespace mla {
namespace gpu {

template <typename Shape, typename Cache>
struct TileAttention {
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kSteps = kWidth / kMmaK;       // Of the scores' contraction.
  static constexpr int kLatentSteps = kRank / kMmaK;  // The others are the rope part.
  static constexpr int kWaveSteps = (kSteps + Shape::kParts - 1) / Shape::kParts;
  static constexpr int kKeyTiles = Shape::kKeys / 16 / Shape::kKeyWaves;  // A wave's.
  static constexpr int kGroups =
      kRank / 64 / Shape::kColumnWaves;                        // Of 64 output columns, a wave's.
  static constexpr int kRowThreads = kThreads / Shape::kRows;  // That share a row of the softmax.
  static constexpr int kThreadKeys = Shape::kKeys / kRowThreads;
  static constexpr bool kFloat8 = sizeof(Cache) == 1;
  static_assert(kThreads >= Shape::kKeys, "a thread finds the row of one key");

  struct Output {
    Accumulator at[kGroups][4];
  };

  const MlaAttentionArgs& args;
  char* shared;
  AttentionOutput output;

  MLA_DEVICE TileAttention(const MlaAttentionArgs& args, char* shared, const AttentionBlock& block)
      : args(args), shared(shared), output{args, block} {}

  template <typename T>
  MLA_DEVICE T* Part(int offset) const {
    return reinterpret_cast<T*>(shared + offset);
  }
  MLA_DEVICE static int RowWave() { return ThreadX() / kWave / Shape::kColumnWaves; }
  MLA_DEVICE static int ColumnWave() { return ThreadX() / kWave % Shape::kColumnWaves; }
  MLA_DEVICE static int FirstRow() { return RowWave() * 16; }
  // The scores of a wave: its part of the contraction, and its first key.
  MLA_DEVICE static int ScorePart() { return ColumnWave() / Shape::kKeyWaves; }
  MLA_DEVICE static int FirstKey() { return ColumnWave() % Shape::kKeyWaves * kKeyTiles * 16; }
  // The first step of part `part`.
  MLA_DEVICE static int FirstStep(int part) { return part * kSteps / Shape::kParts; }

  // `n` values of a query row from column `column` on, which do not cross from latent to rope.
  template <int n>
  MLA_DEVICE Pack<bf16, n> QueryPart(int row, int column) const {
    Pack<bf16, n> zero = {};
    if (output.block.head + row >= args.heads) return zero;
    const int64_t head = output.block.token * args.heads + output.block.head + row;
    return column < kRank
               ? LoadPack<n>(static_cast<const bf16*>(args.q_latent) + head * kRank + column)
               : LoadPack<n>(static_cast<const bf16*>(args.q_rope) + head * kRope + column - kRank);
  }

  // This wave's part of the scores of its rows with its keys of a tile, `keys` the first of them.
  MLA_DEVICE void Scores(const bf16* keys, const Fragment (&query)[kWaveSteps], float rope_ratio,
                         float* out) const {
    const int begin = FirstStep(ScorePart()), end = FirstStep(ScorePart() + 1);
    Accumulator scores[kKeyTiles];
    // Downwards: the rope part comes first and is brought to the latent part's scale.
#pragma unroll
    for (int i = kWaveSteps - 1; i >= 0; --i) {
      const int step = begin + i;
      if (kSteps % Shape::kParts != 0 && step >= end) continue;
      if (kFloat8 && step == kLatentSteps - 1) ScaleAll(scores, rope_ratio);
#pragma unroll
      for (int t = 0; t < kKeyTiles; ++t) {
        Mma(scores[t], query[i],
            LoadFragment(keys + t * 16 * Shape::kStride + step * kMmaK, Shape::kStride));
      }
    }
#pragma unroll
    for (int t = 0; t < kKeyTiles; ++t) {
#pragma unroll
      for (int v = 0; v < Accumulator::kValues; ++v) {
        out[Accumulator::Row(v) * Shape::kScoreStride + t * 16 + Accumulator::Column(v)] =
            scores[t].at(v);
      }
    }
  }

  MLA_DEVICE static void ScaleAll(Accumulator (&scores)[kKeyTiles], float factor) {
#pragma unroll
    for (int t = 0; t < kKeyTiles; ++t) {
#pragma unroll
      for (int v = 0; v < Accumulator::kValues; ++v) scores[t].set(v, scores[t].at(v) * factor);
    }
  }

  // The weights of this thread's keys of its row, relative to the new peak; what the row had before
  // shrinks by the factor that is left in shared memory.
  MLA_DEVICE void Softmax(int keys_left, float scale, float& peak, float& total) const {
    const int row = ThreadX() / kRowThreads, first = ThreadX() % kRowThreads * kThreadKeys;
    constexpr int kRead = kThreadKeys < 4 ? kThreadKeys : 4;
    float score[kThreadKeys] = {}, highest = peak;
#pragma unroll
    for (int p = 0; p < Shape::kParts; ++p) {
      const float* part =
          Part<float>(Shape::kScores) + (p * Shape::kRows + row) * Shape::kScoreStride + first;
#pragma unroll
      for (int i = 0; i < kThreadKeys; i += kRead) {
        const auto read = LoadPack<kRead>(part + i);
#pragma unroll
        for (int j = 0; j < kRead; ++j) score[i + j] += read.at[j];
      }
    }
#pragma unroll
    for (int i = 0; i < kThreadKeys; ++i) {
      score[i] = first + i < keys_left ? score[i] * scale : -__builtin_inff();
      highest = score[i] > highest ? score[i] : highest;
    }
    highest = LanesMax<kRowThreads>(highest);
    // Where no score is above minus infinity every weight is 0, and not the NaN of inf - inf.
    const float base = highest == -__builtin_inff() ? 0.0f : highest;
    const float shrink = Exp2(peak - base);
    float sum = 0;
    Pack<bf16, kThreadKeys> weights;
#pragma unroll
    for (int i = 0; i < kThreadKeys; ++i) {
      const float weight = Exp2(score[i] - base);
      weights.at[i] = FromFloat<bf16>(weight);
      sum += weight;
    }
    StorePack(Part<bf16>(Shape::kWeights) + row * Shape::kWeightStride + first, weights);
    total = total * shrink + LanesSum<kRowThreads>(sum);
    peak = highest;
    if (ThreadX() % kRowThreads == 0) Part<float>(Shape::kFactors)[row] = shrink;
  }

  MLA_DEVICE void Scale(Output& out) const {
#pragma unroll
    for (int v = 0; v < Accumulator::kValues; ++v) {
      const float factor = Part<float>(Shape::kFactors)[FirstRow() + Accumulator::Row(v)];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int j = 0; j < 4; ++j) out.at[g][j].set(v, out.at[g][j].at(v) * factor);
      }
    }
  }

  MLA_DEVICE void Values(const bf16* keys, Output& out) const {
#pragma unroll
    for (int k = 0; k < Shape::kKeys; k += kMmaK) {
      const Fragment weights =
          LoadFragment(Part<bf16>(Shape::kWeights) + FirstRow() * Shape::kWeightStride + k,
                       Shape::kWeightStride);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        Fragment columns[4];
        LoadColumns(keys + k * Shape::kStride + (ColumnWave() * kGroups + g) * 64, Shape::kStride,
                    columns);
#pragma unroll
        for (int j = 0; j < 4; ++j) Mma(out.at[g][j], weights, columns[j]);
      }
    }
  }

  // The four columns of a lane's fragments lie side by side.
  MLA_DEVICE void Store(const Output& out) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int column0 = (ColumnWave() * kGroups + g) * 64;
#pragma unroll
      for (int v = 0; v < Accumulator::kValues; ++v) {
        const float run[4] = {out.at[g][0].at(v), out.at[g][1].at(v), out.at[g][2].at(v),
                              out.at[g][3].at(v)};
        output.StoreRun(FirstRow() + Accumulator::Row(v),
                        column0 + ColumnOf(0, Accumulator::Column(v)), run);
      }
    }
  }

  MLA_DEVICE void Run() const {
    if (ThreadX() == 0) *Part<int32_t>(Shape::kBroken) = 0;
    const KeyPlan plan = PlanKeys<kThreads>(args, output.block.token, Part<int32_t>(Shape::kPlan));
    const Share share =
        ShareOf(plan.visible, Shape::kKeys, output.block.split, static_cast<int>(args.splits));

    Output out;
    float peak = -__builtin_inff(), total = 0;
    if (share.first < share.end) Loop(plan, share, out, peak, total);

    // A sequence that the page table cannot hold, or a page that does not exist: no answer.
    const bool broken = plan.too_long || *Part<int32_t>(Shape::kBroken) != 0;
    const int row = ThreadX() / kRowThreads;
    if (ThreadX() % kRowThreads == 0) {
      const RowEnd end = EndOf(peak, total, broken);
      Part<float>(Shape::kFactors)[row] = end.factor * (kFloat8 ? args.scales[0] : 1.0f);
      output.StoreLse(row, end.log2);
    }
    // Nobody reads what a share without keys would have given.
    if (args.partial != nullptr && share.first >= share.end && !broken) return;
    Barrier();
    Scale(out);
    Store(out);
  }

  MLA_DEVICE void Loop(const KeyPlan& plan, Share share, Output& out, float& peak,
                       float& total) const {
    Keys<Shape, Cache, kThreads> keys(args, plan, share, shared);

    Fragment query[kWaveSteps];
    const int begin = FirstStep(ScorePart());
#pragma unroll
    for (int i = 0; i < kWaveSteps; ++i) {
      query[i] = MakeFragment([&](int vector, int k) {
        const int column = (begin + i) * kMmaK + k;
        return QueryPart<kFragmentRun>(FirstRow() + vector, column < kWidth ? column : 0);
      });
    }
    const float rope_ratio = kFloat8 ? args.scales[1] / args.scales[0] : 1.0f;
    const float scale = args.softmax_scale * kLog2E * (kFloat8 ? args.scales[0] : 1.0f);
    float* scores = Part<float>(Shape::kScores) +
                    (ScorePart() * Shape::kRows + FirstRow()) * Shape::kScoreStride + FirstKey();

    for (int key = share.first; key < share.end; key += Shape::kKeys) {
      const bf16* tile = keys.Next();
      keys.Prefetch();
      Scores(tile + FirstKey() * Shape::kStride, query, rope_ratio, scores);
      Barrier();
      Softmax(share.end - key, scale, peak, total);
      Barrier();
      Scale(out);
      Values(tile, out);
      keys.Done();
    }
    Barrier();
  }
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_TILES_H_
