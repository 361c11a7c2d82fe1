// absorb of MXFP4 weights, 128 heads of 256 rows and 512 columns, of which 128 rows take part, as
// the library launches it; beside it cuBLAS's product of bf16 weights, where libcublas can be
// opened. Build and run: nvcc -std=c++17 -O3 -gencode arch=compute_90a,code=sm_90a -Icsrc
// benchmarks/gpu/absorb.cu -o build/absorb && build/absorb
#include "absorb_quantized/gpu_kernel.cc"
#include "cublas.h"
#include "fill.h"
#include "graph.h"

namespace {

using namespace mla::gpu;

constexpr int kHeads = 128, kHeadRows = 256, kRows = 128, kRank = 512;

using Kernel = void (*)(ProductArgs);

struct Prepared {
  Kernel kernel;
  int shared;
};
template <int tokens, bool along>
Prepared Of(Kernel kernel) {
  constexpr int kShared = HeadShape<tokens, along>::kSharedBytes;
  Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
        "shared memory");
  return {kernel, kShared};
}

void Launch(ProductArgs args, bool along, cudaStream_t stream) {
  static const Prepared kPrepared[2][kHeadKernels] = {
      {Of<8, false>(mla_absorb_heads_across_8), Of<16, false>(mla_absorb_heads_across_16),
       Of<32, false>(mla_absorb_heads_across_32), Of<64, false>(mla_absorb_heads_across_64),
       Of<128, false>(mla_absorb_heads_across_128)},
      {Of<8, true>(mla_absorb_heads_along_8), Of<16, true>(mla_absorb_heads_along_16),
       Of<32, true>(mla_absorb_heads_along_32), Of<64, true>(mla_absorb_heads_along_64),
       Of<128, true>(mla_absorb_heads_along_128)}};
  PlanHeads(&args, along);
  const Prepared& prepared = kPrepared[along ? 1 : 0][HeadKernelOf(args.tokens)];
  const auto blocks = static_cast<unsigned>(args.batches * args.row_blocks * args.token_blocks);
  prepared.kernel<<<blocks, HeadShape<8, true>::kThreads, prepared.shared, stream>>>(args);
}

void Run(bool along, int tokens) {
  constexpr size_t kData = size_t{1} * kHeads * kHeadRows * kRank / 2, kScales = kData / 16;
  constexpr size_t kDense = kData * 4;
  const int layers = tokens <= 128 ? 32 : 8, dense_layers = 8;
  const size_t in = size_t{2} * tokens * kHeads * (along ? kRank : kRows);
  const size_t out = size_t{2} * tokens * kHeads * (along ? kRows : kRank);
  Memory data(kData * layers), scales(kScales * layers), x(in * layers), y(out * layers);
  FillRandom(data, ~0u, 0);
  FillRandom(scales, 0x03030303u, 0x76767676u);
  FillRandom(x, kBFloats, kHalves);
  const double flop = 2.0 * tokens * kHeads * kRows * kRank;
  const double moved = static_cast<double>(in + out);
  const std::string shape = std::string("\"contract\": \"") + (along ? "columns" : "rows") +
                            "\", \"tokens\": " + std::to_string(tokens);
  const float us = MicrosecondsInGraph(layers, [&](int layer, cudaStream_t stream) {
    ProductArgs args = {};
    args.x = x.at(in * layer);
    args.y = y.at(out * layer);
    args.data = data.at(kData * layer);
    args.scale = scales.at(kScales * layer);
    args.x_type = args.y_type = mla::DType::kBF16;
    args.format = WeightFormat::kE2M1;
    args.tokens = tokens;
    args.rows = kRows;
    args.k = kRank;
    args.batches = kHeads;
    args.x_batch = along ? kRank : kRows;
    args.y_batch = along ? kRows : kRank;
    args.x_stride = kHeads * args.x_batch;
    args.y_stride = kHeads * args.y_batch;
    args.first_row = along ? kRows : 0;
    args.batch_rows = kHeadRows;
    args.block_n = 1;
    args.block_k = 32;
    args.scale_columns = kRank / 32;
    Launch(args, along, stream);
  });
  PrintRow("absorb mxfp4", shape, us, (kData + kScales) / 2 + moved, flop);

  static const Cublas cublas;
  if (!cublas.found()) return;
  Memory dense(kDense * dense_layers);
  FillRandom(dense, kBFloats, kHalves);
  const float peer = MicrosecondsInGraph(layers, [&](int layer, cudaStream_t stream) {
    const mla::bf16* weight =
        dense.at<mla::bf16>(kDense * (layer % dense_layers)) + (along ? kRows * kRank : 0);
    // Columns first, as cuBLAS has matrices: y = weight' * x'.
    cublas.Products(stream, along, along ? kRows : kRank, tokens, along ? kRank : kRows, weight,
                    kRank, kHeadRows * kRank, x.at(in * layer), kHeads * (along ? kRank : kRows),
                    along ? kRank : kRows, y.at(out * layer), kHeads * (along ? kRows : kRank),
                    along ? kRows : kRank, kHeads);
  });
  PrintRow("absorb bf16 by cuBLAS", shape, peer, kDense / 2 + moved, flop);
}

}  // namespace

int main() {
  for (const bool along : {true, false}) {
    for (const int tokens : {1, 8, 16, 32, 64, 128, 1024}) Run(along, tokens);
  }
}
