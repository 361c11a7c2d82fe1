// A wave's rows of queries on matrix cores: their scores, the softmax and the sums of values.
#ifndef MLA_MLA_ATTENTION_EXPANDED_GPU_ROWS_H_
#define MLA_MLA_ATTENTION_EXPANDED_GPU_ROWS_H_

#include "gpu/mma_rows.h"
#include "mla_attention_expanded/gpu_shape.h"

namespace mla {
namespace gpu {

template <typename Shape>
class WaveRows {
 public:
  static constexpr int kRowTiles = Shape::kRowTiles;
  static constexpr int kKeyTiles = Shape::kKeys / 16, kStride = Shape::kStride;
  static constexpr int kSteps = (kNope + kRope) / kMmaK;  // Of the scores' contraction.
  static constexpr int kGroups = kValue / 64;
  using Scores = Accumulator[kRowTiles][kKeyTiles];

  Accumulator out[kRowTiles][kGroups][4];

  MLA_DEVICE explicit WaveRows(char* shared) : shared_(shared) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int slot = 0; slot < kHeldRows; ++slot) {
        Peak(r, slot) = -__builtin_inff();
        Total(r, slot) = 0;
      }
    }
  }

  // Where the wave's rows begin in the block.
  MLA_DEVICE static int First() { return ThreadX() / kWave * Shape::kWaveRows; }
  MLA_DEVICE static int Row(int r, int slot) { return First() + 16 * r + HeldRow(slot); }

  // read(row, column) gives kFragmentRun values of a query from there on.
  template <typename Fn>
  MLA_DEVICE void ReadQuery(const Fn& read) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        query_[r][s] = MakeFragment(
            [&](int vector, int k) { return read(First() + 16 * r + vector, s * kMmaK + k); });
      }
    }
  }

  MLA_DEVICE void Score(const bf16* keys, Scores& scores) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int column = s * kMmaK < kNope ? s * kMmaK : s * kMmaK - kNope + Shape::kKeyRope;
      Fragment query[kRowTiles];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) query[r] = Query(r, s);
#pragma unroll
      for (int t = 0; t < kKeyTiles; ++t) {
        const ColumnFragment key = LoadTileColumns(keys + column, kStride, t);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) MmaRows(scores[r][t], query[r], key);
      }
    }
  }

  // Row `row` of the block sees the first row - hidden + 1 of the keys.
  MLA_DEVICE static void Mask(int hidden, Scores& scores) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int t = 0; t < kKeyTiles; ++t) {
#pragma unroll
        for (int i = 0; i < Accumulator::kValues; ++i) {
          if (hidden + SourceColumn(t, ColumnInTile(i)) > Row(r, SlotOf(i)))
            scores[r][t].set(i, -__builtin_inff());
        }
      }
    }
  }

  // Scores become base-2 logarithms of weights relative to the new peaks; what the rows had before
  // shrinks.
  MLA_DEVICE void Relate(float scale, Scores& scores) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      float highest[kHeldRows], base[kHeldRows], shrink[kHeldRows];
#pragma unroll
      for (int slot = 0; slot < kHeldRows; ++slot) highest[slot] = Peak(r, slot);
#pragma unroll
      for (int t = 0; t < kKeyTiles; ++t) {
#pragma unroll
        for (int i = 0; i < Accumulator::kValues; ++i)
          highest[SlotOf(i)] = __builtin_fmaxf(highest[SlotOf(i)], scores[r][t].at(i));
      }
#pragma unroll
      for (int slot = 0; slot < kHeldRows; ++slot) {
        highest[slot] =
            OverLanesOfRow(highest[slot], [](float a, float b) { return __builtin_fmaxf(a, b); });
        // Where no score is above minus infinity every weight is 0, and not the NaN of inf - inf.
        base[slot] = highest[slot] == -__builtin_inff() ? 0.0f : highest[slot] * scale;
        shrink[slot] = Exp2(Peak(r, slot) * scale - base[slot]);
        Peak(r, slot) = highest[slot];
        Total(r, slot) *= shrink[slot];
      }
#pragma unroll
      for (int t = 0; t < kKeyTiles; ++t) {
#pragma unroll
        for (int i = 0; i < Accumulator::kValues; ++i) {
          scores[r][t].set(i, __builtin_fmaf(scores[r][t].at(i), scale, -base[SlotOf(i)]));
        }
      }
      Scale(r, shrink);
    }
  }

  // Weights, a step of the contraction at a time, times values.
  MLA_DEVICE void Add(const bf16* keys, const Scores& logarithms) {
    float sum[kRowTiles][kHeldRows] = {};
#pragma unroll
    for (int k = 0; k < Shape::kKeys; k += kMmaK) {
      Fragment weights[kRowTiles];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        Accumulator tiles[kTilesOfK];
#pragma unroll
        for (int t = 0; t < kTilesOfK; ++t) {
#pragma unroll
          for (int i = 0; i < Accumulator::kValues; ++i) {
            const float weight = Exp2(logarithms[r][k / 16 + t].at(i));
            tiles[t].set(i, weight);
            sum[r][SlotOf(i)] += weight;
          }
        }
        weights[r] = RowsOf(tiles);
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        ColumnFragment columns[4];
        LoadRowsColumns(keys + k * kStride + Shape::kValues + 64 * g, kStride, columns);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) MmaRows(out[r][g][j], weights[r], columns[j]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int slot = 0; slot < kHeldRows; ++slot) Total(r, slot) += sum[r][slot];
    }
  }

  // Row tile r is done; calls lse(slot, value) with the logarithm of each row's sum.
  template <typename Fn>
  MLA_DEVICE void Finish(int r, float scale, const Fn& lse) {
    float inverse[kHeldRows];
#pragma unroll
    for (int slot = 0; slot < kHeldRows; ++slot) {
      const float total = OverLanesOfRow(Total(r, slot), [](float a, float b) { return a + b; });
      inverse[slot] = total == 0.0f ? 0.0f : 1.0f / total;
      const float base = Peak(r, slot) * scale;
      lse(slot, total == 0.0f ? -__builtin_inff() : (base + Log2(total)) * kLn2);
    }
    Scale(r, inverse);
  }

 private:
  MLA_DEVICE Fragment Query(int r, int s) const {
    if constexpr (Shape::kShared) {
      return LoadFragment(reinterpret_cast<bf16*>(shared_ + Shape::kQuery) +
                              (First() + 16 * r) * Shape::kQueryStride + s * kMmaK,
                          Shape::kQueryStride);
    } else {
      return query_[r][s];
    }
  }
  // Of each row the highest score so far and this lane's part of the weights' sum.
  MLA_DEVICE float& Peak(int r, int slot) {
    if constexpr (Shape::kShared) {
      return Remembered(Shape::kPeaks, r, slot);
    } else {
      return peak_[r][slot];
    }
  }
  MLA_DEVICE float& Total(int r, int slot) {
    if constexpr (Shape::kShared) {
      return Remembered(Shape::kTotals, r, slot);
    } else {
      return total_[r][slot];
    }
  }
  MLA_DEVICE float& Remembered(int offset, int r, int slot) const {
    return reinterpret_cast<float*>(shared_ +
                                    offset)[(r * kHeldRows + slot) * Shape::kThreads + ThreadX()];
  }

  MLA_DEVICE void Scale(int r, const float (&factor)[kHeldRows]) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int i = 0; i < Accumulator::kValues; ++i)
          out[r][g][j].set(i, out[r][g][j].at(i) * factor[SlotOf(i)]);
      }
    }
  }

  char* shared_;
  Fragment query_[Shape::kShared ? 1 : kRowTiles][Shape::kShared ? 1 : kSteps];
  float peak_[Shape::kShared ? 1 : kRowTiles][kHeldRows];
  float total_[Shape::kShared ? 1 : kRowTiles][kHeldRows];
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MLA_ATTENTION_EXPANDED_GPU_ROWS_H_
