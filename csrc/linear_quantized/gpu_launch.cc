// Dense layers on a GPU, and the choice of a kernel for every product.
#include <algorithm>

#include "gpu/product.h"
#include "linear_quantized/kernel.h"

namespace mla {
namespace gpu {

extern const Image kImage_linear_quantized;

namespace {

// Blocks that keep a GPU busy.
constexpr int64_t kManyBlocks = 100;
constexpr int64_t kManyStreams = 256;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The kernels of a format, from few tokens to many.
enum ShapeIndex { kStream8, kStream16, kNarrow8, kNarrow16, kTile32, kTile64, kShapes };

struct Names {
  const char* of[kShapes];
};

#define MLA_PRODUCT_NAMES(format, tile64)                                        \
  {                                                                              \
    {                                                                            \
      "mla_product_" #format "_stream8", "mla_product_" #format "_stream16",     \
          "mla_product_" #format "_narrow8", "mla_product_" #format "_narrow16", \
          "mla_product_" #format "_tile32", tile64                               \
    }                                                                            \
  }

constexpr Names kNames[] = {
    MLA_PRODUCT_NAMES(e2m1, "mla_product_e2m1_tile64"),
    MLA_PRODUCT_NAMES(e4m3, "mla_product_e4m3_tile64"),
    MLA_PRODUCT_NAMES(int4, nullptr),
    MLA_PRODUCT_NAMES(bf16, "mla_product_bf16_tile64"),
};
// Chunks of 16 bytes that a lane reads a step and row.
constexpr int kChunksOf[] = {1, 1, 1, 2};

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
  // Offsets inside a matrix, whose element has at most two bytes, are 32 bits.
  const int64_t rows = args.batches > 1 ? args.batch_rows : args.rows;
  if (rows * args.k >= int64_t{1} << 31) return false;
  // One scale a fold.
  const auto folds = [&](int64_t values) {
    return args.block_k % values == 0 || args.block_k >= args.k;
  };
  switch (args.format) {
    case WeightFormat::kE2M1:
      return args.k % 32 == 0 && args.block_k == 32 && args.block_n == 1;
    case WeightFormat::kE4M3:
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

}  // namespace

ProductKernel ChooseProduct(const ProductArgs& args, int64_t tokens) {
  if (!TakesMatrixCores(args)) {
    return {"mla_product_plain", kPlainTokens, kPlainThreads / kProductWave, kPlainThreads, 0};
  }
  const auto blocks = [&](const ProductKernel& kernel) {
    return CeilDiv(args.rows, kernel.rows) * CeilDiv(tokens, kernel.tokens) * args.batches;
  };
  if (tokens > 16) {
    const ProductKernel large = Of<TileShape64>(args, kTile64);
    const ProductKernel small = Of<TileShape32>(args, kTile32);
    if (tokens > 32 && large.name != nullptr && args.rows > small.rows &&
        blocks(large) >= kManyBlocks) {
      return large;
    }
    if (blocks(small) >= kManyBlocks) return small;
  }
  const ProductKernel stream =
      tokens <= 8 ? Of<StreamShape8>(args, kStream8) : Of<StreamShape16>(args, kStream16);
  if (args.gated || blocks(stream) >= kManyStreams) return stream;
  return tokens <= 8 ? Of<NarrowShape8>(args, kNarrow8) : Of<NarrowShape16>(args, kNarrow16);
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
  const Grid grid{args.batches * args.row_blocks * args.token_blocks};
  return Launch({&kImage_linear_quantized, kernel.name}, grid, kernel.threads,
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
