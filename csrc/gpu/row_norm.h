// Root-mean-square norm of rows, f32 inside. The squares are added up a thread's values in their
// order, then the threads of a wave pairwise, then the waves in their order (row_shape.h says which
// values a thread has), whichever way a row is read.
#ifndef MLA_GPU_ROW_NORM_H_
#define MLA_GPU_ROW_NORM_H_

#include "gpu/convert.h"
#include "gpu/row_shape.h"

namespace mla {
namespace gpu {

// Rows to be normed. Nothing of a row is written before all of it was added up, and no element
// before it was read for the last time: results may lie in the memory of x and of the residual.
struct NormInput {
  const void* x;         // (rows, width) of T, of which n columns from `offset` on
  const void* residual;  // (rows, n) of T or null
  const void* weight;    // (n)
  void* sum;             // (rows, n) of T; null without residual
  DType weight_type;
  int64_t rows, width, offset, n;
  float eps;
  float weight_offset;  // -0 is what leaves every weight as it is.
};

template <typename T>
MLA_DEVICE const T* RowOf(const void* base, int64_t offset) {
  return static_cast<const T*>(base) + offset;
}
template <typename T>
MLA_DEVICE T* RowOf(void* base, int64_t offset) {
  return static_cast<T*>(base) + offset;
}

template <int threads>
MLA_DEVICE int64_t BlockRow(int64_t block) {
  return block * (kRowBlock / threads) + ThreadX() / threads;
}
// The first value of a thread's run in a turn.
template <int threads>
MLA_DEVICE int64_t RunAt(int64_t turn) {
  return (turn * threads + ThreadX() % threads) * kRunValues;
}

// Over the threads of a row; each has the result. Once a kernel: its memory is not guarded against
// a second time.
template <int threads>
MLA_DEVICE float RowSum(float value) {
  value = LanesSum<(threads < kWave ? threads : kWave)>(value);
  if constexpr (threads > kWave) {
    __shared__ float waves[kRowBlock / kWave];
    constexpr int kRowWaves = threads / kWave;
    const int wave = ThreadX() / kWave, first = wave - wave % kRowWaves;
    if (Lane() == 0) waves[wave] = value;
    Barrier();
    value = waves[first];
#pragma unroll
    for (int i = 1; i < kRowWaves; ++i) value += waves[first + i];
  }
  return value;
}

MLA_DEVICE float InverseRms(float sum, int64_t n, float eps) {
  return 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
}

template <typename T>
MLA_DEVICE void StoreFloats(T* p, const float (&values)[kRunValues]) {
  Pack<T, kRunValues> out;
#pragma unroll
  for (int i = 0; i < kRunValues; ++i) out.at[i] = FromFloat<T>(values[i]);
  StorePack(p, out);
}

// Norms this thread's part of a row in registers and calls sink(row, at, values, exists) for each
// of its runs. Every thread of the block does so for the same turns: a sink may shuffle.
template <typename T, int threads, int runs, typename Sink>
MLA_DEVICE void NormHeldRow(const NormInput& in, int64_t block, const Sink& sink) {
  const int64_t row = BlockRow<threads>(block);
  const int64_t end = row < in.rows ? in.n : 0;
  const bool early = in.weight_type == DType::kBF16;
  float held[runs][kRunValues];
  Pack<bf16, kRunValues> weights[runs];
#pragma unroll
  for (int i = 0; i < runs; ++i) {
    const int64_t at = RunAt<threads>(i);
    Pack<T, kRunValues> read = {};
    if (at < end) read = LoadPack<kRunValues>(RowOf<T>(in.x, row * in.width + in.offset + at));
#pragma unroll
    for (int j = 0; j < kRunValues; ++j) held[i][j] = ToFloat(read.at[j]);
  }
  // Before the sum, so that a row alone waits for memory once.
  if (early) {
#pragma unroll
    for (int i = 0; i < runs; ++i) {
      const int64_t at = RunAt<threads>(i);
      if (at < end) weights[i] = LoadPack<kRunValues>(RowOf<bf16>(in.weight, at));
    }
  }
  if (in.residual != nullptr) {
#pragma unroll
    for (int i = 0; i < runs; ++i) {
      const int64_t at = RunAt<threads>(i);
      if (at >= end) break;
      const auto more = LoadPack<kRunValues>(RowOf<T>(in.residual, row * in.n + at));
#pragma unroll
      for (int j = 0; j < kRunValues; ++j) held[i][j] += ToFloat(more.at[j]);
    }
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < runs; ++i) {
#pragma unroll
    for (int j = 0; j < kRunValues; ++j) sum = __builtin_fmaf(held[i][j], held[i][j], sum);
  }
  const float scale = InverseRms(RowSum<threads>(sum), in.n, in.eps);
#pragma unroll
  for (int i = 0; i < runs; ++i) {
    const int64_t at = RunAt<threads>(i);
    if (static_cast<int64_t>(i) * threads * kRunValues >= in.n) break;
    const bool exists = at < end;
    float weight[kRunValues] = {};
    if (exists) {
      if (in.residual != nullptr) StoreFloats(RowOf<T>(in.sum, row * in.n + at), held[i]);
      if (early) {
#pragma unroll
        for (int j = 0; j < kRunValues; ++j) weight[j] = ToFloat(weights[i].at[j]);
      } else {
        ReadRun<true>(in.weight, DType::kF32, at, weight);
      }
    }
#pragma unroll
    for (int j = 0; j < kRunValues; ++j)
      held[i][j] = held[i][j] * scale * (weight[j] + in.weight_offset);
    sink(row, at, held[i], exists);
  }
}

// A row of any length and alignment, read again whenever it is needed.
template <typename T>
struct TwiceRow {
  const NormInput& in;
  int64_t row;
  float scale;

  MLA_DEVICE float Read(int64_t at) const {
    const float value = ToFloat(*RowOf<T>(in.x, row * in.width + in.offset + at));
    return in.residual == nullptr ? value
                                  : value + ToFloat(*RowOf<T>(in.residual, row * in.n + at));
  }
  MLA_DEVICE float Normed(int64_t at) const {
    return Read(at) * scale * (ReadOne(in.weight, in.weight_type, at) + in.weight_offset);
  }

  // Every thread of the row comes here.
  template <int threads>
  MLA_DEVICE void Sum() {
    float sum = 0;
    for (int64_t turn = 0; RunAt<threads>(turn) < in.n && row < in.rows; ++turn) {
      const int64_t at = RunAt<threads>(turn);
      for (int j = 0; j < kRunValues && at + j < in.n; ++j) {
        const float value = Read(at + j);
        sum = __builtin_fmaf(value, value, sum);
      }
    }
    scale = InverseRms(RowSum<threads>(sum), in.n, in.eps);
  }
};

// Norms a row of any length, value by value: sink(row, at, value).
template <typename T, int threads, typename Sink>
MLA_DEVICE void NormRowTwice(const NormInput& in, int64_t block, const Sink& sink) {
  TwiceRow<T> values{in, BlockRow<threads>(block), 0};
  values.template Sum<threads>();
  if (values.row >= in.rows) return;
  for (int64_t at = ThreadX() % threads; at < in.n; at += threads) {
    const float normed = values.Normed(at);
    if (in.residual != nullptr)
      *RowOf<T>(in.sum, values.row * in.n + at) = FromFloat<T>(values.Read(at));
    sink(values.row, at, normed);
  }
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_ROW_NORM_H_
