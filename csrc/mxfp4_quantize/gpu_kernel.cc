// MXFP4 quantisation on a GPU.
#include "gpu/mxfp4.h"
#include "mxfp4_quantize/gpu_shape.h"

namespace mla {
namespace gpu {
namespace {

// The larger one of the lanes that share a group.
MLA_DEVICE uint32_t GroupMax(uint32_t value) {
#pragma unroll
  for (int mask = kLanesOfGroup / 2; mask > 0; mask /= 2) {
    const auto other = static_cast<uint32_t>(ShuffleBits(static_cast<int>(value), Lane() ^ mask));
    value = value > other ? value : other;
  }
  return value;
}

template <typename T>
MLA_DEVICE void Quantize(const Mxfp4QuantizeArgs& args) {
  const QuantizedRows& out = args.out;
  const int64_t groups = (out.k + kMxfp4Group - 1) / kMxfp4Group;
  const int64_t group =
      (static_cast<int64_t>(BlockX()) * kQuantizeThreads + ThreadX()) / kLanesOfGroup;
  const int64_t row = group / groups, at = group - row * groups;
  const int64_t column = at * kMxfp4Group + 2 * (ThreadX() % kLanesOfGroup);
  const bool inside = row < out.rows && column < out.k;

  uint32_t bits[2] = {0, 0};
  if (inside) {
    const auto pair = LoadPack<2>(static_cast<const T*>(args.x) + row * out.k + column);
    bits[0] = BitCast<uint32_t>(ToFloat(pair.at[0]));
    bits[1] = BitCast<uint32_t>(ToFloat(pair.at[1]));
  }
  const uint32_t first = bits[0] & 0x7fffffffu, second = bits[1] & 0x7fffffffu;
  const uint32_t scale = Mxfp4Scale(GroupMax(first > second ? first : second), out.rounding);
  if (row >= out.rows) return;
  if (ThreadX() % kLanesOfGroup == 0) {
    static_cast<uint8_t*>(out.scale)[row * groups + at] = static_cast<uint8_t>(scale);
  }
  if (!inside) return;
  const uint32_t codes =
      scale == 255 ? 0 : EncodeE2M1(bits[0], scale) | (EncodeE2M1(bits[1], scale) << 4);
  out.data[(row * out.k + column) / 2] = static_cast<uint8_t>(codes);
}

}  // namespace
}  // namespace gpu
}  // namespace mla

using mla::Mxfp4QuantizeArgs;

MLA_GPU_KERNEL(mla_mxfp4_quantize_bf16, mla::gpu::kQuantizeThreads, Mxfp4QuantizeArgs) {
  mla::gpu::Quantize<mla::bf16>(args);
}
MLA_GPU_KERNEL(mla_mxfp4_quantize_f32, mla::gpu::kQuantizeThreads, Mxfp4QuantizeArgs) {
  mla::gpu::Quantize<float>(args);
}
