// Products of f32 activations with quantised weights whose codes become f32 in registers: what
// bf16 activations meet too where the processor does not multiply pairs of bf16.
//
// Columns go by groups, each decoded to vectors by a few shuffles and shifts. The sum of a run of
// groups is multiplied by its scale and added to a vector accumulator, in the same order straight
// from the codes for a few rows and from a panel of decoded ones for more: a row's result does not
// depend on how many rows came with it.
#ifndef MLA_COMMON_FLOAT_PRODUCT_H_
#define MLA_COMMON_FLOAT_PRODUCT_H_

#include <type_traits>

#include "common/product.h"
#include "common/quantized_decode.h"

namespace mla {
namespace MLA_ISA {
#if defined(__AVX2__)

// --- Codes to vectors ---

// Columns of four-bit codes that have one scale at least: four lanes of every vector of a group.
constexpr int64_t kScaleColumns = 32;

// Four-bit codes are decoded to 2^-kNibbleDown of themselves: the eight products that meet in a
// lane before their scale, which is as much larger, overflow no sooner than one.
constexpr int kNibbleDown = 6;

// Of all codes: what they are decoded to, and twice the third and fourth bytes of its bits.
template <Code code>
struct NibbleTables {
  alignas(64) float values[16] = {};
  alignas(64) uint8_t thirds[32] = {}, fourths[32] = {};

  constexpr NibbleTables() {
    constexpr int kHalves[8] = {0, 1, 2, 3, 4, 6, 8, 12};
    for (int i = 0; i < 16; ++i) {
      // In halves of units.
      const int whole = code == Code::kInt4 ? 2 * (i - 8) : (i < 8 ? 1 : -1) * kHalves[i % 8];
      const int magnitude = whole < 0 ? -whole : whole;
      constexpr int down = 1 + kNibbleDown;
      values[i] = static_cast<float>(whole) / static_cast<float>(1 << down);
      int exponent = 0;
      while (magnitude >> (exponent + 1) != 0) ++exponent;
      // The fraction's bits from the 22nd down; the sign of code 8 of MXFP4, minus zero, is kept.
      const uint32_t fraction = static_cast<uint32_t>(magnitude - (1 << exponent))
                                << (23 - exponent);
      uint32_t bits =
          magnitude == 0 ? 0 : fraction | static_cast<uint32_t>(127 + exponent - down) << 23;
      if (code == Code::kInt4 ? whole < 0 : i >= 8) bits |= 0x80000000u;
      thirds[i] = thirds[i + 16] = static_cast<uint8_t>(bits >> 16);
      fourths[i] = fourths[i + 16] = static_cast<uint8_t>(bits >> 24);
    }
    if (code != Code::kInt4) values[8] = -0.0f;
  }
};
template <Code code>
constexpr NibbleTables<code> kNibbles = {};

// Takes the byte of each lane's block to its third place.
#define MLA_LANE(i) 128, 128, i, 128
#define MLA_LANES(i) MLA_LANE(i), MLA_LANE(i), MLA_LANE(i), MLA_LANE(i)
alignas(64) constexpr uint8_t kExponentOfLane[64] = {MLA_LANES(0), MLA_LANES(1), MLA_LANES(2),
                                                     MLA_LANES(3)};
#undef MLA_LANES
#undef MLA_LANE

// The codes of one vector, in the order by nibble. Scales are one for every kScaleColumns columns.
template <Code code>
struct NibbleCodes {
  static constexpr int kVectors = 8;
  static constexpr int64_t kColumns = kNibbleGroup;
  static constexpr int64_t kBytes = kColumns / 2;
  static constexpr bool kRunsOfOne = true;
  static constexpr bool kFromMemory = true;
  // MXFP4's bytes are the exponents of f32.
  using Scale = std::conditional_t<code == Code::kE2M1, uint8_t, float>;

#if defined(__AVX512F__)
  __m512 values;

  MLA_INLINE NibbleCodes() {
    values = _mm512_load_ps(kNibbles<code>.values);
    __asm__("" : "+v"(values));
  }
  using Group = __m512i;
  static MLA_INLINE Group Get(const uint8_t* from) { return _mm512_loadu_si512(from); }
  template <int j>
  MLA_INLINE vf Vector(Group codes) const {
    // The look-up takes the lowest four bits.
    const __m512i nibbles = _mm512_maskz_srli_epi32(0xffff, codes, 4 * j);
    return (vf)_mm512_maskz_permutexvar_ps(0xffff, nibbles, values);
  }
  static MLA_INLINE vf ScaleOf(const uint8_t* scale, int64_t group, int64_t) {
    int32_t four;
    __builtin_memcpy(&four, scale + group * 4, sizeof(four));
    const __m512i exponents = _mm512_maskz_shuffle_epi8(~uint64_t{0}, _mm512_set1_epi32(four),
                                                        _mm512_load_si512(kExponentOfLane));
    return (vf)_mm512_maskz_slli_epi32(0xffff, exponents, 7);
  }
  static MLA_INLINE vf ScaleOf(const float* scale, int64_t group, int64_t) {
    const __m512i lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512 four = _mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(scale + group * 4));
    return (vf)_mm512_maskz_permutevar_ps(0xffff, four, lane);
  }
#else
  // The bytes of the values as bf16, and masks.
  __m256i low, high, nibble, upper;

  MLA_INLINE NibbleCodes() {
    low = _mm256_load_si256(reinterpret_cast<const __m256i*>(kNibbles<code>.thirds));
    high = _mm256_load_si256(reinterpret_cast<const __m256i*>(kNibbles<code>.fourths));
    nibble = _mm256_set1_epi8(15);
    upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  }
  // Calls f(Constant<j>(), vector j) for all of them, in order: sums depend on it.
  template <typename F>
  MLA_INLINE void Each(const uint8_t* from, const F& f) const {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    ForEachOf<2>([&](auto half) __attribute__((always_inline)) {
      constexpr int kHalf = decltype(half)::value;
      const __m256i index =
          _mm256_and_si256(kHalf == 0 ? codes : _mm256_srli_epi16(codes, 4), nibble);
      const __m256i lows = _mm256_shuffle_epi8(low, index);
      const __m256i highs = _mm256_shuffle_epi8(high, index);
      ForEachOf<2>([&](auto part) __attribute__((always_inline)) {
        constexpr int kFirst = kHalf * 4 + decltype(part)::value * 2;
        const __m256i pairs = decltype(part)::value == 0 ? _mm256_unpacklo_epi8(lows, highs)
                                                         : _mm256_unpackhi_epi8(lows, highs);
        f(Constant<kFirst>(), (vf)_mm256_slli_epi32(pairs, 16));
        f(Constant<kFirst + 1>(), (vf)_mm256_and_si256(pairs, upper));
      });
    });
  }
  static MLA_INLINE vf ScaleOf(const uint8_t* scale, int64_t group, int64_t) {
    int16_t two;
    __builtin_memcpy(&two, scale + group * 2, sizeof(two));
    const __m256i lane = _mm256_load_si256(reinterpret_cast<const __m256i*>(kExponentOfLane));
    return (vf)_mm256_slli_epi32(_mm256_shuffle_epi8(_mm256_set1_epi16(two), lane), 7);
  }
  static MLA_INLINE vf ScaleOf(const float* scale, int64_t group, int64_t) {
    const __m256i lane = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    double two;
    __builtin_memcpy(&two, scale + group * 2, sizeof(two));
    return (vf)_mm256_permutevar_ps(_mm256_castpd_ps(_mm256_set1_pd(two)), lane);
  }
#endif
};

// Two vectors of e4m3 codes, in order, as the numbers of fp16 with their bits: 2^-8 of their values
// (e4m3fnuz: 2^-7), which fp16 holds, subnormal ones too. Not of NaN. Scales are one a run.
struct ByteCodes {
  static constexpr int kVectors = 2;
  static constexpr int64_t kColumns = 2 * kLanes;
  static constexpr int64_t kBytes = kColumns;
  static constexpr bool kRunsOfOne = false;
  static constexpr bool kFromMemory = true;
  using Scale = float;

  struct Group {
    vf first, second;
  };
  static MLA_INLINE Group Get(const uint8_t* from) {
    // The sign stays behind the others, where fp16 has its own.
    constexpr int16_t kKept = -0x4080;
#if defined(__AVX512F__)
    __m256i codes;
    __builtin_memcpy(&codes, from, sizeof(codes));
    const __m512i wide = _mm512_slli_epi16(_mm512_maskz_cvtepi8_epi16(~0u, codes), 7);
    typedef int64_t Words __attribute__((vector_size(64)));
    const auto bits = (Words)_mm512_and_si512(wide, _mm512_set1_epi16(kKept));
    const auto first = (__m256i)__builtin_shufflevector(bits, bits, 0, 1, 2, 3);
    const auto second = (__m256i)__builtin_shufflevector(bits, bits, 4, 5, 6, 7);
    return {(vf)_mm512_maskz_cvtph_ps(0xffff, first), (vf)_mm512_maskz_cvtph_ps(0xffff, second)};
#else
    __m128i codes;
    __builtin_memcpy(&codes, from, sizeof(codes));
    const __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
    const __m256i bits = _mm256_and_si256(wide, _mm256_set1_epi16(kKept));
    return {(vf)_mm256_cvtph_ps(_mm256_castsi256_si128(bits)),
            (vf)_mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1))};
#endif
  }
  template <int j>
  MLA_INLINE vf Vector(const Group& group) const {
    return j == 0 ? group.first : group.second;
  }
  static MLA_INLINE vf ScaleOf(const float* scale, int64_t group, int64_t run) {
    return Splat(scale[group / run]);
  }
};

// The vectors themselves, in a panel.
template <typename Codes>
struct PanelCodes : Codes {
  static constexpr int64_t kBytes = Codes::kColumns * static_cast<int64_t>(sizeof(float));
  static constexpr bool kFromMemory = false;

  using Group = const float*;
  static MLA_INLINE Group Get(const uint8_t* from) { return reinterpret_cast<const float*>(from); }
  template <int j>
  MLA_INLINE vf Vector(Group values) const {
    return Load(values + j * kLanes);
  }
};

// Whether any one vector can be had by itself: by Get(group), then Vector<j>.
template <typename Codes>
constexpr bool kIndexed = true;
#if !defined(__AVX512F__)
template <Code code>
constexpr bool kIndexed<NibbleCodes<code>> = false;
#endif

template <typename Codes, typename F>
MLA_INLINE void EachVector(const Codes& codes, const uint8_t* from, const F& f) {
  if constexpr (kIndexed<Codes>) {
    const auto group = Codes::Get(from);
    ForEachOf<Codes::kVectors>([&](auto index) __attribute__((always_inline)) {
      f(index, codes.template Vector<decltype(index)::value>(group));
    });
  } else {
    codes.Each(from, f);
  }
}

// --- Tiles ---

// Some columns of N weight rows.
template <int N, typename Scale>
struct CodeRows {
  const uint8_t* data[N];
  const Scale* scale[N];
  int64_t groups;       // Whole ones.
  const uint8_t* rest;  // One more of each, filled up with zeros; or null.
  int64_t run;          // Groups that have one scale, unless that is always one.
  Ahead<N> ahead;
};

// Adds a group of N weight rows, which `groups` point to, to the sums of M rows. `begins`: these
// are a run's first.
template <int M, int N, typename Codes>
MLA_INLINE void AddGroup(const float* x, const uint8_t* const* groups, const Codes& codes,
                         bool begins, vf* part) {
  constexpr int64_t kStride = M * kLanes;
  if constexpr (kIndexed<Codes>) {
    // A vector of x is loaded once for all weight rows.
    typename Codes::Group group[N];
    MLA_UNROLL
    for (int n = 0; n < N; ++n) group[n] = Codes::Get(groups[n]);
    ForEachOf<Codes::kVectors>([&](auto index) __attribute__((always_inline)) {
      constexpr int j = decltype(index)::value;
      vf w[N];
      MLA_UNROLL
      for (int n = 0; n < N; ++n) w[n] = codes.template Vector<j>(group[n]);
      MLA_UNROLL
      for (int m = 0; m < M; ++m) {
        vf a = Load(x + j * kStride + m * kLanes);
        if constexpr (N > 1) a = Held(a);
        MLA_UNROLL
        for (int n = 0; n < N; ++n) {
          part[m * N + n] = begins && j == 0 ? a * w[n] : MulAdd(a, w[n], part[m * N + n]);
        }
      }
    });
  } else {
    MLA_UNROLL
    for (int n = 0; n < N; ++n) {
      codes.Each(groups[n], [&](auto index, vf w) __attribute__((always_inline)) {
        constexpr int j = decltype(index)::value;
        MLA_UNROLL
        for (int m = 0; m < M; ++m) {
          const vf a = Load(x + j * kStride + m * kLanes);
          part[m * N + n] = begins && j == 0 ? a * w : MulAdd(a, w, part[m * N + n]);
        }
      });
    }
  }
}

// out[m * N + n] = x[m] . w[n].
template <int M, int N, typename Codes>
inline __attribute__((noinline)) void CodeTile(const float* x,
                                               const CodeRows<N, typename Codes::Scale>& rows,
                                               float* out) {
  constexpr bool kOne = Codes::kRunsOfOne;
  constexpr int64_t kGroup = Codes::kVectors * M * kLanes;
  vf acc[kWholeSums<M * N>] = {};
  const Codes codes;
  const int64_t whole = rows.groups, all = whole + (rows.rest != nullptr);
  const int64_t run = kOne ? 1 : rows.run;
  const uint8_t* at[N];
  const auto take = [&](bool from_rest, int64_t g) __attribute__((always_inline)) {
    MLA_UNROLL
    for (int n = 0; n < N; ++n) {
      at[n] = from_rest ? rows.rest + n * Codes::kBytes : rows.data[n] + g * Codes::kBytes;
    }
  };
  for (int64_t first = 0; first < all; first += run) {
    const int64_t end = Min(first + run, all);
    if constexpr (Codes::kFromMemory) {
      rows.ahead.Ask(first * Codes::kBytes, (end - first) * Codes::kBytes);
    }
    vf part[M * N] = {};
    if constexpr (kOne) {
      take(first == whole, first);
      AddGroup<M, N>(x + first * kGroup, at, codes, true, part);
    } else {
      for (int64_t g = first; g < end; ++g) {
        take(g == whole, g);
        AddGroup<M, N>(x + g * kGroup, at, codes, false, part);
      }
    }
    MLA_UNROLL
    for (int n = 0; n < N; ++n) {
      const vf scale = Codes::ScaleOf(rows.scale[n], first, run);
      MLA_UNROLL
      for (int m = 0; m < M; ++m) {
        acc[m * N + n] = MulAdd(part[m * N + n], scale, acc[m * N + n]);
      }
    }
  }
  LaneSums<kWholeSums<M * N>>(acc, out);
}

// --- Weights ---

template <Code code>
struct FloatWeights {
  using C = float;
  using Constants = NoConstants;
  static constexpr bool kBytes = code == Code::kE4M3 || code == Code::kE4M3Fnuz;
  static constexpr bool kMxfp4 = code == Code::kE2M1;
  using Codes = std::conditional_t<kBytes, ByteCodes, NibbleCodes<code>>;
  using Scale = typename Codes::Scale;
  const QuantizedMatrix& m;

  // Panels hold the vectors of the codes. Across the lanes they hold the values of four-bit codes,
  // whose order mixes the columns of several scales.
  static constexpr bool kScaled = kBytes;
  static constexpr bool kOwnLanePanels = !kBytes;

  // Whether no lane of a group has columns of two scales, and of FP8 no chunk begins inside a
  // scale's columns.
  static bool Takes(const QuantizedMatrix& m) {
    if (m.code != code || m.k == 0) return false;
    if (kMxfp4) return m.block_k == kScaleColumns && m.k % kScaleColumns == 0;
    if (!kBytes) return m.block_k % kScaleColumns == 0 && m.k % kScaleColumns == 0;
    return m.block_k >= m.k || (m.block_k % Codes::kColumns == 0 && kChunk<float> % m.block_k == 0);
  }

  // A run's sums find room in the registers beside the others, or nearly.
  static constexpr int FewCols(int height) { return height == 8 ? 2 : kTileN; }
  static constexpr int ManyCols() { return kTileN; }
  bool UsesPanel(int64_t rows) const { return rows > kFewRows; }

  static int64_t Bytes(int64_t columns) { return kBytes ? columns : columns / 2; }
  int64_t Left(int64_t k0, int64_t width) const { return Min(width, m.k - k0); }
  WeightPlace PlaceOf(int64_t n) const {
    return {m.data + n * m.RowBytes(), m.RowBytes(), Bytes(kAskColumns)};
  }
  static int64_t Groups(int64_t left) { return CeilDiv(left, Codes::kColumns); }
  int64_t Run(int64_t left) const {
    return m.block_k >= m.k ? Groups(left) : m.block_k / Codes::kColumns;
  }

  // What the vectors of a group are multiplied by, a power of two, to be codes.
  static constexpr float kUnit =
      kBytes ? (code == Code::kE4M3 ? 256.0f : 128.0f) : static_cast<float>(1 << kNibbleDown);

  // The scales of a chunk of one row, kUnit times as large: for four-bit codes one of every
  // kScaleColumns columns, up to a whole group, else one of every block.
  static constexpr int64_t kChunkScales = kChunk<float> / kScaleColumns;
  static constexpr int64_t kMostScales = kBytes ? kChunk<float> / Codes::kColumns : kChunkScales;

  // Returns whether they are. If some product of MXFP4 is no normal number, 2^-kNibbleDown of it
  // included, they are all 1 instead: then the vectors must be the values.
  bool ReadChunkScales(int64_t row, int64_t k0, int64_t left, Scale* scale) const {
    if constexpr (kMxfp4) {
      typedef uint8_t Scales __attribute__((vector_size(kChunkScales)));
      constexpr uint8_t kOne = 127, kLeast = 2 + kNibbleDown, kMost = 252 - kNibbleDown;
      constexpr uint8_t kRange = kMost - kLeast;
      const uint8_t* from =
          static_cast<const uint8_t*>(m.scale) + row * (m.k / kScaleColumns) + k0 / kScaleColumns;
      Scales scales = Scales{} + kOne;
      if (left == kChunk<float>) {
        __builtin_memcpy(&scales, from, sizeof(scales));
      } else {
        __builtin_memcpy(&scales, from, static_cast<size_t>(left / kScaleColumns));
      }
      // Below the least the difference is large.
      const auto outside = (__m256i)(scales - kLeast > kRange);
      const bool regular = _mm256_testz_si256(outside, outside) != 0;
      scales = regular ? scales + kNibbleDown : Scales{} + kOne;
      __builtin_memcpy(scale, &scales, sizeof(scales));
      return regular;
    } else {
      const RowScales scales(m, row);
      int64_t block = k0 / m.block_k, i = 0;
      if (kBytes || m.block_k == kScaleColumns) {
        const int64_t count = CeilDiv(left, Min(m.block_k, kChunk<float>));
        for (; i + kLanes <= count; i += kLanes) {
          Store(scale + i, scales.Vector(block + i) * kUnit);
        }
        for (; i < count; ++i) scale[i] = scales[block + i] * kUnit;
      } else {
        int64_t end = (block + 1) * m.block_k - k0;
        float one = scales[block] * kUnit;
        for (int64_t k = 0; k < left; k += kScaleColumns) {
          if (k == end) {
            one = scales[++block] * kUnit;
            end += m.block_k;
          }
          scale[i++] = one;
        }
      }
      constexpr int64_t kGroup = kBytes ? 1 : kNibbleGroup / kScaleColumns;
      while (i % kGroup != 0) scale[i++] = 0.0f;
      return true;
    }
  }

  bool AnyNan(int64_t row, int64_t k0, int64_t left) const {
    if (!kBytes) return false;
    const uint8_t* codes = m.data + row * m.k + k0;
    // Zero where a code is NaN.
    const auto test = [](__m256i v) {
      return code == Code::kE4M3 ? _mm256_andnot_si256(v, _mm256_set1_epi8(0x7f))
                                 : _mm256_xor_si256(v, _mm256_set1_epi8(static_cast<char>(0x80)));
    };
    __m256i least = _mm256_set1_epi8(1);
    int64_t i = 0;
    for (; i + 32 <= left; i += 32) {
      const auto* from = reinterpret_cast<const __m256i*>(codes + i);
      least = _mm256_min_epu8(least, test(_mm256_loadu_si256(from)));
    }
    if (i < left) {
      __m256i v = _mm256_setzero_si256();
      __builtin_memcpy(&v, codes + i, static_cast<size_t>(left - i));
      least = _mm256_min_epu8(least, test(v));
    }
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(least, _mm256_setzero_si256())) != 0;
  }

  // Calls f(place, vector, group) for the vectors of a chunk of one row.
  template <typename F>
  MLA_INLINE void EachOfChunk(int64_t row, int64_t k0, int64_t left, const F& f) const {
    const uint8_t* from = m.data + row * m.RowBytes() + Bytes(k0);
    const Codes codes;
    const auto group = [&](const uint8_t* at, int64_t g) __attribute__((always_inline)) {
      EachVector(codes, at, [&](auto index, vf w) __attribute__((always_inline)) {
        f(g * Codes::kColumns + decltype(index)::value * kLanes, w, g);
      });
    };
    const int64_t whole = left / Codes::kColumns;
    for (int64_t g = 0; g < whole; ++g) group(from + g * Codes::kBytes, g);
    if (whole < Groups(left)) {
      alignas(64) uint8_t rest[Codes::kBytes] = {};
      __builtin_memcpy(rest, from + whole * Codes::kBytes,
                       static_cast<size_t>(Bytes(left - whole * Codes::kColumns)));
      group(rest, whole);
    }
  }

  // The values of four-bit codes and the codes of the others, in the order of the groups, zeros
  // behind the last of `width`.
  __attribute__((noinline)) void DecodeSlowly(int64_t row, int64_t k0, int64_t width,
                                              float* dst) const {
    alignas(64) bf16 decoded[kChunk<float>];
    const int64_t left = Left(k0, width);
    DecodeRow(m, row, k0, left, decoded);
    PackRow(decoded, left, width, kBytes ? Order::kPlain : Order::kByNibble, 1, dst);
  }

  // What a panel has of one row, in the order of the groups, up to the last whole one: the vectors
  // of its codes, or values if ReadChunkScales was false.
  void DecodeChunk(int64_t row, int64_t k0, int64_t width, bool regular, float* dst) const {
    const int64_t left = Left(k0, width);
    if (!regular) return DecodeSlowly(row, k0, width, dst);
    if (AnyNan(row, k0, left)) {
      DecodeSlowly(row, k0, width, dst);
      for (int64_t i = 0; i < width; i += kLanes) Store(dst + i, Load(dst + i) * (1 / kUnit));
      return;
    }
    EachOfChunk(row, k0, left, [&](int64_t at, vf w, int64_t) __attribute__((always_inline)) {
      Store(dst + at, w);
    });
    for (int64_t i = Groups(left) * Codes::kColumns; i < width; i += kLanes) Store(dst + i, vf{});
  }

  template <int M, int N>
  void Few(const float* x, int64_t n, int64_t last, int64_t k0, int64_t width, float* out) const {
    alignas(64) Scale scale[N][kMostScales];
    alignas(64) uint8_t rest[N][Codes::kBytes];
    const int64_t left = Left(k0, width), groups = left / Codes::kColumns;
    const int64_t rest_bytes = Bytes(left - groups * Codes::kColumns);
    CodeRows<N, Scale> rows;
    bool regular = true;
    for (int j = 0; j < N; ++j) {
      const int64_t row = Min(n + j, last);
      rows.data[j] = m.data + row * m.RowBytes() + Bytes(k0);
      rows.scale[j] = scale[j];
      regular = ReadChunkScales(row, k0, left, scale[j]) && regular;
      regular = !AnyNan(row, k0, left) && regular;
      if (rest_bytes > 0) {
        __builtin_memset(rest[j], 0, sizeof(rest[j]));
        __builtin_memcpy(rest[j], rows.data[j] + groups * Codes::kBytes,
                         static_cast<size_t>(rest_bytes));
      }
    }
    if (!regular) return Irregular<M, N>(x, n, last, k0, width, out);
    rows.groups = groups;
    rows.rest = rest_bytes > 0 ? rest[0] : nullptr;
    rows.run = Run(left);
    rows.ahead = Ahead<N>(m.data + (n + kRowsAhead) * m.RowBytes(), m.RowBytes(), Bytes(k0),
                          (kBytes ? rows.run : 1) * Codes::kBytes, WholeRows<C>(M, m.k));
    CodeTile<M, N, Codes>(x, rows, out);
  }

  // The same by way of a panel.
  template <int M, int N>
  __attribute__((noinline)) void Irregular(const float* x, int64_t n, int64_t last, int64_t k0,
                                           int64_t width, float* out) const {
    alignas(64) float values[N * kChunk<float>];
    const Panel<float> panel = {values, kChunk<float>};
    const int64_t count = Min(N, last - n + 1);
    Fill(n, count, k0, width, panel);
    FromPanel<M, N>(x, panel, 0, count - 1, n, k0, width, out);
  }

  void Fill(int64_t n, int64_t count, int64_t k0, int64_t width, const Panel<float>& panel) const {
    alignas(64) Scale scale[kMostScales];
    for (int64_t j = 0; j < count; ++j) {
      const bool regular = !kMxfp4 || ReadChunkScales(n + j, k0, Left(k0, width), scale);
      DecodeChunk(n + j, k0, width, regular, panel.Row(j));
    }
  }

  template <int M, int N>
  void FromPanel(const float* x, const Panel<float>& panel, int64_t j, int64_t last, int64_t n0,
                 int64_t k0, int64_t width, float* out) const {
    alignas(64) Scale scale[N][kMostScales];
    const int64_t left = Left(k0, width);
    CodeRows<N, Scale> rows = {};
    for (int i = 0; i < N; ++i) {
      const int64_t row = Min(j + i, last);
      rows.data[i] = reinterpret_cast<const uint8_t*>(panel.Row(row));
      rows.scale[i] = scale[i];
      ReadChunkScales(n0 + row, k0, left, scale[i]);
    }
    rows.groups = Groups(left);
    rows.run = Run(left);
    CodeTile<M, N, PanelCodes<Codes>>(x, rows, out);
  }

  // --- For rows across the lanes ---

  void FillLanes(int64_t n, int64_t count, int64_t k0, int64_t width,
                 const Panel<float>& panel) const {
    alignas(64) Scale scale[kMostScales];
    const int64_t left = Left(k0, width);
    for (int64_t j = 0; j < count; ++j) {
      float* dst = panel.Row(j);
      if (!ReadChunkScales(n + j, k0, left, scale)) {
        DecodeSlowly(n + j, k0, width, dst);
        continue;
      }
      EachOfChunk(n + j, k0, left, [&](int64_t at, vf w, int64_t g) __attribute__((always_inline)) {
        Store(dst + at, w * Codes::ScaleOf(scale, g, 1));
      });
      for (int64_t i = Groups(left) * Codes::kColumns; i < width; i += kLanes) Store(dst + i, vf{});
    }
  }

  // Of weight rows [n, n + count).
  void ReadScales(int64_t n, int64_t count, int64_t k, float* scale) const {
    for (int64_t j = 0; j < count; ++j) scale[j] = RowScales(m, n + j)[k / m.block_k] * kUnit;
  }
  int64_t ScaleEnd(int64_t k) const {
    const int64_t end = (k / m.block_k + 1) * m.block_k;
    return end < m.k ? end : INT64_MAX;
  }
};

inline bool TakesNibbles(const QuantizedMatrix& m) {
  return FloatWeights<Code::kE2M1>::Takes(m) || FloatWeights<Code::kInt4>::Takes(m);
}
inline bool TakesBytes(const QuantizedMatrix& m) {
  return FloatWeights<Code::kE4M3>::Takes(m) || FloatWeights<Code::kE4M3Fnuz>::Takes(m);
}

#else
inline bool TakesNibbles(const QuantizedMatrix&) { return false; }
inline bool TakesBytes(const QuantizedMatrix&) { return false; }
#endif  // __AVX2__
}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_FLOAT_PRODUCT_H_
