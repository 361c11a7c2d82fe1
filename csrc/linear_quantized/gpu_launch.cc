// Dense layers on a GPU, and the choice of a kernel for every product.
#include <algorithm>

#include "gpu/product.h"
#include "linear_quantized/kernel.h"

namespace mla {
namespace gpu {

extern const Image kImage_linear_quantized;

namespace {

// The kernels of a format.
enum ShapeIndex {
  kStream8,
  kStream16,
  kNarrow8,
  kNarrow16,
  kTile32,
  kTile64,
  kWide8,
  kLow16,
  kLow32,
  kHigh16,
  kHigh32,
  kShapes
};

struct Names {
  const char* of[kShapes];  // Null where a format has no such kernel.
};

#define MLA_PRODUCT_NAME(format, shape) "mla_product_" #format "_" #shape
#define MLA_PRODUCT_NAMES(format)                                            \
  MLA_PRODUCT_NAME(format, stream8), MLA_PRODUCT_NAME(format, stream16),     \
      MLA_PRODUCT_NAME(format, narrow8), MLA_PRODUCT_NAME(format, narrow16), \
      MLA_PRODUCT_NAME(format, tile32)
#define MLA_UNGATED_NAMES(format)                                        \
  MLA_PRODUCT_NAME(format, wide8), MLA_PRODUCT_NAME(format, low16),      \
      MLA_PRODUCT_NAME(format, low32), MLA_PRODUCT_NAME(format, high16), \
      MLA_PRODUCT_NAME(format, high32)

constexpr Names kNames[] = {
    {{MLA_PRODUCT_NAMES(e2m1), MLA_PRODUCT_NAME(e2m1, tile64), MLA_UNGATED_NAMES(e2m1)}},
    {{MLA_PRODUCT_NAMES(e4m3), MLA_PRODUCT_NAME(e4m3, tile64), MLA_UNGATED_NAMES(e4m3)}},
    {{MLA_PRODUCT_NAMES(int4), nullptr, MLA_UNGATED_NAMES(int4)}},
    {{MLA_PRODUCT_NAMES(e4m3fnuz), MLA_PRODUCT_NAME(e4m3fnuz, tile64),
      MLA_UNGATED_NAMES(e4m3fnuz)}},
    {{MLA_PRODUCT_NAMES(bf16), MLA_PRODUCT_NAME(bf16, tile64)}},
};
// Chunks of 16 bytes that a lane reads a step and row.
constexpr int kChunksOf[] = {1, 1, 1, 1, 2};

template <typename Shape>
ProductKernel Of(const ProductArgs& args, ShapeIndex shape) {
  const int format = static_cast<int>(args.format);
  return {kNames[format].of[shape], Shape::kTokens, Shape::kRows, Shape::kThreads,
          Shape::SharedBytes(kChunksOf[format])};
}

bool Aligned(const void* p, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0;
}

// Whether matrix cores can take the operands as they lie in memory.
bool TakesMatrixCores(const ProductArgs& args) {
  if (args.x_type != DType::kBF16 || args.x_stride % 8 != 0 || args.x_batch % 8 != 0 ||
      !Aligned(args.x, 16) || !Aligned(args.data, 16)) {
    return false;
  }
  // Offsets inside a matrix, whose element has at most two bytes, are 32 bits, and so are those of
  // tokens.
  const int64_t rows = args.batches > 1 ? args.batch_rows : args.rows;
  if (rows * args.k >= int64_t{1} << 31) return false;
  if (args.tokens * args.x_stride >= (int64_t{1} << 32) - 1) return false;
  // One scale a fold.
  const auto folds = [&](int64_t values) {
    return args.block_k % values == 0 || args.block_k >= args.k;
  };
  switch (args.format) {
    case WeightFormat::kE2M1:
      return args.k % 32 == 0 && args.block_k == 32 && args.block_n == 1;
    case WeightFormat::kE4M3:
    case WeightFormat::kE4M3Fnuz:
      return args.k % 16 == 0 && folds(64);
    case WeightFormat::kInt4:
      return args.k % 8 == 0 && folds(32);
    case WeightFormat::kBF16:
      return args.k % 8 == 0;
    case WeightFormat::kF32:
      return false;
  }
  return false;
}

#if !defined(MLA_ON_ROCM)
// Whether the kernels of warpgroups can take operands that other matrix-core kernels can.
bool TakesWarpgroups(const ProductArgs& args) {
  return args.format == WeightFormat::kE2M1 && args.k % Warpgroups16::kStep == 0 &&
         Aligned(args.scale, 4);
}

struct Candidate {
  ProductKernel kernel;
  double alone, step;  // A step's time, in about us: of a block alone, and of one among several.
};
template <typename Shape>
constexpr Candidate CandidateOf(const char* name, double alone, double step) {
  const ProductKernel kernel = {
      name, Shape::kTokens, Shape::kRows, Shape::kThreads, Shape::kSharedBytes, Shape::kSplits};
  return {kernel, alone, step};
}
constexpr Candidate kCandidates[] = {
    CandidateOf<Warpgroups16Split4>("mla_product_e2m1_warpgroups16_split4", 0.5, 0.2),
    CandidateOf<Warpgroups16>("mla_product_e2m1_warpgroups16", 0.7, 0.35),
    CandidateOf<Warpgroups32Split4>("mla_product_e2m1_warpgroups32_split4", 0.9, 0.5),
    CandidateOf<Warpgroups32>("mla_product_e2m1_warpgroups32", 0.9, 0.5),
    CandidateOf<Warpgroups64Split4>("mla_product_e2m1_warpgroups64_split4", 1.0, 0.6),
    CandidateOf<Warpgroups64>("mla_product_e2m1_warpgroups64", 1.05, 0.7),
    CandidateOf<Warpgroups128Split4>("mla_product_e2m1_warpgroups128_split4", 1.1, 1.1),
    CandidateOf<Warpgroups128Split2>("mla_product_e2m1_warpgroups128_split2", 1.6, 1.6),
    CandidateOf<Warpgroups128>("mla_product_e2m1_warpgroups128", 1.6, 1.6),
};

// The one that takes least time: a block's steps and what it spends before and after them, as many
// steps, for as many blocks as the busiest processor has. Fitted to times on an H200.
ProductKernel ChooseWarpgroups(const ProductArgs& args, int64_t tokens) {
  constexpr double kAround = 12;
  const Candidate* best = nullptr;
  double least = 0;
  for (const Candidate& candidate : kCandidates) {
    const ProductKernel& kernel = candidate.kernel;
    // Not for fewer tokens than half of what it takes.
    if (kernel.tokens > 16 && 2 * tokens <= kernel.tokens) continue;
    const int64_t blocks = CeilDiv(args.rows, kernel.rows) * CeilDiv(tokens, kernel.tokens) *
                           args.batches * kernel.splits;
    const double steps = static_cast<double>(args.k) / (Warpgroups16::kStep * kernel.splits);
    const double together = candidate.step * static_cast<double>(CeilDiv(blocks, kProcessors));
    const double time = (steps + kAround) * std::max(candidate.alone, together);
    if (best == nullptr || time < least) {
      best = &candidate;
      least = time;
    }
  }
  return best->kernel;
}
#endif

}  // namespace

ProductKernel ChooseProduct(const ProductArgs& args, int64_t tokens) {
  if (!TakesMatrixCores(args)) {
    return {"mla_product_plain", kPlainTokens, kPlainThreads / kPlatformWave, kPlainThreads, 0};
  }
  // Of the processors' time, which part has work; a processor runs `together` blocks at a time.
  const auto share = [&](const ProductKernel& kernel, int64_t together) {
    const int64_t blocks =
        CeilDiv(args.rows, kernel.rows) * CeilDiv(tokens, kernel.tokens) * args.batches;
    const int64_t rounds = CeilDiv(blocks, kProcessors * together);
    const double useful = static_cast<double>(args.rows) /
                          static_cast<double>(CeilDiv(args.rows, kernel.rows) * kernel.rows);
    return useful * static_cast<double>(blocks) /
           static_cast<double>(rounds * kProcessors * together);
  };
  const bool gated = args.gated || args.format == WeightFormat::kBF16;
  if (tokens <= 8) {
    const ProductKernel stream = Of<StreamShape8>(args, kStream8);
    if (args.gated) return stream;
    const ProductKernel narrow = Of<NarrowShape8>(args, kNarrow8);
    if (CeilDiv(args.rows, stream.rows) * args.batches < 2 * kProcessors) return narrow;
    const ProductKernel wide = gated ? stream : Of<WideShape8>(args, kWide8);
    return share(wide, 3) > share(stream, 5) ? wide : stream;
  }
#if !defined(MLA_ON_ROCM)
  if (TakesWarpgroups(args)) {
    // Where its blocks just fill the processors, nothing beats it.
    const ProductKernel high = Of<HighShape16>(args, kHigh16);
    if (!args.gated && tokens <= 16 && share(high, 1) > 0.9) return high;
    return ChooseWarpgroups(args, tokens);
  }
#endif
  const ProductKernel large = Of<TileShape64>(args, kTile64);
  if (tokens > 32 && large.name != nullptr && share(large, 1) > 0.7) return large;
  if (gated) {
    const ProductKernel tile = Of<TileShape32>(args, kTile32);
    if (tokens > 16 && share(tile, 2) > 0.5) return tile;
    const ProductKernel stream = Of<StreamShape16>(args, kStream16);
    if (args.gated || share(stream, 4) > 0.5) return stream;
    return Of<NarrowShape16>(args, kNarrow16);
  }
  const bool few = tokens <= 16;
  const ProductKernel low = few ? Of<LowShape16>(args, kLow16) : Of<LowShape32>(args, kLow32);
  const ProductKernel high = few ? Of<HighShape16>(args, kHigh16) : Of<HighShape32>(args, kHigh32);
  // A block of nine waves a split gets more out of tokens in shared memory.
  const ProductKernel best = share(high, 1) > 0.8 * share(low, 1) ? high : low;
  return share(best, 1) > 0.3 ? best : Of<NarrowShape16>(args, kNarrow16);
}

ProductArgs ProductOf(const QuantizedMatrix& weight) {
  ProductArgs args = {};
  args.data = weight.data;
  args.scale = weight.scale;
  args.scale_type = weight.scale_type;
  args.format = static_cast<WeightFormat>(weight.code);
  args.rows = weight.n;
  args.k = weight.k;
  args.block_n = weight.block_n;
  args.block_k = weight.block_k;
  args.scale_columns = weight.ScaleCols();
  args.expert_bytes = weight.n * weight.RowBytes();
  args.expert_scales = weight.ScaleRows() * weight.ScaleCols() * weight.ScaleBytes();
  args.batches = 1;
  return args;
}

xla::ffi::Error LaunchProduct(const ProductKernel& kernel, ProductArgs args, const Stream& stream) {
  const int64_t rows = args.gated && kernel.shared_bytes > 0 ? kernel.rows / 2 : kernel.rows;
  const int64_t outputs = args.gated ? args.rows / 2 : args.rows;
  args.row_blocks = static_cast<int32_t>(CeilDiv(outputs, rows));
  if (args.tile_expert == nullptr) {
    args.token_blocks = static_cast<int32_t>(CeilDiv(args.tokens, kernel.tokens));
  }
  const int64_t blocks = args.batches * args.row_blocks * args.token_blocks * kernel.splits;
  return Launch({&kImage_linear_quantized, kernel.name}, blocks, kernel.threads,
                static_cast<size_t>(kernel.shared_bytes), stream, &args);
}

xla::ffi::Error LinearQuantized(const LinearQuantizedArgs& linear, const Stream& stream) {
  ProductArgs args = ProductOf(linear.w);
  args.x = linear.x;
  args.x_type = linear.x_type;
  args.x_stride = args.k;
  args.y = linear.y;
  args.y_type = linear.y_type;
  args.y_stride = args.rows;
  args.bias = linear.bias;
  args.bias_type = linear.bias_type;
  args.tokens = linear.m;
  return LaunchProduct(ChooseProduct(args, args.tokens), args, stream);
}

}  // namespace gpu
}  // namespace mla
