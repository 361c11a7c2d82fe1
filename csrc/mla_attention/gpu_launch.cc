// Chooses the kernel: matrix cores for bf16 queries of MLA's own widths, the plain one for all
// else.
#include "mla_attention/gpu_shape.h"

namespace mla {
namespace gpu {

extern const Image kImage_mla_attention;

namespace {

struct Tiled {
  const char *bf16, *f8;
  int threads, shared_bytes;
};

template <typename Shape>
constexpr Tiled Of(const char* bf16, const char* f8) {
  return {bf16, f8, Shape::kThreads, Shape::kLaunchBytes};
}

constexpr Tiled kTiled[] = {
    // Of 16, 32 and 64 heads.
    Of<Heads16>("mla_attention_16", "mla_attention_16_f8"),
    Of<Heads32>("mla_attention_32", "mla_attention_32_f8"),
    Of<Heads64>("mla_attention_64", "mla_attention_64_f8"),
};

bool TilesTake(const MlaAttentionArgs& args) {
  return args.io_type == DType::kBF16 && args.cache_type != DType::kF32 && args.rank == kRank &&
         args.rope == kRope;
}

xla::ffi::Error LaunchTiles(const MlaAttentionArgs& args, int rows, const Stream& stream) {
  const Tiled& tiled = kTiled[rows / 32];
  const int64_t blocks = CeilDiv(args.heads, rows);
  const char* name = args.cache_type == DType::kBF16 ? tiled.bf16 : tiled.f8;
  return Launch({&kImage_mla_attention, name}, args.tokens * blocks * args.splits, tiled.threads,
                static_cast<size_t>(tiled.shared_bytes), stream, &args);
}

xla::ffi::Error LaunchPlain(const MlaAttentionArgs& args, const Stream& stream) {
  return Launch({&kImage_mla_attention, "mla_attention_plain"},
                args.tokens * args.heads * args.splits, kPlainThreads,
                static_cast<size_t>(args.rank) * sizeof(float), stream, &args);
}

}  // namespace

xla::ffi::Error MlaAttention(const MlaAttentionArgs& call, const Stream& stream) {
  MlaAttentionArgs args = call;
  const bool tiles = TilesTake(args);
  const TilePlan plan = tiles ? PlanTiles(args, args.splits) : TilePlan{1, args.splits};
  args.splits = plan.splits;
  if (args.splits == 1) args.partial = args.partial_lse = nullptr;
  xla::ffi::Error error = tiles ? LaunchTiles(args, plan.rows, stream) : LaunchPlain(args, stream);
  if (error.failure() || args.splits == 1) return error;
  const int groups = MergeGroupsOf(args);
  const char* name = groups == 1              ? "mla_attention_merge_few"
                     : groups == kFewerGroups ? "mla_attention_merge_more"
                                              : "mla_attention_merge_many";
  const int64_t runs = args.tokens * args.heads * CeilDiv(args.rank, kMergeRun);
  return Launch({&kImage_mla_attention, name}, CeilDiv(runs, kMergeThreads / groups), kMergeThreads,
                0, stream, &args);
}

}  // namespace gpu
}  // namespace mla
