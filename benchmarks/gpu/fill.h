// Random operands.
#ifndef MLA_BENCHMARKS_GPU_FILL_H_
#define MLA_BENCHMARKS_GPU_FILL_H_

#include <cstdint>

#include "graph.h"

static __global__ void FillWords(uint32_t* to, size_t words, uint32_t mask, uint32_t base) {
  const size_t stride = gridDim.x * static_cast<size_t>(blockDim.x);
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < words;
       i += stride) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u;
    h = (h ^ h >> 15) * 2246822519u;
    to[i] = ((h ^ h >> 13) & mask) + base;
  }
}

// Words whose bits are random where `mask` has ones.
inline void FillRandom(const Memory& memory, uint32_t mask, uint32_t base) {
  FillWords<<<1024, 256>>>(memory.at<uint32_t>(), memory.bytes() / 4, mask, base);
}
// Pairs of bf16 from 0.5 to 2, of either sign.
constexpr uint32_t kBFloats = 0x80ff80ffu, kHalves = 0x3f003f00u;

#endif  // MLA_BENCHMARKS_GPU_FILL_H_
