// Appends to slots and layers that may not exist, at positions that may be off the table.
#include "cases.h"
#include "rope_append_latent/kernel.h"

namespace mla::test {
namespace {

struct Shape {
  int64_t tokens, heads, rank, rope;
};

}  // namespace

void RopeAppendLatentCases(Runner& runner) {
  const auto table = MLA_KERNEL_TABLE(RopeAppend, RopeAppendArgs);
  constexpr int64_t kSlots = 21, kLayers = 2, kTableRows = 11;
  for (const Shape s : {Shape{1, 1, 1, 2}, Shape{0, 2, 4, 4}, Shape{9, 3, 17, 6},
                        Shape{14, 5, 64, 38}, Shape{3, 1, 5, 0}}) {
    for (const DType io : kFloats) {
      for (const DType store : kCacheTypes) {
        for (const int32_t layer : {0, 1, -1, 2, kHighest}) {
          for (const bool half : {false, true}) {
            const std::string name = std::string("rope_append_latent ") + Name(io) + " " +
                                     Name(store) + (half ? " half " : " interleaved ") +
                                     std::to_string(s.rank) + " layer " + std::to_string(layer);
            runner.Case<RopeAppendArgs>(table, name, [=](Memory& memory) {
              RopeAppendArgs args = {};
              args.q_offset = half ? 3 : 0;
              args.kv_offset = half ? 0 : 2;
              args.q_width = s.rope + args.q_offset + 1;
              args.kv_width = s.rank + s.rope + args.kv_offset;
              args.q = memory.Values(io, s.tokens * s.heads * args.q_width);
              args.kv_a = memory.Values(io, s.tokens * args.kv_width);
              args.norm_weight = memory.Values(io, s.rank);
              args.cos = static_cast<float*>(memory.Values(DType::kF32, kTableRows * s.rope / 2));
              args.sin = static_cast<float*>(memory.Values(DType::kF32, kTableRows * s.rope / 2));
              std::vector<int32_t> positions, slots;
              for (int32_t t = 0; t < s.tokens; ++t) {
                const int32_t bad[] = {-1, kLowest, static_cast<int32_t>(kSlots), kHighest};
                positions.push_back(t % 5 == 4 ? bad[t / 5 % 4] : t);
                slots.push_back(t % 3 == 2 ? bad[t / 3 % 4] : static_cast<int32_t>(kSlots) - 1 - t);
              }
              args.positions = memory.Copy(positions);
              args.slots = memory.Copy(slots);
              args.layer = memory.Copy(std::vector<int32_t>{layer});
              args.layers = kLayers;
              args.slots_per_layer = kSlots;
              args.q_rope = memory.Result(io, s.tokens * s.heads * s.rope);
              args.store = memory.Values(store, kLayers * kSlots * (s.rank + s.rope),
                                         Memory::Kind::kInPlace);
              args.scales = memory.Copy(std::vector<float>{0.25f, 0.0625f});
              args.io_type = args.weight_type = io;
              args.store_type = store;
              args.tokens = s.tokens;
              args.heads = s.heads;
              args.rank = s.rank;
              args.rope = s.rope;
              args.table_rows = kTableRows;
              args.eps = 1e-6f;
              args.half_layout = half;
              return args;
            });
          }
        }
      }
      const std::string name =
          std::string("rope_latent_rows ") + Name(io) + " " + std::to_string(s.rank);
      runner.Case<RopeAppendArgs>(table, name, [=](Memory& memory) {
        RopeAppendArgs args = {};
        args.q_width = s.rope;
        args.kv_width = s.rank + s.rope;
        args.q = memory.Values(io, s.tokens * s.heads * s.rope);
        args.kv_a = memory.Values(io, s.tokens * args.kv_width);
        args.norm_weight = memory.Values(DType::kF32, s.rank);
        args.cos = static_cast<float*>(memory.Values(DType::kF32, s.rope / 2));
        args.sin = static_cast<float*>(memory.Values(DType::kF32, s.rope / 2));
        args.positions = memory.Copy(std::vector<int32_t>(static_cast<size_t>(s.tokens), 7));
        args.q_rope = memory.Result(io, s.tokens * s.heads * s.rope);
        args.store = memory.Result(io, s.tokens * (s.rank + s.rope));
        args.io_type = args.store_type = io;
        args.weight_type = DType::kF32;
        args.slots_per_layer = args.tokens = s.tokens;
        args.layers = args.table_rows = 1;
        args.heads = s.heads;
        args.rank = s.rank;
        args.rope = s.rope;
        args.eps = 1e-6f;
        return args;
      });
    }
  }
}

}  // namespace mla::test
