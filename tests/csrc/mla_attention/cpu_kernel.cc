// Paged attention over metadata that a scheduler could get wrong in every way.
#include "cases.h"
#include "mla_attention/kernel.h"

namespace mla::test {
namespace {

// Everything in it is data: only the sizes of the arrays are promised.
struct Metadata {
  const char* name;
  int64_t tokens, pages, page_size, max_pages;
  std::vector<int32_t> page_table, query_start_loc, seq_lens;
};

// Pages 0, 1, 2 ... in an order of their own.
std::vector<int32_t> Pages(int64_t count) {
  std::vector<int32_t> pages;
  for (int64_t i = 0; i < count; ++i) pages.push_back(static_cast<int32_t>((i * 7 + 3) % count));
  return pages;
}

std::vector<Metadata> AllMetadata() {
  return {
      {"one key", 1, 1, 1, 1, {0}, {0, 1}, {1}},
      {"no sequences", 3, 2, 4, 2, {}, {0}, {}},
      {"no pages a sequence", 2, 1, 4, 0, {}, {0, 1, 2}, {0, 5}},
      {"a pool without pages", 2, 0, 4, 1, {0, -1}, {0, 1, 2}, {1, 3}},
      {"mixed", 9, 7, 3, 3, {4, 1, 0, 2, 2, 2, 6, 5, 3, 0, 0, 0}, {0, 1, 1, 6, 9}, {8, 4, 9, 3}},
      {"longer than the table", 4, 3, 5, 2, {2, 0, 1, 1}, {0, 2, 4}, {11, kHighest}},
      {"ids out of range",
       5,
       3,
       2,
       3,
       {0, -1, 2, kHighest, 1, 0, kLowest, 0, 3, 1, 2, 3, 0, 1, 3},
       {0, 1, 2, 3, 4, 5},
       {5, 6, 3, 4, 5}},
      {"lengths below the queries", 6, 4, 4, 1, {0, 1, 2}, {0, 3, 4, 6}, {1, 0, -7}},
      {"rows of nobody", 12, 4, 4, 1, {0, 1, 2}, {2, 3, 5, 8}, {4, 2, 3}},
      {"starts in disorder", 8, 4, 4, 1, {0, 1, 2, 3}, {6, 2, kLowest, kHighest, 3}, {4, 4, 4, 4}},
      {"starts go back", 8, 4, 4, 1, {0, 1, 2}, {0, 8, 3, 8}, {4, 3, 2}},
      {"long decode", 2, 24, 64, 12, Pages(24), {0, 1, 2}, {700, 513}},
      {"long decode, bad page",
       1,
       40,
       16,
       40,
       [] {
         std::vector<int32_t> pages = Pages(40);
         pages[37] = 40;
         return pages;
       }(),
       {0, 1},
       {640}},
      {"chunk over two splits", 70, 75, 8, 75, Pages(75), {0, 70}, {600}},
      {"many sequences", 40, 40, 1, 1, Pages(40),
       [] {
         std::vector<int32_t> starts;
         for (int32_t i = 0; i <= 40; ++i) starts.push_back(i);
         return starts;
       }(),
       std::vector<int32_t>(40, 1)},
  };
}

struct Widths {
  int64_t heads, rank, rope;
};

}  // namespace

void MlaAttentionCases(Runner& runner) {
  const auto table = MLA_KERNEL_TABLE(MlaAttention, MlaAttentionArgs);
  constexpr int64_t kLayers = 2;
  for (const Metadata& meta : AllMetadata()) {
    for (const Widths w :
         {Widths{1, 1, 1}, Widths{3, 17, 6}, Widths{16, 33, 8}, Widths{18, 64, 32}}) {
      if (w.heads >= 16 && meta.tokens > 40) continue;  // As many tiles, with fewer heads, above.
      for (const DType io : kFloats) {
        for (const DType cache : kCacheTypes) {
          for (const int32_t layer : {1, -1, 2}) {
            if (layer != 1 && (w.heads != 3 || meta.tokens > 40)) continue;
            for (const bool cached_only : {false, true}) {
              if (cached_only && w.heads >= 16) continue;
              const std::string name = std::string("mla_attention ") + meta.name + " " + Name(io) +
                                       " " + Name(cache) + (cached_only ? " cached " : " ") +
                                       std::to_string(w.rank) + " layer " + std::to_string(layer);
              runner.Case<MlaAttentionArgs>(table, name, [=](Memory& memory) {
                MlaAttentionArgs args = {};
                args.q_latent = memory.Values(io, meta.tokens * w.heads * w.rank);
                args.q_rope = memory.Values(io, meta.tokens * w.heads * w.rope);
                args.cache =
                    memory.Values(cache, kLayers * meta.pages * meta.page_size * (w.rank + w.rope));
                args.layer = memory.Copy(std::vector<int32_t>{layer});
                args.scales = memory.Copy(std::vector<float>{0.01f, 0.005f});
                args.page_table = memory.Copy(meta.page_table);
                args.query_start_loc = memory.Copy(meta.query_start_loc);
                args.seq_lens = memory.Copy(meta.seq_lens);
                args.out = memory.Result(io, meta.tokens * w.heads * w.rank);
                args.lse = memory.Floats(meta.tokens * w.heads);
                args.io_type = io;
                args.cache_type = cache;
                args.tokens = meta.tokens;
                args.heads = w.heads;
                args.rank = w.rank;
                args.rope = w.rope;
                args.layers = kLayers;
                args.pages = meta.pages;
                args.page_size = meta.page_size;
                args.sequences = static_cast<int64_t>(meta.seq_lens.size());
                args.max_pages = meta.max_pages;
                args.softmax_scale = 0.3f;
                args.cached_only = cached_only;
                args.splits = 1;
                return args;
              });
            }
          }
        }
      }
    }
  }
}

}  // namespace mla::test
