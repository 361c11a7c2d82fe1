// Decode attention on matrix cores: a block takes up to 16, 32 or 64 heads of one token through its
// share of the keys. Heads are rows, keys come through shared memory once for scores and values.
//
// The waves of a row share the contraction of the scores (each adds up its part of the 576
// columns), meet in shared memory for the softmax, and share the output's columns.
#ifndef MLA_MLA_ATTENTION_GPU_TILES_H_
#define MLA_MLA_ATTENTION_GPU_TILES_H_

#include "gpu/mma.h"
#include "mla_attention/gpu_keys.h"

namespace mla {
namespace gpu {

template <typename Shape, typename Cache>
struct TileAttention {
  static constexpr int kThreads = Shape::kRowWaves * Shape::kColumnWaves * kWave;
  static constexpr int kSteps = kWidth / kMmaK;       // Of the scores' contraction.
  static constexpr int kLatentSteps = kRank / kMmaK;  // The others are the rope part.
  static constexpr int kWaveSteps = (kSteps + Shape::kColumnWaves - 1) / Shape::kColumnWaves;
  static constexpr int kKeyTiles = Shape::kKeys / 16;
  static constexpr int kRowTiles = Shape::kRowTiles;
  // Tiles of keys whose scores are in registers together: enough products that do not wait for each
  // other.
  static constexpr int kTilesAtOnce = kRowTiles == 1 ? kKeyTiles : 1;
  static constexpr int kGroups =
      kRank / 64 / Shape::kColumnWaves;                        // Of 64 output columns, a wave's.
  static constexpr int kRowThreads = kThreads / Shape::kRows;  // That share a row of the softmax.
  static constexpr int kThreadKeys = Shape::kKeys / kRowThreads;
  static constexpr bool kFloat8 = sizeof(Cache) == 1;
  static_assert(kThreads >= Shape::kKeys, "a thread finds the row of one key");

  struct Output {
    Accumulator at[kRowTiles][kGroups][4];
  };

  const MlaAttentionArgs& args;
  char* shared;
  int64_t token;
  int head0, split;

  MLA_DEVICE TileAttention(const MlaAttentionArgs& args, char* shared, const AttentionBlock& block)
      : args(args), shared(shared), token(block.token), head0(block.head), split(block.split) {}

  template <typename T>
  MLA_DEVICE T* Part(int offset) const {
    return reinterpret_cast<T*>(shared + offset);
  }
  MLA_DEVICE static int RowWave() { return ThreadX() / kWave / Shape::kColumnWaves; }
  MLA_DEVICE static int ColumnWave() { return ThreadX() / kWave % Shape::kColumnWaves; }
  // Of this wave's row tile r.
  MLA_DEVICE static int FirstRow(int r) { return RowWave() * Shape::kWaveRows + r * 16; }
  // The first step of the scores' contraction of column wave `wave`.
  MLA_DEVICE static int FirstStep(int wave) { return wave * kSteps / Shape::kColumnWaves; }

  // `n` values of a query row from column `column` on, which do not cross from latent to rope.
  template <int n>
  MLA_DEVICE Pack<bf16, n> QueryPart(int row, int column) const {
    Pack<bf16, n> zero = {};
    if (head0 + row >= args.heads) return zero;
    const int64_t head = token * args.heads + head0 + row;
    return column < kRank
               ? LoadPack<n>(static_cast<const bf16*>(args.q_latent) + head * kRank + column)
               : LoadPack<n>(static_cast<const bf16*>(args.q_rope) + head * kRope + column - kRank);
  }

  // This wave's part of the scores of its rows with all keys of a stage.
  MLA_DEVICE void Scores(const bf16* keys, const Fragment (&query)[kRowTiles][kWaveSteps],
                         float rope_ratio, float* out) const {
    const int begin = FirstStep(ColumnWave()), end = FirstStep(ColumnWave() + 1);
#pragma unroll
    for (int t0 = 0; t0 < kKeyTiles; t0 += kTilesAtOnce) {
      Accumulator scores[kRowTiles][kTilesAtOnce];
      // Downwards: the rope part comes first and is brought to the latent part's scale.
#pragma unroll
      for (int i = kWaveSteps - 1; i >= 0; --i) {
        const int step = begin + i;
        if (kSteps % Shape::kColumnWaves != 0 && step >= end) continue;
        if (kFloat8 && step == kLatentSteps - 1) ScaleAll(scores, rope_ratio);
#pragma unroll
        for (int t = 0; t < kTilesAtOnce; ++t) {
          const Fragment key =
              LoadFragment(keys + (t0 + t) * 16 * Shape::kStride + step * kMmaK, Shape::kStride);
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) Mma(scores[r][t], query[r][i], key);
        }
      }
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int t = 0; t < kTilesAtOnce; ++t) {
#pragma unroll
          for (int v = 0; v < Accumulator::kValues; v += Accumulator::kRun) {
            Pack<float, Accumulator::kRun> run;
#pragma unroll
            for (int i = 0; i < Accumulator::kRun; ++i) run.at[i] = scores[r][t].at(v + i);
            StorePack(out + (r * 16 + Accumulator::Row(v)) * Shape::kScoreStride + (t0 + t) * 16 +
                          Accumulator::Column(v),
                      run);
          }
        }
      }
    }
  }

  MLA_DEVICE static void ScaleAll(Accumulator (&scores)[kRowTiles][kTilesAtOnce], float factor) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int t = 0; t < kTilesAtOnce; ++t) {
#pragma unroll
        for (int v = 0; v < Accumulator::kValues; ++v) {
          scores[r][t].set(v, scores[r][t].at(v) * factor);
        }
      }
    }
  }

  // The weights of this thread's keys of its row, relative to the new peak; what the row had before
  // shrinks by the factor that is left in shared memory.
  MLA_DEVICE void Softmax(int keys_left, float scale, float& peak, float& total) const {
    const int row = ThreadX() / kRowThreads, first = ThreadX() % kRowThreads * kThreadKeys;
    constexpr int kRead = kThreadKeys < 4 ? kThreadKeys : 4;
    float score[kThreadKeys] = {}, highest = peak;
#pragma unroll
    for (int c = 0; c < Shape::kColumnWaves; ++c) {
      const float* part =
          Part<float>(Shape::kScores) + (c * Shape::kRows + row) * Shape::kScoreStride + first;
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
    if (ThreadX() % kRowThreads == 0) Part<float>(Shape::kRowFactors)[row] = shrink;
  }

  MLA_DEVICE void Scale(Output& out) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int v = 0; v < Accumulator::kValues; ++v) {
        const float factor = Part<float>(Shape::kRowFactors)[FirstRow(r) + Accumulator::Row(v)];
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
#pragma unroll
          for (int j = 0; j < 4; ++j) out.at[r][g][j].set(v, out.at[r][g][j].at(v) * factor);
        }
      }
    }
  }

  MLA_DEVICE void Values(const bf16* keys, Output& out) const {
#pragma unroll
    for (int k = 0; k < Shape::kKeys; k += kMmaK) {
      Fragment weights[kRowTiles];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        weights[r] =
            LoadFragment(Part<bf16>(Shape::kWeights) + FirstRow(r) * Shape::kWeightStride + k,
                         Shape::kWeightStride);
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        Fragment columns[4];
        LoadColumns(keys + k * Shape::kStride + (ColumnWave() * kGroups + g) * 64, Shape::kStride,
                    columns);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) Mma(out.at[r][g][j], weights[r], columns[j]);
        }
      }
    }
  }

  // Calls store(row, column, values) for runs of values that lie side by side.
  template <typename Fn>
  MLA_DEVICE void ForEachRun(const Output& out, const Fn& store) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const Accumulator(&columns)[4] = out.at[r][g];
        const int column0 = (ColumnWave() * kGroups + g) * 64;
#if defined(__HIP__)
#pragma unroll
        for (int v = 0; v < Accumulator::kValues; ++v) {
          const float run[4] = {columns[0].at(v), columns[1].at(v), columns[2].at(v),
                                columns[3].at(v)};
          store(FirstRow(r) + Accumulator::Row(v), column0 + ColumnOf(0, Accumulator::Column(v)),
                run);
        }
#else
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int v = 0; v < Accumulator::kValues; v += 2) {
            const float run[2] = {columns[j].at(v), columns[j].at(v + 1)};
            store(FirstRow(r) + Accumulator::Row(v), column0 + ColumnOf(j, Accumulator::Column(v)),
                  run);
          }
        }
#endif
      }
    }
  }

  MLA_DEVICE int64_t OutRow(int row) const {
    const int64_t at = token * args.heads + head0 + row;
    return args.partial != nullptr ? split * args.tokens * args.heads + at : at;
  }

  template <int n>
  MLA_DEVICE void StoreRun(int row, int column, const float (&run)[n]) const {
    if (head0 + row >= args.heads) return;
    const int64_t at = OutRow(row) * kRank + column;
    if (args.partial != nullptr) {
      Pack<float, n> pack;
#pragma unroll
      for (int i = 0; i < n; ++i) pack.at[i] = run[i];
      StorePack(args.partial + at, pack);
    } else {
      Pack<bf16, n> pack;
#pragma unroll
      for (int i = 0; i < n; ++i) pack.at[i] = FromFloat<bf16>(run[i]);
      StorePack(static_cast<bf16*>(args.out) + at, pack);
    }
  }

  // Of one row: base-2 logarithm of the weights' sum, for the merge or as the answer.
  MLA_DEVICE void StoreLse(int row, float log2) const {
    if (head0 + row >= args.heads) return;
    (args.partial != nullptr ? args.partial_lse : args.lse)[OutRow(row)] =
        args.partial != nullptr ? log2 : log2 * kLn2;
  }

  MLA_DEVICE void Run() const {
    if (ThreadX() == 0) *Part<int32_t>(Shape::kBroken) = 0;
    const KeyPlan plan = PlanKeys<kThreads>(args, token, Part<int32_t>(Shape::kPlan));
    const Share share = ShareOf(plan.visible, Shape::kKeys, split, static_cast<int>(args.splits));

    Output out;
    float peak = -__builtin_inff(), total = 0;
    if (share.first < share.end) Loop(plan, share, out, peak, total);

    // A sequence that the page table cannot hold, or a page that does not exist: no answer.
    const bool broken = plan.too_long || *Part<int32_t>(Shape::kBroken) != 0;
    const int row = ThreadX() / kRowThreads;
    if (ThreadX() % kRowThreads == 0) {
      const float nan = __builtin_nanf("");
      const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
      const float latent = kFloat8 ? args.scales[0] : 1.0f;
      Part<float>(Shape::kRowFactors)[row] = broken ? nan : inverse * latent;
      StoreLse(row, broken ? nan : (total == 0.0f ? -__builtin_inff() : peak + Log2(total)));
    }
    // Nobody reads what a share without keys would have given.
    if (args.partial != nullptr && share.first >= share.end && !broken) return;
    Barrier();
    Scale(out);
    ForEachRun(out, [&](int r, int column, const auto& run) { StoreRun(r, column, run); });
  }

  MLA_DEVICE void Loop(const KeyPlan& plan, Share share, Output& out, float& peak,
                       float& total) const {
    Keys<Shape, Cache, kThreads> keys(args, plan, share, shared);

    Fragment query[kRowTiles][kWaveSteps];
    const int begin = FirstStep(ColumnWave());
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int i = 0; i < kWaveSteps; ++i) {
        query[r][i] = MakeFragment([&](int vector, int k) {
          const int column = (begin + i) * kMmaK + k;
          return QueryPart<kFragmentRun>(FirstRow(r) + vector, column < kWidth ? column : 0);
        });
      }
    }
    const float rope_ratio = kFloat8 ? args.scales[1] / args.scales[0] : 1.0f;
    const float scale = args.softmax_scale * kLog2E * (kFloat8 ? args.scales[0] : 1.0f);
    float* scores = Part<float>(Shape::kScores) +
                    (ColumnWave() * Shape::kRows + FirstRow(0)) * Shape::kScoreStride;

    for (int key = share.first; key < share.end; key += Shape::kKeys) {
      const bf16* tile = keys.Next();
      Scores(tile, query, rope_ratio, scores);
      Barrier();
      Softmax(share.end - key, scale, peak, total);
      Barrier();
      Scale(out);
      Values(tile, out);
    }
    Barrier();
  }
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_GPU_TILES_H_
