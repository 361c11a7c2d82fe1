// The element formats of weights: how a lane's share of a step is read and decoded.
//
// A step is kStep values along the contraction, kOctets octets a lane: octet o of quarter q begins
// at KOf(o, q). It is read as kChunks chunks of 16 bytes, kPieces pieces each; piece p of a chunk
// begins PieceByte(chunk, p, q) bytes into the step and holds values from PieceK on.
#ifndef MLA_GPU_WEIGHT_FORMAT_H_
#define MLA_GPU_WEIGHT_FORMAT_H_

#include "gpu/decode.h"
#include "gpu/lane_ring.h"
#include "gpu/product.h"

namespace mla {
namespace gpu {

// A chunk is one MX group, with one scale.
struct FormatE2M1 {
  static constexpr int kStep = 128, kOctets = 4, kChunks = 1, kPieces = 1, kStepBytes = 64;
  static constexpr int kFoldOctets = 0;
  static constexpr bool kGroupScales = true;
  static MLA_DEVICE int KOf(int o, int q) { return 32 * q + 8 * o; }
  static MLA_DEVICE int PieceByte(int, int, int q) { return 16 * q; }
  static MLA_DEVICE int PieceK(int, int, int q) { return 32 * q; }
  static constexpr bool kNibbles = true;
  template <bool two_steps>
  static MLA_DEVICE Octet Decode(const Chunk* chunks, int o, const GroupScale& scale) {
    return DecodeE2M1<two_steps>(WordOf(chunks[0], o), scale);
  }
};

// The f32 scales of the others multiply sums over kFoldOctets octets.
template <bool fnuz>
struct FormatOfE4M3 {
  static constexpr int kStep = 64, kOctets = 2, kChunks = 1, kPieces = 1, kStepBytes = 64;
  static constexpr int kFoldOctets = 2;
  static constexpr bool kGroupScales = false;
  static MLA_DEVICE int KOf(int o, int q) { return 16 * q + 8 * o; }
  static MLA_DEVICE int PieceByte(int, int, int q) { return 16 * q; }
  static MLA_DEVICE int PieceK(int, int, int q) { return 16 * q; }
  static constexpr bool kNibbles = false;
  template <bool>
  static MLA_DEVICE Octet Decode(const Chunk* chunks, int o, const GroupScale&) {
    return DecodeE4M3<fnuz>(WordOf(chunks[0], 2 * o), WordOf(chunks[0], 2 * o + 1));
  }
};
using FormatE4M3 = FormatOfE4M3<false>;
using FormatE4M3Fnuz = FormatOfE4M3<true>;

// The quarters share 32 values an octet, the smallest group that matrix cores take.
struct FormatInt4 {
  static constexpr int kStep = 128, kOctets = 4, kChunks = 1, kPieces = 4, kStepBytes = 64;
  static constexpr int kFoldOctets = 1;
  static constexpr bool kGroupScales = false;
  static MLA_DEVICE int KOf(int o, int q) { return 32 * o + 8 * q; }
  static MLA_DEVICE int PieceByte(int, int p, int q) { return 16 * p + 4 * q; }
  static MLA_DEVICE int PieceK(int, int p, int q) { return 32 * p + 8 * q; }
  static constexpr bool kNibbles = true;
  template <bool>
  static MLA_DEVICE Octet Decode(const Chunk* chunks, int o, const GroupScale&) {
    return DecodeInt4(WordOf(chunks[0], o));
  }
};

struct FormatBF16 {
  static constexpr int kStep = 64, kOctets = 2, kChunks = 2, kPieces = 1, kStepBytes = 128;
  static constexpr int kFoldOctets = 0;
  static constexpr bool kGroupScales = false;
  static MLA_DEVICE int KOf(int o, int q) { return 32 * o + 8 * q; }
  static MLA_DEVICE int PieceByte(int c, int, int q) { return 64 * c + 16 * q; }
  static MLA_DEVICE int PieceK(int c, int, int q) { return 32 * c + 8 * q; }
  static constexpr bool kNibbles = false;
  template <bool>
  static MLA_DEVICE Octet Decode(const Chunk* chunks, int o, const GroupScale&) {
    return BitCast<Octet>(chunks[o]);
  }
};

// A token's octet in the order in which the format's octets are decoded, and back.
template <typename Format>
MLA_DEVICE Octet ToOrder(const Octet& natural) {
  return Format::kNibbles ? ToNibbleOrder(natural) : natural;
}
template <typename Format>
MLA_DEVICE Octet FromOrder(const Octet& decoded) {
  return Format::kNibbles ? FromNibbleOrder(decoded) : decoded;
}

MLA_DEVICE float ReadScale(const ProductArgs& args, int64_t at) {
  return ReadOne(args.scale, args.scale_type, at);
}

// One value, rounded once to f32.
MLA_DEVICE float ReadWeight(const ProductArgs& args, const uint8_t* data, const void* scale,
                            int64_t row, int64_t k) {
  const int64_t scale_at = row / args.block_n * args.scale_columns + k / args.block_k;
  switch (args.format) {
    case WeightFormat::kF32:
    case WeightFormat::kBF16:
      return ReadOne(data, args.format == WeightFormat::kF32 ? DType::kF32 : DType::kBF16,
                     row * args.k + k);
    case WeightFormat::kE4M3: {
      const f8e4m3fn code{data[row * args.k + k]};
      return ToFloat(code) * ReadOne(scale, args.scale_type, scale_at);
    }
    case WeightFormat::kE4M3Fnuz: {
      const f8e4m3fnuz code{data[row * args.k + k]};
      return ToFloat(code) * ReadOne(scale, args.scale_type, scale_at);
    }
    default:
      break;
  }
  const uint32_t byte = data[(row * args.k + k) / 2];
  const uint32_t code = (k & 1) != 0 ? byte >> 4 : byte & 15u;
  if (args.format == WeightFormat::kInt4) {
    return static_cast<float>(static_cast<int>(code) - 8) *
           ReadOne(scale, args.scale_type, scale_at);
  }
  const uint32_t e8m0 = static_cast<const uint8_t*>(scale)[scale_at];
  // The code's bits in f32's place are code * 2^-126, which may be subnormal.
  const float value = BitCast<float>(((code & 8u) << 28) | ((code & 7u) << 22)) * 0x1p126f;
  const float power =
      BitCast<float>(e8m0 == 255 ? 0x7fc00000u : (e8m0 == 0 ? 0x400000u : e8m0 << 23));
  return value * power;
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_WEIGHT_FORMAT_H_
