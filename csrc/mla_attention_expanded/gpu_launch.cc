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

}  // namespace

xla::ffi::Error ExpandedAttention(const ExpandedAttentionArgs& args, const Stream& stream) {
  if (args.tokens == 0) return xla::ffi::Error::Success();
  const bool tiled = Tiled(args), f32 = args.io_type == DType::kF32;
  const int64_t slots = TileSlots(args, tiled ? ExpandedTile::kRows : kPlainRows);
  const int64_t parts = tiled || args.v <= kPlainColumns ? 1 : CeilDiv(args.v, kPlainColumns);
  const ExpandedGpuArgs all = {args, static_cast<int32_t>(slots)};
  const char* name =
      tiled ? "mla_expanded_tiles" : (f32 ? "mla_expanded_plain_f32" : "mla_expanded_plain_bf16");
  return Launch({&kImage_mla_attention_expanded, name}, slots * args.heads * parts,
                tiled ? ExpandedTile::kThreads : kPlainThreads,
                static_cast<size_t>(tiled ? ExpandedTile::kSharedBytes : 0), stream, &all);
}

}  // namespace gpu
}  // namespace mla
