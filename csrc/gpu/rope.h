// RoPE of pairs of elements, one pair at a time or 4 of them in wide accesses.
#ifndef MLA_GPU_ROPE_H_
#define MLA_GPU_ROPE_H_

#include "gpu/convert.h"

namespace mla {
namespace gpu {

// A position outside the table counts as the nearest one inside.
MLA_DEVICE int64_t TableRow(int64_t position, int64_t table_rows) {
  const int64_t last = table_rows - 1;
  return position < 0 ? 0 : (position > last ? last : position);
}

// Pairs as they lie in memory: neighbours, or in the half layout elements half the width apart, of
// which the first ones come first here.
template <typename T, int pairs>
struct Pairs {
  Pack<T, 2 * pairs> raw;

  MLA_DEVICE Pairs() {}
  MLA_DEVICE Pairs(const T* src, int64_t first, int64_t half, bool half_layout) {
    if (half_layout) {
      const auto low = LoadRun<(pairs > 1), pairs>(src + first),
                 high = LoadRun<(pairs > 1), pairs>(src + half + first);
#pragma unroll
      for (int i = 0; i < pairs; ++i) {
        raw.at[i] = low.at[i];
        raw.at[pairs + i] = high.at[i];
      }
    } else {
      raw = LoadRun<(pairs > 1), 2 * pairs>(src + 2 * first);
    }
  }

  MLA_DEVICE void Store(T* dst, int64_t first, int64_t half, bool half_layout) const {
    if (half_layout) {
      Pack<T, pairs> low, high;
#pragma unroll
      for (int i = 0; i < pairs; ++i) {
        low.at[i] = raw.at[i];
        high.at[i] = raw.at[pairs + i];
      }
      StoreRun<(pairs > 1)>(dst + first, low);
      StoreRun<(pairs > 1)>(dst + half + first, high);
    } else {
      StoreRun<(pairs > 1)>(dst + 2 * first, raw);
    }
  }
};

// The same, in wide accesses, as words: elements that wait for their turn would take a register
// each.
template <typename T, int pairs>
struct HeldPairs {
  static constexpr int kWords = static_cast<int>(sizeof(T)) * 2 * pairs / 4;
  Pack<uint32_t, kWords> words;

  MLA_DEVICE HeldPairs() {}
  MLA_DEVICE HeldPairs(const T* src, int64_t first, int64_t half, bool half_layout) {
    if (half_layout) {
      const auto low = LoadPack<kWords / 2>(At<uint32_t>(src + first, 0)),
                 high = LoadPack<kWords / 2>(At<uint32_t>(src + half + first, 0));
#pragma unroll
      for (int i = 0; i < kWords / 2; ++i) {
        words.at[i] = low.at[i];
        words.at[kWords / 2 + i] = high.at[i];
      }
    } else {
      words = LoadPack<kWords>(At<uint32_t>(src + 2 * first, 0));
    }
  }

  MLA_DEVICE Pairs<T, pairs> Open() const {
    Pairs<T, pairs> out;
    __builtin_memcpy(&out.raw, &words, sizeof(words));
    return out;
  }
};

template <int pairs>
struct Rotated {
  float at[2 * pairs];
};

// Cosines and sines of some pairs.
template <int pairs>
struct Angles {
  Pack<float, pairs> cos, sin;

  MLA_DEVICE Angles(const float* cosines, const float* sines, int64_t at)
      : cos(LoadRun<(pairs > 1), pairs>(cosines + at)),
        sin(LoadRun<(pairs > 1), pairs>(sines + at)) {}

  // In the order of `in`.
  template <typename T>
  MLA_DEVICE Rotated<pairs> Rotate(const Pairs<T, pairs>& in, bool half_layout) const {
    Rotated<pairs> out;
#pragma unroll
    for (int i = 0; i < pairs; ++i) {
      const float a = ToFloat(half_layout ? in.raw.at[i] : in.raw.at[2 * i]);
      const float b = ToFloat(half_layout ? in.raw.at[pairs + i] : in.raw.at[2 * i + 1]);
      const float x = a * cos.at[i] - b * sin.at[i], y = b * cos.at[i] + a * sin.at[i];
      if (half_layout) {
        out.at[i] = x;
        out.at[pairs + i] = y;
      } else {
        out.at[2 * i] = x;
        out.at[2 * i + 1] = y;
      }
    }
    return out;
  }
};

template <typename T, int pairs>
MLA_DEVICE void StoreRotated(const Angles<pairs>& angles, const Pairs<T, pairs>& in, T* dst,
                             int64_t first, int64_t half, bool half_layout) {
  const Rotated<pairs> rotated = angles.Rotate(in, half_layout);
  Pairs<T, pairs> out;
#pragma unroll
  for (int j = 0; j < 2 * pairs; ++j) out.raw.at[j] = FromFloat<T>(rotated.at[j]);
  out.Store(dst, first, half, half_layout);
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_ROPE_H_
