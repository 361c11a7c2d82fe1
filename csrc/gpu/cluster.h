// Blocks of a cluster on NVIDIA's Hopper, which reach each other's shared memory.
//
// NVIDIA "PTX ISA", "Cluster Dimension", mapa, ld.shared::cluster and barrier.cluster.
#ifndef MLA_GPU_CLUSTER_H_
#define MLA_GPU_CLUSTER_H_

#include "gpu/device.h"

namespace mla {
namespace gpu {

// Of the block in its cluster of `blocks`.
template <int blocks>
MLA_DEVICE int ClusterRank() {
  return blocks == 1 ? 0 : BlockX() % blocks;
}

// A barrier of all threads of the cluster, behind which everybody sees what was stored before.
template <int blocks>
MLA_DEVICE void ClusterBarrier() {
  if constexpr (blocks == 1) {
    Barrier();
  } else {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
  }
}

// Behind it no block of the cluster reads another's shared memory any more.
template <int blocks>
MLA_DEVICE void ClusterEnd() {
  if constexpr (blocks > 1) {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::
                     : "memory");
  }
}

// What block `rank` has where `at` is in this block's shared memory.
template <int blocks>
MLA_DEVICE float ReadShared(const float* at, int rank) {
  if constexpr (blocks == 1) {
    return *at;
  } else {
    float value;
    asm volatile(
        "{\n.reg .u32 there;\nmapa.shared::cluster.u32 there, %1, %2;\n"
        "ld.shared::cluster.f32 %0, [there];\n}"
        : "=f"(value)
        : "r"(SharedAddress(at)), "r"(rank)
        : "memory");
    return value;
  }
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_CLUSTER_H_
