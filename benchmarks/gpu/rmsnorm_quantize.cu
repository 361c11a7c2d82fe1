// rmsnorm_quantize of 7168 columns and flatten_quantize of 128 heads of 128, bf16 to MXFP4 and FP8, as the library
// launches them.
// Build and run: nvcc -std=c++17 -O3 -arch=sm_90 -Icsrc benchmarks/gpu/rmsnorm_quantize.cu -o build/rmsnorm_quantize && build/rmsnorm_quantize
#include "flatten_quantize/gpu_kernel.cc"
#include "graph.h"
#include "rmsnorm_quantize/gpu_kernel.cc"

namespace {

using namespace mla::gpu;

#define MLA_KERNEL_POINTER(name, T, threads, runs) &name,
using Kernel = void (*)(mla::RmsNormQuantizeArgs);
constexpr Kernel kMxfp4[] = {MLA_HELD_ROW_KERNELS(MLA_KERNEL_POINTER, mla_rmsnorm_mxfp4_bf16, mla::bf16)};
constexpr Kernel kFp8[] = {MLA_HELD_ROW_KERNELS(MLA_KERNEL_POINTER, mla_rmsnorm_fp8_bf16, mla::bf16)};

struct Results {
  size_t data, scale;  // Bytes
};
Results SizesOf(int tokens, int width, bool fp8) {
  const size_t values = size_t(tokens) * width;
  return fp8 ? Results{values, values / 128 * 4} : Results{values / 2, values / 32};
}

mla::QuantizedRows Rows(const Memory& data, const Memory& scale, const Results& sizes, int layer,
                        int tokens, int width, bool fp8) {
  mla::QuantizedRows out = {};
  out.data = data.at<uint8_t>(sizes.data * layer);
  out.scale = scale.at(sizes.scale * layer);
  out.format = fp8 ? mla::GroupFormat::kFp8 : mla::GroupFormat::kMxfp4;
  out.rounding = mla::Rounding::kEven;
  out.rows = tokens;
  out.k = width;
  out.group = fp8 ? 128 : 32;
  return out;
}

std::string Shape(int tokens, int width, bool fp8) {
  return "\"tokens\": " + std::to_string(tokens) + ", \"width\": " + std::to_string(width) +
         ", \"format\": \"" + (fp8 ? "fp8" : "mxfp4") + "\"";
}

void Run(int tokens, int width, bool fp8, bool norm) {
  const size_t bytes = size_t{2} * tokens * width;
  const int layers = static_cast<int>(std::clamp<size_t>((size_t{1} << 30) / bytes, 4, 64));
  const Results sizes = SizesOf(tokens, width, fp8);
  Memory x(bytes * layers), weight(size_t{2} * width), data(sizes.data * layers), scale(sizes.scale * layers);
  const float us = MicrosecondsInGraph(layers, [&](int layer, cudaStream_t stream) {
    const mla::QuantizedRows out = Rows(data, scale, sizes, layer, tokens, width, fp8);
    if (norm) {
      mla::RmsNormQuantizeArgs args = {};
      args.x = x.at(bytes * layer);
      args.weight = weight.at();
      args.io_type = args.weight_type = mla::DType::kBF16;
      args.width = width;
      args.eps = 1e-6f;
      args.out = out;
      const Kernel kernel = (fp8 ? kFp8 : kMxfp4)[static_cast<int>(RowKindOf(width, true))];
      kernel<<<static_cast<int>(RowBlocks(tokens, width)), kRowBlock, 0, stream>>>(args);
    } else {
      const int parts = (width + kRowBlock * kRunValues - 1) / (kRowBlock * kRunValues);
      const FlattenQuantizeGpuArgs all{{x.at(bytes * layer), mla::DType::kBF16, out}, parts};
      const auto kernel = fp8 ? &mla_flatten_fp8_bf16 : &mla_flatten_mxfp4_bf16;
      kernel<<<tokens * parts, kRowBlock, 0, stream>>>(all);
    }
  });
  PrintRow(norm ? "rmsnorm_quantize" : "flatten_quantize", Shape(tokens, width, fp8), us,
           static_cast<double>(bytes + sizes.data + sizes.scale), 0);
}

}  // namespace

int main() {
  for (const int tokens : {1, 128, 1024, 4096}) {
    for (const bool fp8 : {false, true}) {
      Run(tokens, 7168, fp8, true);
      Run(tokens, 128 * 128, fp8, false);
    }
  }
}
