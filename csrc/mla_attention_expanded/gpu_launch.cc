// Chooses the kernel: matrix cores for bf16 of MLA's own widths, the plain one for all else.
#include "mla_attention_expanded/gpu_shape.h"

namespace mla {
namespace gpu {

extern const Image kImage_mla_attention_expanded;

namespace {

// A tile's weights are relative to a row's highest score times the scale: it must be positive. Rows
// move in pieces of 16 bytes.
bool Tiled(const ExpandedAttentionArgs& args) {
  return args.io_type == DType::kBF16 && args.nope == kNope && args.rope == kRope &&
         args.v == kValue && args.q_width % 8 == 0 && args.row_width % 8 == 0 &&
         args.softmax_scale > 0;
}

struct Choice {
  const char* name;
  int rows, threads, shared_bytes;
};

template <typename Shape>
constexpr Choice TilesOf(const char* name) {
  return {name, Shape::kRows, Shape::kThreads, Shape::kLaunchBytes};
}

Choice Choose(const ExpandedAttentionArgs& args) {
  if (!Tiled(args)) {
    const bool f32 = args.io_type == DType::kF32;
    return {f32 ? "mla_expanded_plain_f32" : "mla_expanded_plain_bf16", kPlainRows, kPlainThreads,
            0};
  }
  return args.tokens >= kLongTokens * args.sequences ? TilesOf<ExpandedLong>("mla_expanded_long")
                                                     : TilesOf<ExpandedShort>("mla_expanded_short");
}

}  // namespace

xla::ffi::Error ExpandedAttention(const ExpandedAttentionArgs& args, const Stream& stream) {
  if (args.tokens == 0) return xla::ffi::Error::Success();
  const Choice choice = Choose(args);
  const int64_t slots = TileSlots(args, choice.rows);
  const int64_t parts = Tiled(args) || args.v <= kPlainColumns ? 1 : CeilDiv(args.v, kPlainColumns);
  constexpr double kLog2OfE = 1.4426950408889634;
  const ExpandedGpuArgs all = {args, static_cast<int32_t>(slots),
                               static_cast<float>(args.softmax_scale * kLog2OfE)};
  return Launch({&kImage_mla_attention_expanded, choice.name}, slots * args.heads * parts,
                choice.threads, static_cast<size_t>(choice.shared_bytes), stream, &all);
}

}  // namespace gpu
}  // namespace mla
