// Products with MXFP4 weights in the vnni layout on the tiles of matrix_tile.h.
//
// Decoded, 16 rows of 32 weights are what a tile of AMX takes as its pairs; activations are the
// rows of the other tile, as many as there are. A sum is one chain over the columns, and so a row's
// result does not depend on how many rows came with it.
#ifndef MLA_COMMON_VNNI_PRODUCT_H_
#define MLA_COMMON_VNNI_PRODUCT_H_

#include "common/quantized_product.h"
#include "common/vnni_weights.h"

namespace mla {
namespace MLA_ISA {
#if defined(__AMX_BF16__)

// Tiles of activations that meet a weight tile together, and weight tiles at a time.
constexpr int64_t kVnniTogether = 3;
constexpr int VnniTiles(int together) { return together == 1 ? kRowTileCols / kVnniRows : 2; }

// Decodes blocks into pairs: (16 pairs of columns, 16 rows, 2).
struct VnniDecoder {
  Mxfp4Constants constants;
  __m512i spread;

  MLA_INLINE VnniDecoder() {
    // Bytes 4 n and 4 n + 2 of a vector from byte n.
    const __m512i each = _mm512_maskz_cvtepu8_epi32(
        0xffff, _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    spread = _mm512_or_si512(each, _mm512_maskz_slli_epi32(0xffff, each, 16));
    __asm__("" : "+v"(spread));
  }

  // Of scales that integer arithmetic may move.
  MLA_INLINE void Block(const uint8_t* codes, const uint8_t* scales, bf16* to) const {
    const __m512i sixteen = _mm512_maskz_broadcast_i32x4(
        0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
    const __m512i exponents = _mm512_maskz_permutexvar_epi8(0x5555555555555555, spread, sixteen);
    Mxfp4Group group;
    group.bias = _mm512_sub_epi16(constants.bias, _mm512_slli_epi16(exponents, 7));
    MLA_UNROLL
    for (int q = 0; q < 4; ++q) {
      group.codes = _mm512_loadu_si512(codes + q * 64);
      Mxfp4Weights::StoreGroup(group, constants, to + q * 128);
    }
  }
};

// Rows of activations times weight rows from n0 on, `cols` of them; sink as that of Product.
template <typename Sink>
struct VnniProducts {
  const PackedRows<bf16>& x;
  const VnniWeights& w;
  const int64_t n0, cols;
  const Sink& sink;

  using Tile = PackedRows<bf16>::Tile;
  static const bf16* Columns(const Tile& rows, int64_t block) {
    return rows.data + block * rows.height * kVnniColumns;
  }

  // V tiles of rows from `row_tile` on with all weight tiles, a few of those at a time: their sums
  // stay in the tiles while the next block is decoded beside the products. So decoding is hidden
  // and sums need not move; panels decoded once for all rows took longer.
  template <int V>
  void RowTiles(int64_t row_tile) const {
    constexpr int G = VnniTiles(V);
    alignas(64) bf16 buffers[2][G][kVnniElements];
    alignas(64) float out[kTileSide * kVnniRows];
    const VnniDecoder decoder;
    Tile rows[V];
    for (int v = 0; v < V; ++v) rows[v] = x.At(row_tile + v);
    const TileScope scope = TileScope::OfRows(rows[0].height);
    const int64_t tile0 = n0 / kVnniRows, end = tile0 + CeilDiv(cols, kVnniRows);
    const int64_t blocks = w.Blocks();
    for (int64_t t = tile0; t < end; t += G) {
      const uint8_t* codes[G];
      const uint8_t* scales[G];
      bool regular = true;
      for (int g = 0; g < G; ++g) {
        // The last one again, which is not handed on, where there are fewer.
        codes[g] = w.Codes(Min(t + g, end - 1));
        scales[g] = w.Scales(Min(t + g, end - 1));
        regular = RegularScales(scales[g], blocks * kVnniRows) && regular;
      }
      ZeroTiles<V * G>();
      for (int64_t b = 0; b <= blocks; ++b) {
        const int64_t ahead = VnniAhead(b, blocks, G, t + 2 * G <= end);
        if (b > 0 && V < 3) {
          ForEachOf<V>([&](auto v) {
            constexpr int kV = decltype(v)::value;
            TileLoad<7 - kV>(Columns(rows[kV], b - 1), kVnniColumns * 2);
          });
        }
        ForEachOf<G>([&](auto index) {
          constexpr int g = decltype(index)::value;
          if (b > 0) Multiply<V, g>(rows, b - 1, buffers[(b - 1) % 2][g]);
          if (b == blocks) return;
          const uint8_t* block = codes[g] + b * kVnniBytes;
          const uint8_t* scale = scales[g] + b * kVnniRows;
          AskFor(block + ahead * kVnniBytes, kVnniBytes);
          __builtin_prefetch(scale + G * blocks * kVnniRows);
          if (regular) {
            decoder.Block(block, scale, buffers[b % 2][g]);
          } else {
            DecodeVnniBlock(block, scale, buffers[b % 2][g]);
          }
        });
      }
      ForEachOf<V * G>([&](auto index) {
        constexpr int i = decltype(index)::value;
        const int64_t n = (t + i % G - tile0) * kVnniRows;
        if (n >= cols) return;
        TileStore<i>(out, kVnniRows * 4);
        const Tile& tile = rows[i / G];
        sink(tile.row0, tile.rows, n, static_cast<int>(Min(kVnniRows, cols - n)), out,
             static_cast<int>(kVnniRows));
      });
    }
  }

  // Adds one block of weight tile g. Sums take the first tiles, weights the sixth, or two if two
  // tiles of rows are held in the last ones.
  template <int V, int g>
  static MLA_INLINE void Multiply(const Tile (&rows)[V], int64_t block, const bf16* weights) {
    constexpr int kWeights = V == 2 ? 4 + g : 6;
    TileLoad<kWeights>(weights, 64);
    ForEachOf<V>([&](auto v) {
      constexpr int kV = decltype(v)::value;
      constexpr int kRows = V == 2 ? 7 - kV : 7;
      if constexpr (V > 2) TileLoad<7>(Columns(rows[kV], block), kVnniColumns * 2);
      TileProduct<kV * VnniTiles(V) + g, kRows, kWeights>();
    });
  }

  // Tiles [tile0, tile0 + tiles) of rows, in turns of about as many.
  void Run(int64_t tile0, int64_t tiles) const {
    const int64_t turns = CeilDiv(tiles, kVnniTogether);
    for (int64_t i = 0; i < turns; ++i) {
      const int64_t from = tiles * i / turns, count = tiles * (i + 1) / turns - from;
      WithVectors<kVnniTogether>(count * kTileSide, [&](auto vectors) {
        RowTiles<decltype(vectors)::value>(tile0 + from);
      });
    }
  }
};

// n0 is the first row of a weight tile.
template <typename Sink>
inline void Product(const PackedRows<bf16>& x, int64_t tile0, int64_t tiles, const VnniWeights& w,
                    int64_t n0, int64_t cols, const Sink& sink) {
  VnniProducts<Sink>{x, w, n0, cols, sink}.Run(tile0, tiles);
}

#endif  // __AMX_BF16__
}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_VNNI_PRODUCT_H_
