// All dot products between rows of activations and rows of a quantised matrix.
//
// A panel of weight rows is decoded next to the core and used for all rows of x; a few rows of x
// take the codes straight into registers instead. f32 activations meet values rounded to f32;
// bf16 ones meet exact bf16 (MXFP4 values, or codes whose scale multiplies each block's f32 sum).
// The ways of one element type add the same terms in the same order: the result of a row does not
// depend on how many rows came with it.
#ifndef MLA_COMMON_QUANTIZED_DOT_H_
#define MLA_COMMON_QUANTIZED_DOT_H_

#include "common/dot_block.h"
#include "common/quantized_decode.h"
#include "common/scratch.h"

namespace mla {
namespace MLA_ISA {

// Decoded weight rows should stay in the second-level cache.
constexpr int64_t kPanelBytes = 256 * 1024;
constexpr int64_t kMaxPanelRows = 64;

// Tile of products with codes. With an accumulator and a block's sum for every output, half as
// many fit as in DotTile.
constexpr int kScaledM = kTileM;
constexpr int kScaledN = kTileN / 2;

// out[m * N + n] = sum over blocks of scale[n][block] * (x[m] . w[n] inside the block)
template <int M, int N, typename X>
inline __attribute__((noinline)) void ScaledTile(const X* const* x, const bf16* const* w,
                                                 const float* const* scale, int64_t k,
                                                 int64_t block, float* out) {
  vf acc[M * N] = {};
  int64_t g = 0;
  for (int64_t k0 = 0; k0 < k; k0 += block, ++g) {
    vf part[M * N] = {};
    const X* xs[M];
    const bf16* ws[N];
    MLA_UNROLL
    for (int m = 0; m < M; ++m) xs[m] = x[m] + k0;
    MLA_UNROLL
    for (int n = 0; n < N; ++n) ws[n] = w[n] + k0;
    DotAccumulate<M, N>(xs, ws, Min(block, k - k0), part);
    MLA_UNROLL
    for (int i = 0; i < M * N; ++i) acc[i] += part[i] * scale[i % N][g];
  }
  for (int i = 0; i < M * N; ++i) out[i] = LaneSum(acc[i]);
}

#if defined(__AVX512BF16__)
// Rows of x from which on a panel is decoded.
constexpr int64_t kPanelFrom = 5;

MLA_INLINE vf DotPairs(vf acc, __m512i a, __m512i b) { return DotStep<bf16, bf16>::Add(acc, a, b); }

// Decodes in registers: MXFP4, k a multiple of 32.
template <int M, int N>
inline __attribute__((noinline)) void Mxfp4Tile(const bf16* const* x, const QuantizedMatrix& m,
                                                const int64_t* row, float* out) {
  vf acc[M * N] = {};
  const Mxfp4Row* table = Mxfp4Table();
  const uint8_t* data[N];
  const uint8_t* scale[N];
  for (int n = 0; n < N; ++n) {
    data[n] = m.data + row[n] * m.RowBytes();
    scale[n] = static_cast<const uint8_t*>(m.scale) + row[n] * m.ScaleCols();
  }
  for (int64_t g = 0; g < m.k / 32; ++g) {
    __m512i a[M];
    MLA_UNROLL
    for (int i = 0; i < M; ++i) a[i] = _mm512_loadu_si512(x[i] + g * 32);
    MLA_UNROLL
    for (int n = 0; n < N; ++n) {
      const __m512i b = Lookup32(data[n] + g * 16, Table16(table[scale[n][g]]));
      MLA_UNROLL
      for (int i = 0; i < M; ++i) acc[i * N + n] = DotPairs(acc[i * N + n], a[i], b);
    }
  }
  LaneSums<M * N>(acc, out);
}

// Decodes in registers: codes with f32 scales, block a multiple of 32 or all of k.
template <int M, int N, Code code>
inline __attribute__((noinline)) void CodesTile(const bf16* const* x, const QuantizedMatrix& m,
                                                const int64_t* row, float* out) {
  vf acc[M * N] = {};
  const __m512i table = Table16(kInt4Values);
  const uint8_t* data[N];
  RowScales scales[N];
  for (int n = 0; n < N; ++n) {
    data[n] = m.data + row[n] * m.RowBytes();
    scales[n] = RowScales(m, row[n]);
  }
  int64_t block = 0;
  for (int64_t k0 = 0; k0 < m.k; k0 += m.block_k, ++block) {
    vf part[M * N] = {};
    const int64_t end = Min(m.k, k0 + m.block_k);
    for (int64_t i = k0; i < end; i += 32) {
      const int64_t left = end - i;
      __m512i a[M];
      MLA_UNROLL
      for (int j = 0; j < M; ++j) {
        a[j] = left >= 32 ? _mm512_loadu_si512(x[j] + i)
                          : DotStep<bf16, bf16>::GetPart(x[j] + i, left);
      }
      MLA_UNROLL
      for (int n = 0; n < N; ++n) {
        uint8_t rest[32];
        const uint8_t* src = data[n] + (code == Code::kInt4 ? i / 2 : i);
        if (left < 32) {
          // Zero bytes are zero codes of e4m3, and x is zero there for int4.
          const int64_t bytes = code == Code::kInt4 ? (left + 1) / 2 : left;
          __builtin_memset(rest, 0, sizeof(rest));
          __builtin_memcpy(rest, src, static_cast<size_t>(bytes));
          src = rest;
        }
        const __m512i b = code == Code::kInt4 ? Lookup32(src, table) : DecodeF8x32(src);
        MLA_UNROLL
        for (int j = 0; j < M; ++j) part[j * N + n] = DotPairs(part[j * N + n], a[j], b);
      }
    }
    MLA_UNROLL
    for (int n = 0; n < N; ++n) {
      const float scale = scales[n][block];
      MLA_UNROLL
      for (int j = 0; j < M; ++j) acc[j * N + n] += part[j * N + n] * scale;
    }
  }
  for (int i = 0; i < M * N; ++i) out[i] = LaneSum(acc[i]);
}

template <int M, typename Sink>
inline void FewRows(const bf16* const* x, int64_t rows, const QuantizedMatrix& m, int64_t n0,
                    int64_t cols, const Sink& sink) {
  constexpr int kN = M == 1 ? 4 : 2;
  constexpr int kWide = 4;
  alignas(64) float tile[M * kWide];
  const bf16* xs[M];
  for (int i = 0; i < M; ++i) xs[i] = x[Min(i, rows - 1)];
  const int step = m.code == Code::kE2M1 ? kWide : kN;
  for (int64_t n = 0; n < cols; n += step) {
    int64_t row[kWide];
    for (int j = 0; j < kWide; ++j) row[j] = n0 + Min(n + j, cols - 1);
    if (m.code == Code::kE2M1) {
      Mxfp4Tile<M, kWide>(xs, m, row, tile);
    } else if (m.code == Code::kE4M3) {
      CodesTile<M, kN, Code::kE4M3>(xs, m, row, tile);
    } else {
      CodesTile<M, kN, Code::kInt4>(xs, m, row, tile);
    }
    sink(int64_t{0}, static_cast<int>(rows), n, static_cast<int>(Min(cols - n, step)), tile, step);
  }
}

inline bool TakesFewRows(const QuantizedMatrix& m) {
  return (m.code == Code::kE2M1 && m.block_k == 32 && m.k % 32 == 0) ||
         (m.code != Code::kE2M1 && (m.block_k % 32 == 0 || m.block_k >= m.k));
}
#endif

// As DotBlock, for rows [n0, n0 + cols) of m: calls sink(m0, mv, n, nv, tile, ld) with n counted
// from n0. Uses the scratch of a task and of packing.
template <typename Sink>
inline void QuantizedDotBlock(const float* const* x, int64_t rows, const QuantizedMatrix& m,
                              int64_t n0, int64_t cols, const Sink& sink) {
  const int64_t panel = Clamp(kPanelBytes / Max64(1, m.k * 4) / 4 * 4, 4, kMaxPanelRows);
  Carver size(nullptr);
  size.Take<bf16>(m.k);
  size.Take<float>(panel * m.k);
  Carver carver(Scratch(kPanelScratch, size.used()));
  bf16* work = carver.Take<bf16>(m.k);
  float* values = carver.Take<float>(panel * m.k);
  for (int64_t p0 = 0; p0 < cols; p0 += panel) {
    const int64_t count = Min(panel, cols - p0);
    const float* w[kMaxPanelRows];
    for (int64_t j = 0; j < count; ++j) {
      DecodeRow(m, n0 + p0 + j, work, values + j * m.k);
      w[j] = values + j * m.k;
    }
    DotBlock(x, rows, w, count, m.k,
             [&](int64_t m0, int mv, int64_t n, int nv, const float* tile, int ld) {
               sink(m0, mv, p0 + n, nv, tile, ld);
             });
  }
}

template <typename Sink>
inline void QuantizedDotBlock(const bf16* const* x, int64_t rows, const QuantizedMatrix& m,
                              int64_t n0, int64_t cols, const Sink& sink) {
#if defined(__AVX512BF16__)
  if (rows < kPanelFrom && TakesFewRows(m)) {
    if (rows == 1) {
      FewRows<1>(x, rows, m, n0, cols, sink);
    } else {
      FewRows<kTileM>(x, rows, m, n0, cols, sink);
    }
    return;
  }
#endif
  const bool scaled = m.code != Code::kE2M1;
  const int64_t blocks = m.ScaleCols();
  const int64_t panel = Clamp(kPanelBytes / Max64(1, m.k * 2) / 4 * 4, 4, kMaxPanelRows);
  Carver size(nullptr);
  size.Take<bf16>(panel * m.k);
  size.Take<float>(scaled ? panel * blocks : 0);
  Carver carver(Scratch(kPanelScratch, size.used()));
  bf16* values = carver.Take<bf16>(panel * m.k);
  float* scales = carver.Take<float>(scaled ? panel * blocks : 0);
  for (int64_t p0 = 0; p0 < cols; p0 += panel) {
    const int64_t count = Min(panel, cols - p0);
    const bf16* w[kMaxPanelRows];
    const float* s[kMaxPanelRows];
    for (int64_t j = 0; j < count; ++j) {
      DecodeRow(m, n0 + p0 + j, values + j * m.k);
      w[j] = values + j * m.k;
      s[j] = scales + j * blocks;
      const RowScales from(m, n0 + p0 + j);
      for (int64_t g = 0; scaled && g < blocks; ++g) scales[j * blocks + g] = from[g];
    }
    if (!scaled) {
      DotBlock(x, rows, w, count, m.k,
               [&](int64_t m0, int mv, int64_t n, int nv, const float* tile, int ld) {
                 sink(m0, mv, p0 + n, nv, tile, ld);
               });
      continue;
    }
    alignas(64) float tile[kScaledM * kScaledN];
    for (int64_t n = 0; n < count; n += kScaledN) {
      const bf16* ws[kScaledN];
      const float* ss[kScaledN];
      for (int j = 0; j < kScaledN; ++j) {
        ws[j] = w[Min(n + j, count - 1)];
        ss[j] = s[Min(n + j, count - 1)];
      }
      for (int64_t i = 0; i < rows; i += kScaledM) {
        const bf16* xs[kScaledM];
        for (int j = 0; j < kScaledM; ++j) xs[j] = x[Min(i + j, rows - 1)];
        ScaledTile<kScaledM, kScaledN>(xs, ws, ss, m.k, m.block_k, tile);
        sink(i, static_cast<int>(Min(rows - i, kScaledM)), p0 + n,
             static_cast<int>(Min(count - n, kScaledN)), tile, kScaledN);
      }
    }
  }
}

}  // namespace MLA_ISA
}  // namespace mla

#endif  // MLA_COMMON_QUANTIZED_DOT_H_
