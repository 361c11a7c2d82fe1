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

MLA_DEVICE float InverseRms(float sum, float inverse_n, float eps) {
  return InverseSqrt(sum * inverse_n + eps);
}

template <typename T>
MLA_DEVICE void StoreFloats(T* p, const float (&values)[kRunValues]) {
  Pack<T, kRunValues> out;
#pragma unroll
  for (int i = 0; i < kRunValues; ++i) out.at[i] = FromFloat<T>(values[i]);
  StorePack(p, out);
}

// A run of T as it lies in memory, in whole registers: elements of 16 bits would take one each.
template <typename T>
struct RawRun {
  static constexpr int kWords = kRunValues * sizeof(T) / 4;
  Pack<uint32_t, kWords> words;

  // Zeros where it does not exist.
  MLA_DEVICE void Load(bool exists, const T* p) {
    words = {};
    if (exists) words = LoadPack<kWords>(reinterpret_cast<const uint32_t*>(p));
  }
  MLA_DEVICE float Value(int i) const {
    if constexpr (sizeof(T) == 4) {
      return BitCast<float>(words.at[i]);
    } else {
      const uint32_t pair = words.at[i / 2];
      return BitCast<float>(i % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
    }
  }
};

MLA_DEVICE uint32_t FirstWord(const NormInput& in, int at) {
  return in.weight_type == DType::kF32 ? *At<uint32_t>(in.weight, at)
                                       : *At<uint32_t>(in.weight, at / 2);
}
// A run of weights whose first word is there already.
MLA_DEVICE void ReadWeights(const NormInput& in, int at, uint32_t first,
                            float (&weight)[kRunValues]) {
  if (in.weight_type == DType::kF32) {
    RawRun<float> run;
    run.Load(true, At<float>(in.weight, at));
    run.words.at[0] = first;
#pragma unroll
    for (int i = 0; i < kRunValues; ++i) weight[i] = run.Value(i);
  } else {
    RawRun<bf16> run;
    run.Load(true, At<bf16>(in.weight, at));
    run.words.at[0] = first;
#pragma unroll
    for (int i = 0; i < kRunValues; ++i) weight[i] = run.Value(i);
  }
}

// Norms this thread's part of a row in registers and calls sink(row, at, values, exists) for each
// of its runs. Every thread of the block does so for the same turns: a sink may shuffle.
//
// A row alone should wait for memory once: the first word of each run of weights is read before the
// sum, which brings their lines near, and the rest, which would take too many registers, behind it.
template <typename T, int threads, int runs, typename Sink>
MLA_DEVICE void NormHeldRow(const NormInput& in, int64_t block, const Sink& sink) {
  const int64_t row = BlockRow<threads>(block);
  const int n = static_cast<int>(in.n), end = row < in.rows ? n : 0;
  const int first = ThreadX() % threads * kRunValues;
  const T* x = At<T>(in.x, row * in.width + in.offset + first);
  const bool adds = in.residual != nullptr;
  RawRun<T> read[runs], more[runs];
  uint32_t weight_words[runs];
#pragma unroll
  for (int i = 0; i < runs; ++i) {
    const int turn = i * threads * kRunValues;
    read[i].Load(first + turn < end, x + turn);
  }
#pragma unroll
  for (int i = 0; i < runs; ++i) {
    const int turn = i * threads * kRunValues;
    weight_words[i] = 0;
    if (first + turn < end) weight_words[i] = FirstWord(in, first + turn);
  }
  float held[runs][kRunValues];
  if (adds) {
    const T* residual = At<T>(in.residual, row * in.n + first);
#pragma unroll
    for (int i = 0; i < runs; ++i) {
      const int turn = i * threads * kRunValues;
      more[i].Load(first + turn < end, residual + turn);
    }
#pragma unroll
    for (int i = 0; i < runs; ++i) {
#pragma unroll
      for (int j = 0; j < kRunValues; ++j) held[i][j] = read[i].Value(j) + more[i].Value(j);
    }
  } else {
#pragma unroll
    for (int i = 0; i < runs; ++i) {
#pragma unroll
      for (int j = 0; j < kRunValues; ++j) held[i][j] = read[i].Value(j);
    }
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < runs; ++i) {
#pragma unroll
    for (int j = 0; j < kRunValues; ++j) sum = __builtin_fmaf(held[i][j], held[i][j], sum);
  }
  const float scale = InverseRms(RowSum<threads>(sum), 1.0f / static_cast<float>(in.n), in.eps);
  T* sums = At<T>(in.sum, row * in.n + first);
#pragma unroll
  for (int i = 0; i < runs; ++i) {
    const int turn = i * threads * kRunValues;
    if (turn >= n) break;
    const bool exists = first + turn < end;
    float weight[kRunValues] = {};
    if (exists) ReadWeights(in, first + turn, weight_words[i], weight);
    if (adds && exists) StoreFloats(sums + turn, held[i]);
#pragma unroll
    for (int j = 0; j < kRunValues; ++j) {
      held[i][j] = held[i][j] * scale * (weight[j] + in.weight_offset);
    }
    sink(row, first + turn, held[i], exists);
  }
}

// A row of any length and alignment, read again whenever it is needed.
template <typename T>
struct TwiceRow {
  const NormInput& in;
  int64_t row;
  float scale;

  MLA_DEVICE float Read(int64_t at) const {
    const float value = ToFloat(*At<T>(in.x, row * in.width + in.offset + at));
    return in.residual == nullptr ? value : value + ToFloat(*At<T>(in.residual, row * in.n + at));
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
    scale = InverseRms(RowSum<threads>(sum), 1.0f / static_cast<float>(in.n), in.eps);
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
      *At<T>(in.sum, values.row * in.n + at) = FromFloat<T>(values.Read(at));
    sink(values.row, at, normed);
  }
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_ROW_NORM_H_
