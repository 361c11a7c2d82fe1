// What the chip can do: reading, copying, and an empty launch. The matrix rate comes from XLA, in run.py.
// Build and run: nvcc -std=c++17 -O3 -arch=sm_90 -Icsrc benchmarks/gpu/ceilings.cu -o build/ceilings && build/ceilings
#include <cstdint>

#include "graph.h"

namespace {

__global__ void Nothing() {}

__global__ void Copy(const uint4* from, uint4* to, size_t n) {
  const size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
  if (i < n) to[i] = from[i];
}

__global__ void Read(const uint4* from, uint4* to, size_t n) {
  uint4 sum = {0, 0, 0, 0};
  const size_t stride = gridDim.x * static_cast<size_t>(blockDim.x);
#pragma unroll 8
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n; i += stride) {
    const uint4 v = from[i];
    sum.x ^= v.x;
    sum.y ^= v.y;
    sum.z ^= v.z;
    sum.w ^= v.w;
  }
  if ((sum.x ^ sum.y ^ sum.z ^ sum.w) == 12345) to[0] = sum;
}

}  // namespace

int main() {
  constexpr size_t kBytes = size_t{1} << 30, kChunks = kBytes / 16;
  Memory from(kBytes), to(kBytes);
  PrintRow("launch", "\"what\": \"empty\"",
           MicrosecondsInGraph(200, [](int, cudaStream_t s) { Nothing<<<1, 32, 0, s>>>(); }), 0, 0);
  PrintRow("copy", "\"what\": \"1 GiB to 1 GiB\"", MicrosecondsInGraph(4, [&](int, cudaStream_t s) {
             Copy<<<kChunks / 256, 256, 0, s>>>(from.at<uint4>(), to.at<uint4>(), kChunks);
           }), 2.0 * kBytes, 0);
  PrintRow("read", "\"what\": \"1 GiB\"", MicrosecondsInGraph(4, [&](int, cudaStream_t s) {
             Read<<<132 * 16, 512, 0, s>>>(from.at<uint4>(), to.at<uint4>(), kChunks);
           }), kBytes, 0);
}
