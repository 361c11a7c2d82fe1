// Chooses the kernel of absorb_quantized: a product where the summed axis is the weight's columns.
#include "absorb_quantized/gpu_shape.h"
#include "absorb_quantized/kernel.h"

namespace mla {
namespace gpu {

extern const Image kImage_absorb_quantized;

namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Whether matrix cores can take the operands as they lie in memory.
bool AcrossTakesMatrixCores(const ProductArgs& args) {
  if (args.x_type != DType::kBF16 || args.x_stride % 8 != 0 || args.x_batch % 8 != 0 ||
      args.rows % 8 != 0 || !Aligned(args.x) || !Aligned(args.data)) {
    return false;
  }
  if (args.format == WeightFormat::kE2M1) return args.k % 32 == 0;
  if (args.format != WeightFormat::kE4M3 || args.k % 16 != 0) return false;
  // One scale for the rows that are decoded together and the columns of a block.
  const bool rows = args.block_n >= args.first_row + args.batches * args.batch_rows ||
                    (args.block_n % kAcrossRows == 0 && args.first_row % kAcrossRows == 0 &&
                     args.batch_rows % kAcrossRows == 0);
  return rows && (args.block_k >= args.k || args.block_k % kAcrossColumns == 0);
}

xla::ffi::Error LaunchAcross(ProductArgs args, const Stream& stream) {
  const bool few = args.tokens <= 16;
  const char* name = "mla_absorb_across_plain";
  int tokens = kPlainTokens, columns = kAcrossPlainThreads, threads = kAcrossPlainThreads;
  if (AcrossTakesMatrixCores(args)) {
    if (args.format == WeightFormat::kE2M1) {
      name = few ? "mla_absorb_across_e2m1_16" : "mla_absorb_across_e2m1_64";
    } else {
      name = few ? "mla_absorb_across_e4m3_16" : "mla_absorb_across_e4m3_64";
    }
    tokens = few ? 16 : 64;
    columns = kAcrossColumns;
    threads = kAcrossThreads;
  }
  args.row_blocks = static_cast<int32_t>(CeilDiv(args.k, columns));
  args.token_blocks = static_cast<int32_t>(CeilDiv(args.tokens, tokens));
  const Grid grid{args.batches * args.row_blocks * args.token_blocks};
  return Launch({&kImage_absorb_quantized, name}, grid, threads, 0, stream, &args);
}

}  // namespace

xla::ffi::Error AbsorbQuantized(const AbsorbQuantizedArgs& absorb, const Stream& stream) {
  const bool f32 = absorb.io_type == DType::kF32;
  ProductArgs args = ProductOf(absorb.w);
  args.x = static_cast<const char*>(absorb.x) + absorb.x_offset * (f32 ? 4 : 2);
  args.x_type = absorb.io_type;
  args.x_stride = absorb.heads * absorb.x_width;
  args.x_batch = absorb.x_width;
  args.y = absorb.y;
  args.y_type = absorb.io_type;
  args.y_batch = absorb.contract_columns ? absorb.rows_used : absorb.w.k;
  args.y_stride = absorb.heads * args.y_batch;
  args.tokens = absorb.tokens;
  args.batches = absorb.heads;
  args.rows = absorb.rows_used;
  args.first_row = absorb.row_offset;
  args.batch_rows = absorb.w_rows;
  if (!absorb.contract_columns) return LaunchAcross(args, stream);
  return LaunchProduct(ChooseProduct(args, args.tokens), args, stream);
}

}  // namespace gpu
}  // namespace mla
