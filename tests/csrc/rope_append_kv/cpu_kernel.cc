// Appends of keys and values in every order of the caches, through slots and maps that may be off.
#include "cases.h"
#include "rope_append_kv/kernel.h"

namespace mla::test {
namespace {

struct Order {
  const char* name;
  CacheForm keys, values;
};

}  // namespace

void RopeAppendKvCases(Runner& runner) {
  const auto table = MLA_KERNEL_TABLE(RopeAppendKv, RopeAppendKvArgs);
  constexpr int64_t kPages = 3, kPageSize = 16, kLayers = 2, kTableRows = 5;
  constexpr int64_t kSlots = kPages * kPageSize;
  for (const Order order :
       {Order{"flash", CacheForm::kRows, CacheForm::kRows},
        Order{"split_k", CacheForm::kPackedColumns, CacheForm::kPackedSlots},
        Order{"split_kv", CacheForm::kPackedColumns, CacheForm::kPackedSlots}}) {
    for (const DType io : kFloats) {
      for (const DType cache : kCacheTypes) {
        for (const int64_t tokens : {0, 1, 5, 37}) {
          for (const int32_t layer : {1, -1, 2}) {
            const bool packed = order.keys != CacheForm::kRows;
            const int64_t pack = 16 / Bytes(cache);
            const int64_t key_width = packed ? 2 * pack : 11, value_width = packed ? 9 : 5;
            const bool mapped = tokens % 2 == 1;
            const std::string name = std::string("rope_append_kv ") + order.name + " " + Name(io) +
                                     " " + Name(cache) + " " + std::to_string(tokens) + " layer " +
                                     std::to_string(layer);
            runner.Case<RopeAppendKvArgs>(table, name, [=](Memory& memory) {
              constexpr int64_t kQHeads = 3, kKvHeads = 2;
              RopeAppendKvArgs args = {};
              args.rope = 6;
              args.q = memory.Values(io, tokens * kQHeads * key_width);
              args.k = memory.Values(io, tokens * kKvHeads * key_width);
              args.v = memory.Values(io, tokens * kKvHeads * value_width);
              args.cos = static_cast<float*>(memory.Values(DType::kF32, kTableRows * 3));
              args.sin = static_cast<float*>(memory.Values(DType::kF32, kTableRows * 3));
              std::vector<int32_t> positions, slots, map;
              for (int32_t t = 0; t < tokens; ++t) {
                const int32_t bad[] = {-1, kLowest, static_cast<int32_t>(kSlots), kHighest};
                positions.push_back(t % 5 == 4 ? bad[t / 5 % 4] : t % 5);
                slots.push_back(t % 7 == 6 ? bad[t / 7 % 4] : t);
                map.push_back(t % 4 == 3 ? bad[t / 4 % 4] : static_cast<int32_t>(kSlots) - 1 - t);
              }
              if (mapped) {
                map.pop_back();  // So that the last slot is past its end.
                args.slot_map = memory.Copy(map);
                args.map_size = static_cast<int64_t>(map.size());
              }
              args.positions = memory.Copy(positions);
              args.slots = memory.Copy(slots);
              args.layer = memory.Copy(std::vector<int32_t>{layer});
              args.layers = kLayers;
              args.q_rotated = memory.Result(io, tokens * kQHeads * key_width);
              const auto array = [&](CacheForm form, int64_t width, int64_t run) {
                return CacheArray{memory.Values(cache, kLayers * kSlots * kKvHeads * width,
                                                Memory::Kind::kInPlace),
                                  memory.Copy(std::vector<float>{0.25f}), form, width, run};
              };
              const bool split_k = order.name == std::string("split_k");
              args.keys = array(order.keys, key_width, packed ? pack : 0);
              args.values =
                  array(order.values, value_width, packed ? (split_k ? kPageSize : pack) : 0);
              args.io_type = io;
              args.cache_type = cache;
              args.tokens = tokens;
              args.q_heads = kQHeads;
              args.kv_heads = kKvHeads;
              args.table_rows = kTableRows;
              args.num_pages = kPages;
              args.page_size = kPageSize;
              args.half_layout = layer == 1;
              return args;
            });
          }
        }
      }
    }
  }
}

}  // namespace mla::test
