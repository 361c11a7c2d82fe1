// Chooses the kernel of absorb_quantized.
#include "absorb_quantized/gpu_shape.h"
#include "absorb_quantized/kernel.h"

namespace mla {
namespace gpu {

extern const Image kImage_absorb_quantized;

namespace {

bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Whether the decoding kernels can take the operands as they lie in memory.
bool Decodes(const ProductArgs& args) {
  if (args.x_type != DType::kBF16 || args.x_stride % 8 != 0 || args.x_batch % 8 != 0 ||
      args.rows % 8 != 0 || !Aligned(args.x) || !Aligned(args.data)) {
    return false;
  }
  if (args.format == WeightFormat::kE2M1) return args.k % 32 == 0;
  const bool e4m3 = args.format == WeightFormat::kE4M3 || args.format == WeightFormat::kE4M3Fnuz;
  if (!e4m3 || args.k % 16 != 0) return false;
  // One scale for the part that is decoded at a time.
  const bool rows = args.block_n >= args.batches * args.batch_rows ||
                    (args.block_n % kAcrossMost == 0 && args.first_row % kAcrossMost == 0 &&
                     args.batch_rows % kAcrossMost == 0);
  return rows && (args.block_k >= args.k || args.block_k % kAcrossMost == 0);
}

struct AbsorbNames {
  const char* of[2][2];  // [along][many tokens]
};
#define MLA_ABSORB_NAMES(format)                                                 \
  {                                                                              \
    {                                                                            \
      {"mla_absorb_across_" #format "_16", "mla_absorb_across_" #format "_64"},  \
          {"mla_absorb_along_" #format "_16", "mla_absorb_along_" #format "_64"} \
    }                                                                            \
  }
constexpr AbsorbNames kE2M1Names = MLA_ABSORB_NAMES(e2m1);
constexpr AbsorbNames kE4M3Names = MLA_ABSORB_NAMES(e4m3);
constexpr AbsorbNames kE4M3FnuzNames = MLA_ABSORB_NAMES(e4m3fnuz);

// Of formats that Decodes().
const AbsorbNames& NamesOf(WeightFormat format) {
  if (format == WeightFormat::kE2M1) return kE2M1Names;
  return format == WeightFormat::kE4M3 ? kE4M3Names : kE4M3FnuzNames;
}

int LaunchBytesOf(bool along, bool many) {
  if (along)
    return many ? AcrossShape<64, true>::kLaunchBytes : AcrossShape<16, true>::kLaunchBytes;
  return many ? AcrossShape<64, false>::kLaunchBytes : AcrossShape<16, false>::kLaunchBytes;
}

#if !defined(MLA_ON_ROCM)
struct HeadKernel {
  const char* name;
  int shared_bytes;
};
template <int tokens>
constexpr HeadKernel HeadKernelFor(const char* across, const char* along, bool is_along) {
  return is_along ? HeadKernel{along, HeadShape<tokens, true>::kSharedBytes}
                  : HeadKernel{across, HeadShape<tokens, false>::kSharedBytes};
}
#define MLA_HEADS(tokens, along)                                                               \
  HeadKernelFor<tokens>("mla_absorb_heads_across_" #tokens, "mla_absorb_heads_along_" #tokens, \
                        along)
#define MLA_ALL_HEADS(along)                                                              \
  {MLA_HEADS(8, along), MLA_HEADS(16, along), MLA_HEADS(32, along), MLA_HEADS(64, along), \
   MLA_HEADS(128, along)}
constexpr HeadKernel kHeadKernelsOf[2][kHeadKernels] = {MLA_ALL_HEADS(false), MLA_ALL_HEADS(true)};

// Whether a block's codes and scales can be copied in one piece.
bool TakesHeads(const ProductArgs& args, bool along) {
  return args.format == WeightFormat::kE2M1 && Decodes(args) && Aligned(args.scale) &&
         args.k == kHeadColumns && (along || args.rows <= HeadShape<8, false>::kTile);
}

xla::ffi::Error LaunchHeads(ProductArgs args, bool along, const Stream& stream) {
  const HeadKernel& kernel = kHeadKernelsOf[along ? 1 : 0][HeadKernelOf(args.tokens)];
  PlanHeads(&args, along);
  return Launch({&kImage_absorb_quantized, kernel.name},
                args.batches * args.row_blocks * args.token_blocks, HeadShape<8, true>::kThreads,
                static_cast<size_t>(kernel.shared_bytes), stream, &args);
}
#endif

xla::ffi::Error LaunchAbsorb(ProductArgs args, bool along, const Stream& stream) {
  const bool many = args.tokens > 16, decodes = Decodes(args);
  const int tokens = decodes ? (many ? 64 : 16) : kPlainTokens;
  const int outputs = decodes ? kAcrossOutputs : kAcrossPlainThreads;
  const char* name =
      decodes ? NamesOf(args.format).of[along ? 1 : 0][many ? 1 : 0] : "mla_absorb_across_plain";
  args.row_blocks = static_cast<int32_t>(CeilDiv(along ? args.rows : args.k, outputs));
  args.token_blocks = static_cast<int32_t>(CeilDiv(args.tokens, tokens));
  const int64_t blocks = args.batches * args.row_blocks * args.token_blocks;
  return Launch({&kImage_absorb_quantized, name}, blocks,
                decodes ? kAcrossThreads : kAcrossPlainThreads,
                static_cast<size_t>(decodes ? LaunchBytesOf(along, many) : 0), stream, &args);
}

// A few tokens do better as a product, whose weights need no shared memory.
constexpr int64_t kProductTokens = 8;

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
  const bool along = absorb.contract_columns;
#if !defined(MLA_ON_ROCM)
  if (TakesHeads(args, along)) return LaunchHeads(args, along, stream);
#endif
  if (!along || (args.tokens > kProductTokens && Decodes(args))) {
    return LaunchAbsorb(args, along, stream);
  }
  return LaunchProduct(ChooseProduct(args, args.tokens), args, stream);
}

}  // namespace gpu
}  // namespace mla
