// rmsnorm with and without a residual of 7168 columns, and both latents' norms: bf16, as the library launches them,
// beside a copy of the same bytes.
// Build and run: nvcc -std=c++17 -O3 -arch=sm_90 -Icsrc benchmarks/gpu/rmsnorm.cu -o build/rmsnorm && build/rmsnorm
#include "fused_qk_rmsnorm/gpu_kernel.cc"
#include "graph.h"
#include "rmsnorm/gpu_kernel.cc"

__global__ void Copy(const uint4* from, uint4* to, size_t n) {
  const size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
  if (i < n) to[i] = from[i];
}

namespace {

using namespace mla::gpu;

#define MLA_KERNEL_POINTER(name, T, threads, runs) &name,
using Kernel = void (*)(mla::RmsNormArgs);
constexpr Kernel kKernels[] = {
    MLA_HELD_ROW_KERNELS(MLA_KERNEL_POINTER, mla_rmsnorm_bf16, mla::bf16)
        MLA_TWICE_ROW_KERNELS(MLA_KERNEL_POINTER, mla_rmsnorm_bf16, mla::bf16)};

std::string Shape(int tokens, int width) {
  return "\"tokens\": " + std::to_string(tokens) + ", \"width\": " + std::to_string(width);
}

// Data of every layer are its own, as long as they are not more than a GiB.
int Layers(size_t bytes) { return static_cast<int>(std::clamp<size_t>((size_t{1} << 30) / bytes, 4, 64)); }

void Norm(int tokens, int width, bool residual) {
  const size_t bytes = size_t{2} * tokens * width;
  const int layers = Layers(bytes);
  Memory x(bytes * layers), y(bytes * layers), more(residual ? bytes * layers : 0),
      weight(size_t{2} * width * layers);
  const auto kernel = kKernels[static_cast<int>(RowKindOf(width, true))];
  const float us = MicrosecondsInGraph(layers, [&](int layer, cudaStream_t stream) {
    mla::RmsNormArgs args = {};
    args.x = x.at(bytes * layer);
    args.weight = weight.at(size_t{2} * width * layer);
    args.y = y.at(bytes * layer);
    if (residual) args.residual = args.sum = more.at(bytes * layer);
    args.io_type = args.weight_type = mla::DType::kBF16;
    args.rows = tokens;
    args.width = args.n = width;
    args.eps = 1e-6f;
    kernel<<<static_cast<int>(RowBlocks(tokens, width)), kRowBlock, 0, stream>>>(args);
  });
  PrintRow(residual ? "rmsnorm_residual" : "rmsnorm", Shape(tokens, width), us,
           (residual ? 4.0 : 2.0) * static_cast<double>(bytes), 0);
  if (residual) return;
  const float copy = MicrosecondsInGraph(layers, [&](int layer, cudaStream_t stream) {
    Copy<<<(bytes / 16 + 255) / 256, 256, 0, stream>>>(x.at<uint4>(bytes * layer),
                                                       y.at<uint4>(bytes * layer), bytes / 16);
  });
  PrintRow("copy", Shape(tokens, width), copy, 2.0 * static_cast<double>(bytes), 0);
}

void Fused(int tokens) {
  constexpr int kQuery = 1536, kLatent = 512, kRope = 64;
  const size_t q_bytes = size_t{2} * tokens * kQuery, kv_bytes = size_t{2} * tokens * (kLatent + kRope);
  const int layers = Layers(q_bytes + kv_bytes);
  Memory q(q_bytes * layers), kv(kv_bytes * layers), weight(2 * kQuery);
  const float us = MicrosecondsInGraph(layers, [&](int layer, cudaStream_t stream) {
    FusedQkRmsNormGpuArgs all = {};
    const auto bf16 = mla::DType::kBF16;
    all.args.q = {q.at(q_bytes * layer), weight.at(), bf16, kQuery, kQuery, 1e-6f};
    all.args.kv = {kv.at(kv_bytes * layer), weight.at(), bf16, kLatent + kRope, kLatent, 1e-6f};
    all.args.io_type = bf16;
    all.args.rows = tokens;
    all.q_kind = RowKindOf(kQuery, true);
    all.kv_kind = RowKindOf(kLatent, true);
    all.q_blocks = static_cast<int>(RowBlocks(tokens, kQuery));
    const auto blocks = all.q_blocks + static_cast<int>(RowBlocks(tokens, kLatent));
    mla_fused_qk_rmsnorm_bf16<<<blocks, kRowBlock, 0, stream>>>(all);
  });
  PrintRow("fused_qk_rmsnorm", "\"tokens\": " + std::to_string(tokens), us,
           4.0 * tokens * (kQuery + kLatent), 0);
}

}  // namespace

int main() {
  for (const int tokens : {1, 16, 128, 512, 1024, 4096}) {
    Norm(tokens, 7168, false);
    Norm(tokens, 7168, true);
    Fused(tokens);
  }
  for (const int width : {512, 2048, 16384, 32768}) Norm(4096, width, false);
}
