// Rope, norm and append: a few tokens a task, f32 inside, one rounding into each output.
#include "common/cache_row.h"
#include "common/denormals.h"
#include "common/norm.h"
#include "common/rope.h"
#include "common/scratch.h"
#include "common/tasks.h"
#include "rope_append_latent/kernel.h"

namespace mla {
namespace MLA_ISA {
namespace {

void StoreRow(const RopeAppendArgs& args, int64_t row, const float* v) {
  const int64_t width = args.rank + args.rope;
  if (args.store_type == DType::kF8E4M3FN) {
    uint8_t* dst = static_cast<uint8_t*>(args.store) + row * width;
    EncodeF8Row(v, args.rank, 1.0f / args.scales[0], dst);
    EncodeF8Row(v + args.rank, args.rope, 1.0f / args.scales[1], dst + args.rank);
  } else {
    WriteRow(args.store, args.store_type, row * width, width, v);
  }
}

}  // namespace

void RopeAppend(const RopeAppendArgs& args, const Executor& executor) {
  constexpr int64_t kTokens = 4;
  const int64_t width = args.rank + args.rope;
  const int64_t layer = args.layer != nullptr ? *args.layer : 0;
  const bool layer_exists = layer >= 0 && layer < args.layers;
  const double cost =
      static_cast<double>(args.tokens) * static_cast<double>(args.heads * args.rope + width) * 0.5;
  ForEach(executor, CeilDiv(args.tokens, kTokens), cost, [&](int64_t task) {
    const KeepDenormals guard;
    auto* row = static_cast<float*>(Scratch(kTaskScratch, (2 * width + 64) * 4));
    float* weight = row + width;
    ReadRow(args.norm_weight, args.weight_type, 0, args.rank, weight);
    const int64_t end = Min(args.tokens, (task + 1) * kTokens);
    for (int64_t t = task * kTokens; t < end; ++t) {
      const int64_t position = Clamp(args.positions[t], 0, args.table_rows - 1);
      const float* cos = args.cos + position * (args.rope / 2);
      const float* sin = args.sin + position * (args.rope / 2);
      RotateRows(args.io_type, args.q, t * args.heads * args.q_width + args.q_offset, args.q_width,
                 args.q_rope, t * args.heads * args.rope, args.rope, args.heads, cos, sin,
                 args.rope, args.half_layout);
      // The slot is checked inside its layer: a bad one must not land in a neighbouring layer.
      const int64_t slot = args.slots != nullptr ? args.slots[t] : t;
      if (slot < 0 || slot >= args.slots_per_layer || !layer_exists) continue;
      ReadRow(args.kv_a, args.io_type, t * args.kv_width + args.kv_offset, width, row);
      ScaleRow(row, InverseRms(row, args.rank, args.eps), weight, args.rank);
      float* key = row + args.rank;
      Rotate(Heads<float>{key, key, 1, 0, 0}, cos, sin, args.rope, args.half_layout);
      StoreRow(args, layer * args.slots_per_layer + slot, row);
    }
  });
}

}  // namespace MLA_ISA
}  // namespace mla
