// Bulk copies on NVIDIA's Hopper, which one thread issues, and the barriers in shared memory that
// count their bytes.
//
// NVIDIA "PTX ISA": cp.async.bulk, mbarrier, and "Asynchronous Operations".
#ifndef MLA_GPU_BULK_COPY_H_
#define MLA_GPU_BULK_COPY_H_

#include "gpu/device.h"

namespace mla {
namespace gpu {

// A phase ends when `count` arrivals and all announced bytes are there.
struct BulkBarrier {
  uint64_t state;

  MLA_DEVICE void Init(int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(&state)), "r"(count)
                 : "memory");
  }
  // An arrival that announces bytes.
  MLA_DEVICE void Expect(int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(&state)),
        "r"(bytes)
        : "memory");
  }
  MLA_DEVICE void Arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(&state))
                 : "memory");
  }
  // Until phase 0, 1, 2... has ended; `parity` is that of its number.
  MLA_DEVICE void Wait(int parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(SharedAddress(&state)),
        "r"(parity)
        : "memory");
  }
};

// Behind it and a barrier of the block, bulk copies see that barriers have been initialised.
MLA_DEVICE void ShowBarriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// A multiple of 16 bytes, from and to such addresses.
MLA_DEVICE void BulkCopy(void* shared, const void* from, int bytes, BulkBarrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(shared)),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(SharedAddress(&barrier->state))
      : "memory");
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_BULK_COPY_H_
