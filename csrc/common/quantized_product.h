// A quantised matrix as the weights of Product.
//
// f32 activations meet values rounded to f32, in panels, unless float_product.h takes the weights.
// bf16 ones meet exact bf16: MXFP4 values,
// or codes whose scale multiplies each block's f32 sum. Both are decoded in registers for a few
// activations and into a panel for many.
#ifndef MLA_COMMON_QUANTIZED_PRODUCT_H_
#define MLA_COMMON_QUANTIZED_PRODUCT_H_

#include <type_traits>

#include "common/product.h"
#include "common/quantized_decode.h"

namespace mla {
namespace MLA_ISA {

// Rows [n, n + count) of one chunk into a panel, zeros past the last column: values as f32; as bf16
// values of MXFP4 and codes of the others.
inline void FillPanel(const QuantizedMatrix& m, int64_t n, int64_t count, int64_t k0, int64_t width,
                      const Panel<float>& panel) {
  bf16 work[kChunk<float>];
  const int64_t left = Min(width, m.k - k0);
  for (int64_t j = 0; j < count; ++j) {
    float* row = panel.Row(j);
    DecodeRow(m, n + j, k0, left, work, row);
    for (int64_t i = left; i < width; ++i) row[i] = 0.0f;
  }
}
inline void FillPanel(const QuantizedMatrix& m, int64_t n, int64_t count, int64_t k0, int64_t width,
                      const Panel<bf16>& panel) {
  const int64_t left = Min(width, m.k - k0);
  for (int64_t j = 0; j < count; ++j) {
    bf16* row = panel.Row(j);
    DecodeRow(m, n + j, k0, left, row);
    for (int64_t i = left; i < width; ++i) row[i].bits = 0;
  }
}

// Values in panels for any number of activations: every format as f32, and as bf16 the MXFP4 whose
// columns are no whole blocks of 32 or that lies in a layout for another processor.
template <typename Multiplied>
struct DecodedWeights {
  using C = Multiplied;
  using Constants = NoConstants;
  const QuantizedMatrix& m;

  static constexpr bool kScaled = false;
  static constexpr bool kOwnLanePanels = false;
  static constexpr int FewCols(int height) { return PlainWeights<C, C>::FewCols(height); }
  static constexpr int ManyCols() { return kTileN; }
  bool UsesPanel(int64_t) const { return true; }

  struct Rows {
    const DecodedWeights* of = nullptr;
    int64_t n = 0;
    MLA_INLINE void Ask(int64_t, int64_t) const {}
    MLA_INLINE void AskScales(int64_t, int64_t) const {}
    int64_t Whole() const { return 0; }
    void FillWhole(int64_t, int64_t, NoConstants, C*) const {}
    void Fill(int64_t j, int64_t k, C* dst) const {
      of->Fill(n + j, 1, k, kMatrixColumns, {dst, kMatrixColumns});
    }
  };
  Rows RowsAt(int64_t n, int64_t) const { return {this, n}; }
  WeightPlace PlaceOf(int64_t) const { return {}; }  // In any order.

  template <int M, int N>
  void Few(const C*, int64_t, int64_t, int64_t, int64_t, float*) const {}

  void Fill(int64_t n, int64_t count, int64_t k0, int64_t width, const Panel<C>& panel) const {
    FillPanel(m, n, count, k0, width, panel);
  }

  template <int M, int N>
  void FromPanel(const C* x, const Panel<C>& panel, int64_t j, int64_t last, int64_t, int64_t,
                 int64_t width, float* out) const {
    PanelTile<M, N>(x, panel, j, last, width, out);
  }
};

#if defined(__AVX512BF16__)

MLA_INLINE vf DotPairs(vf acc, __m512i a, __m512i b) { return DotStep<bf16, bf16>::Add(acc, a, b); }

// --- MXFP4 ---

// e2m1 codes times 2^(scale - 127) as bf16 by integer arithmetic: the bits of a value are those of
// the code's, moved by the scale's exponent. kMxfp4Bits holds the code's bits plus kMxfp4Bias; a
// saturating subtraction of kMxfp4Bias - (scale - 127) * 2^7 gives the value's bits, and leaves the
// zeros of the codes for zero. Correct for RegularScales.
constexpr uint16_t kMxfp4Bias = 0x3e80;
alignas(64) constexpr uint16_t kMxfp4Bits[32] = {
    0, 0x7d80, 0x7e00, 0x7e40, 0x7e80, 0x7ec0, 0x7f00, 0x7f40,  //
    0, 0xfd80, 0xfe00, 0xfe40, 0xfe80, 0xfec0, 0xff00, 0xff40,  //
    0, 0x7d80, 0x7e00, 0x7e40, 0x7e80, 0x7ec0, 0x7f00, 0x7f40,  //
    0, 0xfd80, 0xfe00, 0xfe40, 0xfe80, 0xfec0, 0xff00, 0xff40};
// Lanes 4 b to 4 b + 3 hold the codes of block b of four.
alignas(64) constexpr uint8_t kScaleOfLane[64] = {
    0, 128, 0, 128, 0, 128, 0, 128, 0, 128, 0, 128, 0, 128, 0, 128,  //
    1, 128, 1, 128, 1, 128, 1, 128, 1, 128, 1, 128, 1, 128, 1, 128,  //
    2, 128, 2, 128, 2, 128, 2, 128, 2, 128, 2, 128, 2, 128, 2, 128,  //
    3, 128, 3, 128, 3, 128, 3, 128, 3, 128, 3, 128, 3, 128, 3, 128};

// What decoding needs, in registers: the compiler would else load it again for every group.
struct Mxfp4Constants {
  __m512i bits, spread, bias, start[3];

  MLA_INLINE Mxfp4Constants() {
    bits = _mm512_load_si512(kMxfp4Bits);
    spread = _mm512_load_si512(kScaleOfLane);
    bias = _mm512_set1_epi16(kMxfp4Bias + (127 << 7));
    for (int j = 0; j < 3; ++j) {
      // Codes j + 1, j + 5, j + 9 and j + 13 of a 64-bit lane, each at both bytes of its place.
      start[j] = _mm512_set1_epi64(0x3030202010100000 + 0x0404040404040404 * (j + 1));
    }
    __asm__(""
            : "+v"(bits), "+v"(spread), "+v"(bias), "+v"(start[0]), "+v"(start[1]), "+v"(start[2]));
  }
};

// 128 columns of one row: 64 bytes of codes and four scales.
struct Mxfp4Group {
  static constexpr int64_t kBytes = kNibbleColumns / 2;

  __m512i codes, bias;

  MLA_INLINE Mxfp4Group() = default;
  MLA_INLINE Mxfp4Group(__m512i the_codes, uint32_t scales, const Mxfp4Constants& constants)
      : codes(the_codes) {
    const __m512i spread = _mm512_maskz_shuffle_epi8(
        ~uint64_t{0}, _mm512_set1_epi32(static_cast<int>(scales)), constants.spread);
    bias = _mm512_sub_epi16(constants.bias, _mm512_slli_epi16(spread, 7));
  }
  MLA_INLINE Mxfp4Group(const uint8_t* data, const uint8_t* scale,
                        const Mxfp4Constants& constants) {
    uint32_t four;
    __builtin_memcpy(&four, scale, sizeof(four));
    *this = Mxfp4Group(_mm512_loadu_si512(data), four, constants);
  }
  // Vector j of the order by nibble. A table of 32 needs no mask: its halves are equal, so the
  // fifth bit of an index, which belongs to the next code, does not matter.
  template <int j>
  MLA_INLINE __m512i Vector(const Mxfp4Constants& constants) const {
    __m512i index = codes;
    if constexpr (j > 0) {
#if defined(__AVX512VBMI__)
      // Not a shift, which would wait for the one port that the subtraction and half of the
      // look-up need too.
      index = _mm512_maskz_multishift_epi64_epi8(~uint64_t{0}, constants.start[j - 1], codes);
#else
      index = _mm512_maskz_srli_epi32(static_cast<__mmask16>(~0u), codes, 4 * j);
#endif
    }
    const __m512i bits = _mm512_maskz_permutexvar_epi16(~0u, index, constants.bits);
    return _mm512_subs_epu16(bits, bias);
  }
};

// Products with `groups` groups of 128 columns, and with `rest` of 32 more.
template <int M, int N>
inline __attribute__((noinline)) void Mxfp4Tile(const bf16* x, const uint8_t* const* data,
                                                const uint8_t* const* scale, int64_t groups,
                                                int64_t rest, const Ahead<N>& ahead, float* out) {
  const Ahead<N> later = ahead;
  vf acc[kWholeSums<M * N>] = {};
  const uint8_t* ds[N];
  const uint8_t* ss[N];
  MLA_UNROLL
  for (int n = 0; n < N; ++n) ds[n] = data[n];
  MLA_UNROLL
  for (int n = 0; n < N; ++n) ss[n] = scale[n];
  const Mxfp4Constants constants;
  // Of several weight rows the vectors j are multiplied together, so that a vector of x is loaded
  // once for all of them.
  constexpr int kTogether = M == 1 ? 1 : N;
  const auto add = [&](int64_t g, const Mxfp4Group* group, int n0) __attribute__((always_inline)) {
    const auto one = [&](auto vector) __attribute__((always_inline)) {
      constexpr int j = decltype(vector)::value;
      __m512i b[kTogether];
      MLA_UNROLL
      for (int n = 0; n < kTogether; ++n) b[n] = group[n].template Vector<j>(constants);
      MLA_UNROLL
      for (int m = 0; m < M; ++m) {
        const __m512i a = _mm512_loadu_si512(x + (g * 4 + j) * (M * 32) + m * 32);
        MLA_UNROLL
        for (int n = 0; n < kTogether; ++n) {
          acc[m * N + n0 + n] = DotPairs(acc[m * N + n0 + n], a, b[n]);
        }
      }
    };
    one(Constant<0>());
    one(Constant<1>());
    one(Constant<2>());
    one(Constant<3>());
  };
  for (int64_t g = 0; g < groups; ++g) {
    later.Ask(g * Mxfp4Group::kBytes, Mxfp4Group::kBytes);
    MLA_UNROLL
    for (int n0 = 0; n0 < N; n0 += kTogether) {
      Mxfp4Group group[kTogether];
      MLA_UNROLL
      for (int n = 0; n < kTogether; ++n) {
        group[n] = Mxfp4Group(ds[n0 + n] + g * 64, ss[n0 + n] + g * 4, constants);
      }
      add(g, group, n0);
    }
  }
  if (rest > 0) {
    MLA_UNROLL
    for (int n0 = 0; n0 < N; n0 += kTogether) {
      Mxfp4Group group[kTogether];
      for (int n = 0; n < kTogether; ++n) {
        uint32_t four = 0;
        __builtin_memcpy(&four, ss[n0 + n] + groups * 4, static_cast<size_t>(rest));
        const auto mask = static_cast<__mmask16>((1u << (4 * rest)) - 1);
        group[n] =
            Mxfp4Group(_mm512_maskz_loadu_epi32(mask, ds[n0 + n] + groups * 64), four, constants);
      }
      add(groups, group, n0);
    }
  }
  LaneSums<kWholeSums<M * N>>(acc, out);
}

// MXFP4 rows of whole blocks of 32.
struct Mxfp4Weights {
  using C = bf16;
  using Constants = Mxfp4Constants;
  const QuantizedMatrix& m;

  static constexpr bool kScaled = false;
  static constexpr bool kOwnLanePanels = false;
  static bool Takes(const QuantizedMatrix& m) {
    return m.code == Code::kE2M1 && m.block_k == 32 && m.k % 32 == 0;
  }
  static constexpr int FewCols(int height) { return height == 1 ? 8 : (height <= 4 ? 4 : 2); }
  static constexpr int ManyCols() { return kTileN; }
  bool UsesPanel(int64_t rows) const { return rows > kFewRows; }

  const uint8_t* Data(int64_t row, int64_t k0) const {
    return m.data + row * m.RowBytes() + k0 / 2;
  }
  const uint8_t* Scales(int64_t row, int64_t k0) const {
    return static_cast<const uint8_t*>(m.scale) + row * ScaleCols() + k0 / 32;
  }
  int64_t ScaleCols() const { return m.k / 32; }  // No division by a variable.
  struct Rows {
    const Mxfp4Weights* of = nullptr;
    int64_t n = 0;
    const uint8_t* data = nullptr;
    const uint8_t* scale = nullptr;
    uint64_t k = 0;  // Unsigned: a signed division by two takes four instructions.
    int64_t whole = 0;

    MLA_INLINE void Ask(int64_t j, int64_t from) const {
      AskFor(At(data, 2, j, from), kMatrixColumns / 2);
    }
    MLA_INLINE void AskScales(int64_t count, int64_t from) const {
      AskFor(At(scale, 32, count, from * count), kMatrixColumns / 32 * count);
    }
    int64_t Whole() const { return whole; }
    MLA_INLINE void FillWhole(int64_t j, int64_t from, const Mxfp4Constants& constants,
                              bf16* dst) const {
      StoreGroup(Mxfp4Group(At(data, 2, j, from), At(scale, 32, j, from), constants), constants,
                 dst);
    }
    void Fill(int64_t j, int64_t from, bf16* dst) const {
      of->DecodeChunk(n + j, from, kMatrixColumns, dst);
    }
    // `columns`: of a byte of what begins at `first`.
    MLA_INLINE const uint8_t* At(const uint8_t* first, uint64_t columns, int64_t j,
                                 int64_t from) const {
      return first + static_cast<uint64_t>(j) * (k / columns) +
             static_cast<uint64_t>(from) / columns;
    }
  };
  WeightPlace PlaceOf(int64_t n) const {
    return {m.data + n * m.RowBytes(), m.RowBytes(), kAskColumns / 2};
  }
  Rows RowsAt(int64_t n, int64_t count) const {
    const uint8_t* scale = Scales(n, 0);
    const int64_t scales = count * ScaleCols();
    const int64_t whole = RegularScales(scale, scales) ? m.k / kMatrixColumns * kMatrixColumns : 0;
    return {this, n, Data(n, 0), scale, static_cast<uint64_t>(m.k), whole};
  }
  static MLA_INLINE void StoreGroup(const Mxfp4Group& group, const Mxfp4Constants& constants,
                                    bf16* to) {
    _mm512_storeu_si512(to, group.Vector<0>(constants));
    _mm512_storeu_si512(to + 32, group.Vector<1>(constants));
    _mm512_storeu_si512(to + 64, group.Vector<2>(constants));
    _mm512_storeu_si512(to + 96, group.Vector<3>(constants));
  }
  int64_t Left(int64_t k0, int64_t width) const { return Min(width, m.k - k0); }

  // `width` columns of a row in the order by nibble; zeros past the last one.
  void DecodeChunk(int64_t row, int64_t k0, int64_t width, bf16* dst) const {
    const uint8_t* data = Data(row, k0);
    const uint8_t* scale = Scales(row, k0);
    const int64_t left = Left(k0, width);
    if (!RegularScales(scale, left / 32)) {
      alignas(64) bf16 values[kChunk<bf16>];
      DecodeRow(m, row, k0, left, values);
      PackRow(values, left, width, Order::kByNibble, 1, dst);
      return;
    }
    const Mxfp4Constants constants;
    int64_t i = 0;
    for (; i + kNibbleColumns <= left; i += kNibbleColumns) {
      StoreGroup(Mxfp4Group(data + i / 2, scale + i / 32, constants), constants, dst + i);
    }
    if (i < left) {
      uint32_t four = 0;
      __builtin_memcpy(&four, scale + i / 32, static_cast<size_t>((left - i) / 32));
      const auto mask = static_cast<__mmask16>((1u << ((left - i) / 8)) - 1);
      StoreGroup(Mxfp4Group(_mm512_maskz_loadu_epi32(mask, data + i / 2), four, constants),
                 constants, dst + i);
    }
  }

  template <int M, int N>
  void Few(const bf16* x, int64_t n, int64_t last, int64_t k0, int64_t width, float* out) const {
    const uint8_t* data[N];
    const uint8_t* scale[N];
    const int64_t left = Left(k0, width);
    bool regular = true;
    for (int j = 0; j < N; ++j) {
      const int64_t row = Min(n + j, last);
      data[j] = Data(row, k0);
      scale[j] = Scales(row, k0);
      regular = RegularScales(scale[j], left / 32) && regular;
    }
    if (regular) {
      const Ahead<N> ahead(Data(n + kRowsAhead, 0), m.RowBytes(), k0 / 2, Mxfp4Group::kBytes,
                           WholeRows<C>(M, m.k));
      Mxfp4Tile<M, N>(x, data, scale, left / kNibbleColumns, left % kNibbleColumns / 32, ahead,
                      out);
      return;
    }
    alignas(64) bf16 values[N * kChunk<bf16>];
    const bf16* w[N];
    for (int j = 0; j < N; ++j) {
      w[j] = values + j * kChunk<bf16>;
      DecodeChunk(Min(n + j, last), k0, width, values + j * kChunk<bf16>);
    }
    PlainTile<M, N>(x, w, width, {}, out);
  }

  void Fill(int64_t n, int64_t count, int64_t k0, int64_t width, const Panel<bf16>& panel) const {
    for (int64_t j = 0; j < count; ++j) {
      DecodeChunk(n + j, k0, width, panel.Row(j));
    }
  }

  template <int M, int N>
  void FromPanel(const bf16* x, const Panel<bf16>& panel, int64_t j, int64_t last, int64_t, int64_t,
                 int64_t width, float* out) const {
    PanelTile<M, N>(x, panel, j, last, width, out);
  }
};

// --- Codes with scales of blocks ---

// out[i * N + n] = sum over blocks of scale[n][block] * (x[i] . w[n] inside the block), over the
// columns [k0, end), for M rows of a tile of `height`. get(n, k) gives the codes of row n for the
// 32 columns from k, zeros past the last one. Where a block ends inside such a step the others'
// codes are masked.
template <int M, int N, int height, typename Get>
MLA_INLINE void ScaledRows(const bf16* x, const RowScales* scales, int64_t block_k, int64_t k0,
                           int64_t end, const Get& get, float* out) {
  vf acc[kWholeSums<M * N>] = {};
  int64_t block = k0 / block_k;
  for (int64_t from = k0; from < end; ++block) {
    const int64_t to = Min(end, (block + 1) * block_k);
    vf part[M * N] = {};
    for (int64_t i = from / 32 * 32; i < to; i += 32) {
      __m512i b[N];
      MLA_UNROLL
      for (int n = 0; n < N; ++n) b[n] = get(n, i);
      if (i < from || i + 32 > to) {
        const uint64_t below = (uint64_t{1} << Min(32, to - i)) - 1;
        const uint64_t above = ~((uint64_t{1} << Max64(0, from - i)) - 1);
        MLA_UNROLL
        for (int n = 0; n < N; ++n) {
          b[n] = _mm512_maskz_mov_epi16(static_cast<__mmask32>(below & above), b[n]);
        }
      }
      MLA_UNROLL
      for (int m = 0; m < M; ++m) {
        const __m512i a = _mm512_loadu_si512(x + (i - k0) * height + m * 32);
        MLA_UNROLL
        for (int n = 0; n < N; ++n) part[m * N + n] = DotPairs(part[m * N + n], a, b[n]);
      }
    }
    MLA_UNROLL
    for (int n = 0; n < N; ++n) {
      const vf scale = Splat(scales[n][block]);
      MLA_UNROLL
      for (int m = 0; m < M; ++m) acc[m * N + n] = MulAdd(part[m * N + n], scale, acc[m * N + n]);
    }
    from = to;
  }
  LaneSums<kWholeSums<M * N>>(acc, out);
}

// With a block's sums beside the accumulators, a tile of eight rows takes two turns.
template <int M, int N, typename Get>
MLA_INLINE void ScaledTile(const bf16* x, const RowScales* scales, int64_t block_k, int64_t k0,
                           int64_t end, const Get& get, float* out) {
  constexpr int kRows = M == 8 ? 4 : M;
  for (int m = 0; m < M; m += kRows) {
    ScaledRows<kRows, N, M>(x + m * 32, scales, block_k, k0, end, get, out + m * N);
  }
}

template <Code code>
struct CodeWeights {
  using C = bf16;
  using Constants = NoConstants;
  const QuantizedMatrix& m;

  static constexpr bool kScaled = true;
  static constexpr bool kOwnLanePanels = false;
  // The columns of a pair, or of a step of tiles, have one scale.
  static bool TakesLanes(const QuantizedMatrix& m) {
    return m.block_k % (kMatrixTiles<bf16> ? 32 : 2) == 0 || m.block_k >= m.k;
  }
  void ReadScales(int64_t n, int64_t count, int64_t k, float* scale) const {
    const int64_t block = k / m.block_k, cols = m.ScaleCols();
    const bool f32 = m.scale_type == DType::kF32;
    int64_t left = m.block_n - n % m.block_n;
    for (int64_t j = 0, at = n / m.block_n * cols + block; j < count; ++j) {
      scale[j] = f32 ? static_cast<const float*>(m.scale)[at]
                     : ToFloat(static_cast<const bf16*>(m.scale)[at]);
      if (--left == 0) {
        left = m.block_n;
        at += cols;
      }
    }
  }
  int64_t ScaleEnd(int64_t k) const {
    const int64_t end = (k / m.block_k + 1) * m.block_k;
    return end < m.k ? end : INT64_MAX;
  }

  static constexpr int FewCols(int height) { return height <= 2 ? 4 : 2; }
  static constexpr int ManyCols() { return 2; }
  bool UsesPanel(int64_t rows) const { return rows > 4; }

  static int64_t Bytes(int64_t columns) {
    return code == Code::kInt4 ? (columns + 1) / 2 : columns;
  }
  struct Rows {
    const CodeWeights* of = nullptr;
    int64_t n = 0;
    const uint8_t* data = nullptr;
    int64_t pitch = 0, k = 0;

    MLA_INLINE void Ask(int64_t j, int64_t from) const {
      AskFor(data + j * pitch + Bytes(from), Bytes(kMatrixColumns));
    }
    MLA_INLINE void AskScales(int64_t, int64_t) const {}  // A few, or one a row.
    int64_t Whole() const { return k / kMatrixColumns * kMatrixColumns; }
    MLA_INLINE void FillWhole(int64_t j, int64_t from, NoConstants, bf16* dst) const {
      const uint8_t* src = data + j * pitch + Bytes(from);
      if constexpr (code == Code::kInt4) {
        LookupRow(src, kMatrixColumns, kInt4Values, dst);
      } else {
        using F8 = std::conditional_t<code == Code::kE4M3, f8e4m3fn, f8e4m3fnuz>;
        DecodeF8Row(reinterpret_cast<const F8*>(src), kMatrixColumns, dst);
      }
    }
    void Fill(int64_t j, int64_t from, bf16* dst) const {
      of->Fill(n + j, 1, from, kMatrixColumns, {dst, kMatrixColumns});
    }
  };
  WeightPlace PlaceOf(int64_t n) const {
    return {m.data + n * m.RowBytes(), m.RowBytes(), Bytes(kAskColumns)};
  }
  Rows RowsAt(int64_t n, int64_t) const {
    return {this, n, m.data + n * m.RowBytes(), m.RowBytes(), m.k};
  }
  int64_t End(int64_t k0, int64_t width) const { return Min(m.k, k0 + width); }

  template <int M, int N>
  inline __attribute__((noinline)) void Few(const bf16* x, int64_t n, int64_t last, int64_t k0,
                                            int64_t width, float* out) const {
    const __m512i table = Table16(kInt4Values);
    const uint8_t* data[N];
    RowScales scales[N];
    for (int j = 0; j < N; ++j) {
      data[j] = m.data + Min(n + j, last) * m.RowBytes();
      scales[j] = RowScales(m, Min(n + j, last));
    }
    const int64_t ahead = kRowsAhead * m.RowBytes();
    const auto get = [&](int j, int64_t i) __attribute__((always_inline)) {
      const uint8_t* src = data[j] + Bytes(i);
      alignas(64) uint8_t rest[32];
      if (m.k - i < 32) {
        // Zero bytes are zero codes of e4m3, and x is zero there for int4.
        __builtin_memset(rest, 0, sizeof(rest));
        __builtin_memcpy(rest, src, static_cast<size_t>(Bytes(m.k - i)));
        src = rest;
      } else {
        __builtin_prefetch(src + ahead);
      }
      if constexpr (code == Code::kInt4) {
        return Lookup32(src, table);
      } else {
        using F8 = std::conditional_t<code == Code::kE4M3, f8e4m3fn, f8e4m3fnuz>;
        return DecodeF8x32<F8>(src);
      }
    };
    ScaledTile<M, N>(x, scales, m.block_k, k0, End(k0, width), get, out);
  }

  void Fill(int64_t n, int64_t count, int64_t k0, int64_t width, const Panel<bf16>& panel) const {
    FillPanel(m, n, count, k0, width, panel);
  }

  template <int M, int N>
  inline __attribute__((noinline)) void FromPanel(const bf16* x, const Panel<bf16>& panel,
                                                  int64_t j, int64_t last, int64_t n0, int64_t k0,
                                                  int64_t width, float* out) const {
    const bf16* w[N];
    RowScales scales[N];
    for (int i = 0; i < N; ++i) {
      w[i] = panel.Row(Min(j + i, last));
      scales[i] = RowScales(m, n0 + Min(j + i, last));
    }
    const auto get = [&](int i, int64_t k) __attribute__((always_inline)) {
      return _mm512_loadu_si512(w[i] + (k - k0));
    };
    ScaledTile<M, N>(x, scales, m.block_k, k0, End(k0, width), get, out);
  }
};
#endif

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_QUANTIZED_PRODUCT_H_
