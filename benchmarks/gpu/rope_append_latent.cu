// rope_append_latent: norm of 512 columns, RoPE of 128 heads, append of bf16 rows, as the library launches it.
// Build and run: nvcc -std=c++17 -O3 -arch=sm_90 -Icsrc benchmarks/gpu/rope_append_latent.cu -o build/rope_append_latent && build/rope_append_latent
#include "graph.h"
#include "rope_append_latent/gpu_kernel.cc"

int main() {
  using namespace mla::gpu;
  constexpr int kHeads = 128, kQueryWidth = 192, kLatent = 512, kRotated = 64, kTableRows = 8192;
  for (const int tokens : {1, 16, 128, 1024, 4096}) {
    const int layers = tokens <= 128 ? 64 : (tokens == 1024 ? 8 : 4);
    const size_t q_bytes = size_t{2} * tokens * kHeads * kQueryWidth;
    const size_t kv_bytes = size_t{2} * tokens * (kLatent + kRotated);
    const size_t out_bytes = size_t{2} * tokens * kHeads * kRotated;
    Memory q(q_bytes * layers), kv_a(kv_bytes * layers), q_rope(out_bytes * layers),
        pool(kv_bytes * layers), table(size_t{4} * kTableRows * kRotated / 2), weight(2 * kLatent),
        scales(8);
    std::vector<int> numbers(std::max(tokens, layers));
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<int>(i);
    Memory ascending(numbers);
    const auto args_of = [&](int layer) {
      RopeAppendGpuArgs all = {};
      mla::RopeAppendArgs& args = all.args;
      args.q = q.at(q_bytes * layer);
      args.kv_a = kv_a.at(kv_bytes * layer);
      args.norm_weight = weight.at();
      args.cos = args.sin = table.at<float>();
      args.positions = args.slots = ascending.at<int>();
      args.q_rope = q_rope.at(out_bytes * layer);
      args.store = pool.at();
      args.io_type = args.weight_type = args.store_type = mla::DType::kBF16;
      args.tokens = tokens;
      args.heads = kHeads;
      args.q_width = kQueryWidth;
      args.q_offset = kQueryWidth - kRotated;
      args.kv_width = kLatent + kRotated;
      args.rank = kLatent;
      args.rope = kRotated;
      args.table_rows = kTableRows;
      args.slots_per_layer = tokens;
      args.layer = ascending.at<int>(4 * layer);
      args.layers = layers;
      args.scales = scales.at<float>();
      args.eps = 1e-6f;
      return all;
    };
    const int row_blocks = (tokens + kThreads / 64 - 1) / (kThreads / 64);
    const bool many = tokens >= kManyTokens;
    const int heads_at_once = kThreads / (kRotated / 8) * (many ? kManyItems : 1);
    const int parts = (kHeads + heads_at_once - 1) / heads_at_once;
    const float us = MicrosecondsInGraph(layers, [&](int layer, cudaStream_t stream) {
      RopeAppendGpuArgs all = args_of(layer);
      all.parts = parts;
      const auto kernel = many ? mla_rope_append_all_bf16_many : mla_rope_append_all_bf16_wide;
      kernel<<<row_blocks + tokens * parts, kThreads, 0, stream>>>(all);
    });
    PrintRow("rope_append_latent", "\"tokens\": " + std::to_string(tokens), us,
             2.0 * static_cast<double>(out_bytes + kv_bytes), 0);
  }
}
