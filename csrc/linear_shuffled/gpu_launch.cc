// Launches products with shuffled weights: the kernel follows from the shapes alone.
#include <algorithm>

#include "gpu/runtime.h"
#include "linear_shuffled/gpu_shape.h"

namespace mla {
namespace gpu {

extern const Image kImage_linear_shuffled;

namespace {

// Blocks for `tiles` tiles, of each of `token_blocks` blocks of tokens.
template <typename Shape>
int64_t RowBlocks(int64_t tiles, int64_t token_blocks) {
  const int64_t wanted =
      std::max(CeilDiv(tiles, Shape::kTiles), CeilDiv(kProcessors, token_blocks));
  return std::min(tiles, wanted);
}

template <typename Shape>
xla::ffi::Error LaunchFew(const char* name, LinearShuffledArgs args, const Stream& stream) {
  const int64_t token_blocks = CeilDiv(args.tokens, Shape::kTokens);
  args.row_blocks = static_cast<int32_t>(RowBlocks<Shape>(args.tiles, token_blocks));
  return Launch({&kImage_linear_shuffled, name}, args.row_blocks * token_blocks, Shape::kThreads,
                static_cast<size_t>(Shape::kSharedBytes), stream, &args);
}

#if !defined(MLA_ON_ROCM)
struct Many {
  const char *name, *arrange;
  int tokens, threads, shared_bytes, splits, cluster_groups;
  bool whole;   // Whether a block goes through all of the contraction.
  double step;  // Microseconds of two steps, with the way there and back; measured on an H200.
};
template <typename Shape>
constexpr Many ManyOf(const char* name, const char* arrange, double step) {
  return {name,
          arrange,
          Shape::kTokens,
          Shape::kThreads,
          Shape::kSharedBytes,
          Shape::kSplits,
          Shape::kClusterGroups,
          Shape::kOwn > 0,
          step};
}
constexpr Many kMany[] = {
    ManyOf<Many32>("mla_linear_shuffled_many32", "mla_linear_shuffled_arrange32", 1.25),
    ManyOf<Many32Split>("mla_linear_shuffled_many32_split", "mla_linear_shuffled_arrange32", 1.4),
    ManyOf<Many64>("mla_linear_shuffled_many64", "mla_linear_shuffled_arrange64", 1.5),
    ManyOf<Many64Split>("mla_linear_shuffled_many64_split", "mla_linear_shuffled_arrange64", 1.65),
    ManyOf<Many128>("mla_linear_shuffled_many128", "mla_linear_shuffled_arrange128", 2.1),
    ManyOf<Many128Split>("mla_linear_shuffled_many128_split", "mla_linear_shuffled_arrange128",
                         2.35),
};

int64_t Clusters(const Many& many, const LinearShuffledArgs& args) {
  return CeilDiv(args.rows, 64 * many.cluster_groups);
}
// Microseconds, about.
double TimeOf(const Many& many, const LinearShuffledArgs& args) {
  const int64_t stages = CeilDiv(args.chunks, 8);
  const int64_t rounds = CeilDiv(Clusters(many, args), kProcessors / many.splits);
  const int64_t turns = many.whole ? stages : CeilDiv(stages, many.splits);
  return 2 + static_cast<double>(rounds) * (4 + static_cast<double>(turns) * many.step);
}
double TimeOfFew(const LinearShuffledArgs& args) {
  const int64_t token_blocks = CeilDiv(args.tokens, Few16::kTokens);
  const int64_t row_blocks = RowBlocks<Few16>(args.tiles, token_blocks);
  const int64_t rounds = CeilDiv(row_blocks * token_blocks, kProcessors);
  // Two steps of a tile take 0.1 us; those of the tokens as long as two tiles.
  const int64_t turns = CeilDiv(args.chunks, 8) * (CeilDiv(args.tiles, row_blocks) + 2);
  return static_cast<double>(rounds) * (4 + 0.1 * static_cast<double>(turns));
}

xla::ffi::Error LaunchMany(const Many& many, const LinearShuffledArgs& args, const Stream& stream) {
  const int64_t octets = many.tokens * CeilDiv(args.chunks, 8) * 32;
  const auto error = Launch({&kImage_linear_shuffled, many.arrange},
                            CeilDiv(octets, kArrangeThreads), kArrangeThreads, 0, stream, &args);
  if (error.failure()) return error;
  return Launch({&kImage_linear_shuffled, many.name}, Clusters(many, args) * many.splits,
                many.threads, static_cast<size_t>(many.shared_bytes), stream, &args);
}
#endif

}  // namespace

xla::ffi::Error LinearShuffled(const LinearShuffledArgs& args, const Stream& stream) {
  if (args.tokens == 0 || args.rows == 0) return xla::ffi::Error::Success();
#if defined(MLA_ON_ROCM)
  if (args.tokens > Few16::kTokens) {
    return LaunchFew<Few32>("mla_linear_shuffled_few32", args, stream);
  }
#else
  if (args.tokens <= Few8::kTokens) {
    return LaunchFew<Few8>("mla_linear_shuffled_few8", args, stream);
  }
  static_assert(Few8::kTokens == kFewTokens, "more tokens have scratch for the kernels for many");
  const Many* best = nullptr;
  for (const Many& many : kMany) {
    if (many.tokens != ManyTokens(args.tokens)) continue;
    if (best == nullptr || TimeOf(many, args) < TimeOf(*best, args)) best = &many;
  }
  if (TimeOf(*best, args) < TimeOfFew(args)) return LaunchMany(*best, args, stream);
#endif
  return LaunchFew<Few16>("mla_linear_shuffled_few16", args, stream);
}

xla::ffi::Error ShuffledDequantize(const LinearShuffledArgs& args, const Stream& stream) {
  const int64_t words = args.tiles * args.chunks * 64;
  return Launch({&kImage_linear_shuffled, "mla_shuffled_dequantize"},
                CeilDiv(words, kDecodeThreads), kDecodeThreads, 0, stream, &args);
}

}  // namespace gpu
}  // namespace mla
