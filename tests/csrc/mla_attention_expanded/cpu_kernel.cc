// Expanded attention over sequences of every length, also where the starts make no sense.
#include "cases.h"
#include "mla_attention_expanded/kernel.h"

namespace mla::test {
namespace {

struct Sequences {
  const char* name;
  int64_t tokens;
  std::vector<int32_t> starts;
};
struct Widths {
  int64_t heads, nope, v, rope;
};

}  // namespace

void MlaAttentionExpandedCases(Runner& runner) {
  const auto table = MLA_KERNEL_TABLE(ExpandedAttention, ExpandedAttentionArgs);
  const std::vector<Sequences> all = {
      {"one token", 1, {0, 1}},
      {"no sequences", 3, {0}},
      {"mixed", 40, {0, 1, 1, 20, 37}},
      {"starts in disorder", 9, {7, 3, kLowest, kHighest, 2}},
      {"starts go back", 9, {0, 8, 3, 8}},
      {"over two tiles", 131, {1, 131}},
      {"over two splits", 530, {0, 530}},
  };
  for (const Sequences& sequences : all) {
    for (const Widths w :
         {Widths{1, 1, 1, 0}, Widths{2, 7, 5, 6}, Widths{3, 32, 48, 16}, Widths{1, 0, 3, 2}}) {
      if (w.heads == 3 && sequences.tokens > 500) continue;  // Slow; two heads take the same ways.
      for (const DType io : kFloats) {
        const std::string name = std::string("mla_attention_expanded ") + sequences.name + " " +
                                 Name(io) + " " + std::to_string(w.v);
        runner.Case<ExpandedAttentionArgs>(table, name, [=](Memory& memory) {
          const int64_t rows = sequences.tokens * w.heads;
          ExpandedAttentionArgs args = {};
          args.q_width = w.nope + 2;
          args.row_width = w.rope + 3;
          args.q = memory.Values(io, rows * args.q_width);
          args.q_rope = memory.Values(io, rows * w.rope);
          args.kv = memory.Values(io, rows * (w.nope + w.v));
          args.rows = memory.Values(io, sequences.tokens * args.row_width);
          args.query_start_loc = memory.Copy(sequences.starts);
          args.out = memory.Result(io, rows * w.v);
          args.lse = memory.Floats(rows);
          args.io_type = io;
          args.tokens = sequences.tokens;
          args.heads = w.heads;
          args.nope = w.nope;
          args.v = w.v;
          args.rope = w.rope;
          args.sequences = static_cast<int64_t>(sequences.starts.size()) - 1;
          args.softmax_scale = 0.3f;
          return args;
        });
      }
    }
  }
}

}  // namespace mla::test
