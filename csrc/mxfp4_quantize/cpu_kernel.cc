// Quantises rows group by group; a block of rows a task.
#include "mxfp4_quantize/cpu_kernel.h"

#include "common/mxfp4.h"
#include "common/tasks.h"

namespace mla {
namespace MLA_ISA {
namespace {

// Bits of n values as f32, filled up with zeros to a whole group.
inline void GroupBits(const Mxfp4QuantizeArgs& args, int64_t at, int64_t n, uint32_t* bits) {
  if (args.x_type == DType::kF32) {
    __builtin_memcpy(bits, static_cast<const float*>(args.x) + at,
                     static_cast<size_t>(n) * sizeof(float));
  } else {
    const bf16* x = static_cast<const bf16*>(args.x) + at;
    for (int64_t i = 0; i < n; ++i) bits[i] = static_cast<uint32_t>(x[i].bits) << 16;
  }
  for (int64_t i = n; i < kMxfp4Group; ++i) bits[i] = 0;
}

}  // namespace

void Mxfp4QuantizeRows(const Mxfp4QuantizeArgs& args, const Executor& executor) {
  const int64_t groups = CeilDiv(args.k, kMxfp4Group);
  const int64_t block = Max64(1, 4096 / Max64(1, args.k));
  const double cost = static_cast<double>(args.rows) * static_cast<double>(args.k) * 0.5;
  ForEach(executor, CeilDiv(args.rows, block), cost, [&](int64_t task) {
    alignas(64) uint32_t bits[kMxfp4Group];
    uint8_t packed[kMxfp4Group / 2];
    const int64_t end = Min(args.rows, (task + 1) * block);
    for (int64_t row = task * block; row < end; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t n = Min(kMxfp4Group, args.k - g * kMxfp4Group);
        GroupBits(args, row * args.k + g * kMxfp4Group, n, bits);
        args.scale[row * groups + g] =
            Mxfp4Quantize(bits, static_cast<Rounding>(args.rounding), packed);
        __builtin_memcpy(args.data + (row * args.k + g * kMxfp4Group) / 2, packed,
                         static_cast<size_t>(n / 2));
      }
    }
  });
}

}  // namespace MLA_ISA
}  // namespace mla
