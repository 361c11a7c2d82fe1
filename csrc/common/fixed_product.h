// Products of whole numbers (fixed_rows.h) with MXFP4 weights in the vnni layout: a lane of a
// vector is a weight row, four of its columns meet four bytes of a row of activations.
//
// Inside a block of 32 columns sums are exact; the blocks of a row are added in order, in f32. So a
// row's result does not depend on how many rows came with it.
#ifndef MLA_COMMON_FIXED_PRODUCT_H_
#define MLA_COMMON_FIXED_PRODUCT_H_

#include "common/packed_rows.h"
#include "common/panel.h"
#include "common/vnni_weights.h"

namespace mla {
namespace MLA_ISA {
#if defined(__AVX512VNNI__) && !defined(__AVX512BF16__)

// Weight tiles at a time: a vector of activations is loaded once for both.
constexpr int kFixedTiles = 2;
// Rows of activations at a time, and the blocks of a panel: of twice as many rows or more, weights
// stay decoded in the first-level cache beside the rows' blocks.
constexpr int64_t kFixedTogether = 8;
constexpr int64_t kFixedPanel = 8;

// Vectors of a block of decoded weights, each of four columns.
constexpr int kFixedVectors = kFixedColumns / 4;
using FixedWeights = __m512i[kFixedVectors];

struct FixedDecoder {
  __m512i values, nibble;

  MLA_INLINE FixedDecoder() {
    const __m128i sixteen =
        _mm_setr_epi8(kWeightOffset, kWeightOffset + 1, kWeightOffset + 2, kWeightOffset + 3,
                      kWeightOffset + 4, kWeightOffset + 6, kWeightOffset + 8, kWeightOffset + 12,
                      kWeightOffset, kWeightOffset - 1, kWeightOffset - 2, kWeightOffset - 3,
                      kWeightOffset - 4, kWeightOffset - 6, kWeightOffset - 8, kWeightOffset - 12);
    values = Held(_mm512_maskz_broadcast_i32x4(0xffff, sixteen));
    nibble = Held(_mm512_set1_epi8(15));
  }
  MLA_INLINE void Block(const uint8_t* codes, FixedWeights& to) const {
    MLA_UNROLL
    for (int q = 0; q < kFixedVectors / 2; ++q) {
      const __m512i low = _mm512_loadu_si512(codes + q * 64);
      const __m512i high = _mm512_maskz_srli_epi16(~0u, low, 4);
      to[2 * q] = _mm512_maskz_shuffle_epi8(~uint64_t{0}, values, _mm512_and_si512(low, nibble));
      to[2 * q + 1] =
          _mm512_maskz_shuffle_epi8(~uint64_t{0}, values, _mm512_and_si512(high, nibble));
    }
  }
};

MLA_INLINE vf ScalesOfBlock(const uint8_t* scales) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales));
  return (vf)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu8_epi32(0xffff, bytes), 23);
}

// Four of the bytes, in every lane.
MLA_INLINE __m512i Four(const int8_t* digits) {
  int32_t four;
  __builtin_memcpy(&four, digits, sizeof(four));
  return Held(_mm512_set1_epi32(four));
}

// Adds the products of one block of R rows, which `x` begins, with the weight tiles to their sums:
// of tile g and row r (16) from sums + (g * kRowTile + r) * 16 on.
template <int R>
MLA_INLINE void AddBlock(const FixedBlock* x, const FixedWeights* w, const uint8_t* const* scales,
                         float* sums) {
  constexpr int G = kFixedTiles;
  // Digits apart, so that products need not wait for each other; else one sum is moved a digit up
  // before the next, which overflows on the way, but not in the end.
  constexpr bool kApart = R <= 2;
  constexpr int kSums = kApart ? kDigits : 1;
  __m512i sum[kSums][R * G];
  MLA_UNROLL
  for (int i = 0; i < kSums; ++i) {
    MLA_UNROLL
    for (int j = 0; j < R * G; ++j) sum[i][j] = _mm512_setzero_si512();
  }
  MLA_UNROLL
  for (int digit = 0; digit < kDigits; ++digit) {
    __m512i* here = sum[kApart ? digit : 0];
    if (!kApart && digit > 0) {
      MLA_UNROLL
      for (int j = 0; j < R * G; ++j) here[j] = _mm512_maskz_slli_epi32(0xffff, here[j], 8);
    }
    MLA_UNROLL
    for (int i = 0; i < kFixedVectors; ++i) {
      MLA_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m512i a = Four(x[r].digits[digit] + 4 * i);
        MLA_UNROLL
        for (int g = 0; g < G; ++g) {
          here[r * G + g] = _mm512_dpbusd_epi32(here[r * G + g], w[g][i], a);
        }
      }
    }
  }
  MLA_UNROLL
  for (int g = 0; g < G; ++g) {
    const vf scale = ScalesOfBlock(scales[g]);
    MLA_UNROLL
    for (int r = 0; r < R; ++r) {
      vu all = (vu)sum[0][r * G + g];
      MLA_UNROLL
      for (int i = 1; i < kSums; ++i) all = (all << 8) + (vu)sum[i][r * G + g];
      all += static_cast<uint32_t>(x[r].offset);
      float* to = sums + (g * PackedRows<float>::kRowTile + r) * kLanes;
      const vf value = __builtin_convertvector((vi)all, vf) * x[r].unit;
      Store(to, MulAdd(value, scale, Load(to)));
    }
  }
}

// Weight tiles that are multiplied together; the last one twice where there is no other.
struct FixedTiles {
  const uint8_t* codes[kFixedTiles];
  const uint8_t* scales[kFixedTiles];
  bool regular[kFixedTiles];
  bool another;  // Whether as many follow.
};

// All of `blocks` blocks of a tile of R rows, straight from the codes.
template <int R>
inline __attribute__((noinline)) void FewRows(const FixedBlock* x, int64_t blocks,
                                              const FixedTiles& tiles, float* sums) {
  const FixedDecoder decoder;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t ahead = VnniAhead(b, blocks, kFixedTiles, tiles.another);
    FixedWeights weights[kFixedTiles];
    const uint8_t* scales[kFixedTiles];
    MLA_UNROLL
    for (int g = 0; g < kFixedTiles; ++g) {
      const uint8_t* codes = tiles.codes[g] + b * kVnniBytes;
      scales[g] = tiles.scales[g] + b * kVnniRows;
      AskFor(codes + ahead * kVnniBytes, kVnniBytes);
      __builtin_prefetch(scales[g] + kFixedTiles * blocks * kVnniRows);
      decoder.Block(codes, weights[g]);
    }
    AddBlock<R>(x + b * R, weights, scales, sums);
  }
}

// Decoded weights of some blocks.
using FixedPanelWeights = FixedWeights[kFixedPanel][kFixedTiles];

// R rows of a tile of `height` with blocks [b0, b0 + count), the first of which x begins.
template <int R>
inline __attribute__((noinline)) void ManyRows(const FixedBlock* x, int64_t height,
                                               const FixedPanelWeights& panel,
                                               const FixedTiles& tiles, int64_t b0, int64_t count,
                                               float* sums) {
  for (int64_t b = 0; b < count; ++b) {
    const uint8_t* scales[kFixedTiles];
    for (int g = 0; g < kFixedTiles; ++g) scales[g] = tiles.scales[g] + (b0 + b) * kVnniRows;
    AddBlock<R>(x + b * height, panel[b], scales, sums);
  }
}

// Calls f(Constant<rows>()), for up to kFixedTogether.
template <typename F>
MLA_INLINE void WithRows(int64_t rows, const F& f) {
  ForEachOf<kFixedTogether>([&](auto index) {
    constexpr int kRows = decltype(index)::value + 1;
    if (rows == kRows) f(Constant<kRows>());
  });
}

// Rows of activations times weight rows from n0 on, `cols` of them; sink as that of Product.
template <typename Sink>
struct FixedProducts {
  const PackedRows<float>& x;
  const VnniWeights& w;
  const int64_t n0, cols;
  const Sink& sink;

  static constexpr int G = kFixedTiles;
  static constexpr int64_t kHeight = PackedRows<float>::kRowTile;
  static constexpr int64_t kSums = G * kHeight * kVnniRows;  // Of a tile of rows.
  using Tile = PackedRows<float>::Tile;

  static const FixedBlock* Blocks(const Tile& rows, int64_t block) {
    return reinterpret_cast<const FixedBlock*>(rows.data) + block * rows.height;
  }

  FixedTiles At(int64_t t, int64_t end) const {
    FixedTiles tiles;
    for (int g = 0; g < G; ++g) {
      tiles.codes[g] = w.Codes(Min(t + g, end - 1));
      tiles.scales[g] = w.Scales(Min(t + g, end - 1));
      tiles.regular[g] = RegularScales(tiles.scales[g], w.Blocks() * kVnniRows);
    }
    tiles.another = t + 2 * G <= end;
    return tiles;
  }

  // `count` tiles of rows by way of panels.
  void Panels(int64_t tile0, int64_t count, const FixedTiles& tiles, float* sums) const {
    const FixedDecoder decoder;
    FixedPanelWeights panel;
    for (int64_t b0 = 0; b0 < w.Blocks(); b0 += kFixedPanel) {
      const int64_t blocks = Min(kFixedPanel, w.Blocks() - b0);
      for (int64_t b = 0; b < blocks; ++b) {
        for (int g = 0; g < G; ++g) {
          decoder.Block(tiles.codes[g] + (b0 + b) * kVnniBytes, panel[b][g]);
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        const Tile rows = x.At(tile0 + i);
        const int64_t turns = CeilDiv(rows.rows, kFixedTogether);
        for (int64_t turn = 0; turn < turns; ++turn) {
          const int64_t row = rows.rows * turn / turns, next = rows.rows * (turn + 1) / turns;
          WithRows(next - row, [&](auto height) {
            ManyRows<decltype(height)::value>(Blocks(rows, b0) + row, rows.height, panel, tiles, b0,
                                              blocks, sums + i * kSums + row * kLanes);
          });
        }
      }
    }
  }

  // Row `row` of a tile with one weight tile, of whatever values: by f32, column by column.
  __attribute__((noinline)) void Slowly(const Tile& rows, int64_t row, const uint8_t* codes,
                                        const uint8_t* scales, bool regular, float* sums) const {
    alignas(64) float columns[kFixedColumns];
    vf sum = {};
    for (int64_t b = 0; b < w.Blocks(); ++b, codes += kVnniBytes, scales += kVnniRows) {
      ToFloats(Blocks(rows, b)[row], columns);
      sum = regular ? AddColumns(columns, codes, scales, sum)
                    : AddAnyColumns(columns, codes, scales, sum);
    }
    Store(sums, sum);
  }
  static MLA_INLINE vf AddColumns(const float* columns, const uint8_t* codes, const uint8_t* scales,
                                  vf sum) {
    const vf scale = ScalesOfBlock(scales);
    const __m512 values = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f,  //
                                         -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
    for (int q = 0; q < kVnniColumns / 8; ++q) {
      const __m512i words = _mm512_loadu_si512(codes + q * 64);
      ForEachOf<8>([&](auto index) __attribute__((always_inline)) {
        constexpr int i = decltype(index)::value;
        constexpr unsigned kShift = 16 * (i % 2) + 4 * (i / 2);
        const __m512i nibbles = _mm512_maskz_srli_epi32(0xffff, words, kShift);
        const vf weight = (vf)_mm512_maskz_permutexvar_ps(0xffff, nibbles, values) * scale;
        sum = MulAdd(Splat(columns[8 * q + i]), weight, sum);
      });
    }
    return sum;
  }
  static vf AddAnyColumns(const float* columns, const uint8_t* codes, const uint8_t* scales,
                          vf sum) {
    alignas(64) bf16 values[kVnniElements];
    DecodeVnniBlock(codes, scales, values);
    for (int i = 0; i < kVnniColumns; i += 2) {
      vu pairs;
      __builtin_memcpy(&pairs, values + i * kVnniRows, sizeof(pairs));
      sum = MulAdd(Splat(columns[i]), FromBits(pairs << 16), sum);
      sum = MulAdd(Splat(columns[i + 1]), FromBits(pairs & 0xffff0000u), sum);
    }
    return sum;
  }

  // Hands on the sums of a tile of rows.
  void HandOnTile(const Tile& rows, int64_t t, int64_t tile0, int64_t end, const FixedTiles& tiles,
                  float* sums) const {
    uint32_t raw = 0;
    for (int r = 0; w.Blocks() > 0 && r < rows.rows; ++r) {
      if (IsRaw(Blocks(rows, 0)[r])) raw |= 1u << r;
    }
    for (int g = 0; g < G && t + g < end; ++g) {
      float* out = sums + g * kHeight * kLanes;
      for (int r = 0; r < rows.rows; ++r) {
        if (tiles.regular[g] && (raw >> r & 1) == 0) continue;
        Slowly(rows, r, tiles.codes[g], tiles.scales[g], tiles.regular[g], out + r * kLanes);
      }
      const int64_t n = (t + g - tile0) * kVnniRows;
      sink(rows.row0, rows.rows, n, static_cast<int>(Min(kVnniRows, cols - n)), out, kLanes);
    }
  }

  // Tiles [row_tile, row_tile + count) of rows.
  void Run(int64_t row_tile, int64_t count) const {
    const int64_t tile0 = n0 / kVnniRows, end = tile0 + CeilDiv(cols, kVnniRows);
    auto* sums = static_cast<float*>(
        Scratch(kPanelScratch, count * kSums * static_cast<int64_t>(sizeof(float))));
    const Tile first = x.At(row_tile);
    const bool few = x.rows <= kFixedTogether;
    for (int64_t t = tile0; t < end; t += G) {
      const FixedTiles tiles = At(t, end);
      __builtin_memset(sums, 0, static_cast<size_t>(count * kSums) * sizeof(float));
      if (few) {
        WithRows(first.rows, [&](auto rows) {
          FewRows<decltype(rows)::value>(Blocks(first, 0), w.Blocks(), tiles, sums);
        });
      } else {
        Panels(row_tile, count, tiles, sums);
      }
      for (int64_t i = 0; i < count; ++i) {
        HandOnTile(x.At(row_tile + i), t, tile0, end, tiles, sums + i * kSums);
      }
    }
  }
};

// n0 is the first row of a weight tile.
template <typename Sink>
inline void Product(const PackedRows<float>& x, int64_t tile0, int64_t tiles, const VnniWeights& w,
                    int64_t n0, int64_t cols, const Sink& sink) {
  FixedProducts<Sink>{x, w, n0, cols, sink}.Run(tile0, tiles);
}

#endif
}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_FIXED_PRODUCT_H_
