// rope_append_kv: 32 query heads and 8 key heads of 128 in bf16, flash and split_k caches of bf16 and FP8, as the
// library launches it.
// Build and run: nvcc -std=c++17 -O3 -arch=sm_90 -Icsrc benchmarks/gpu/rope_append_kv.cu -o build/rope_append_kv && build/rope_append_kv
#include "graph.h"
#include "rope_append_kv/gpu_kernel.cc"

namespace {

using namespace mla::gpu;

constexpr int kHeads = 32, kKvHeads = 8, kWidth = 128, kPage = 64, kTableRows = 8192;

void Run(int tokens, bool packed, bool fp8) {
  const size_t q_bytes = size_t{2} * tokens * kHeads * kWidth;
  const size_t kv_bytes = size_t{2} * tokens * kKvHeads * kWidth;
  const int size = fp8 ? 1 : 2, slots = (tokens + kPage - 1) / kPage * kPage;
  const size_t pool_bytes = size_t(size) * slots * kKvHeads * kWidth;
  const int layers = static_cast<int>(std::clamp<size_t>((size_t{1} << 30) / q_bytes, 4, 64));
  Memory q(q_bytes * layers), k(kv_bytes * layers), v(kv_bytes * layers), out(q_bytes * layers),
      k_pool(pool_bytes * layers), v_pool(pool_bytes * layers),
      table(size_t{4} * kTableRows * kWidth / 2), scale(4);
  std::vector<int> numbers(std::max(tokens, layers));
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<int>(i);
  Memory ascending(numbers);
  const float us = MicrosecondsInGraph(layers, [&](int layer, cudaStream_t stream) {
    RopeAppendKvGpuArgs all = {};
    mla::RopeAppendKvArgs& args = all.args;
    args.q = q.at(q_bytes * layer);
    args.k = k.at(kv_bytes * layer);
    args.v = v.at(kv_bytes * layer);
    args.cos = args.sin = table.at<float>();
    args.positions = args.slots = ascending.at<int>();
    args.q_rotated = out.at(q_bytes * layer);
    const int64_t pack = 16 / size;
    using mla::CacheForm;
    args.keys = {k_pool.at(), scale.at<float>(),
                 packed ? CacheForm::kPackedColumns : CacheForm::kRows, kWidth, packed ? pack : 0};
    args.values = {v_pool.at(), scale.at<float>(),
                   packed ? CacheForm::kPackedSlots : CacheForm::kRows, kWidth,
                   packed ? kPage : 0};
    args.io_type = mla::DType::kBF16;
    args.cache_type = fp8 ? mla::DType::kF8E4M3FN : mla::DType::kBF16;
    args.tokens = tokens;
    args.q_heads = kHeads;
    args.kv_heads = kKvHeads;
    args.rope = kWidth;
    args.table_rows = kTableRows;
    args.num_pages = slots / kPage;
    args.page_size = kPage;
    args.layer = ascending.at<int>(4 * layer);
    args.layers = layers;
    all.rotated = all.key_items = all.value_items = kWidth / kWideColumns;
    all.parts = ((kHeads + 2 * kKvHeads) * all.key_items + kThreads - 1) / kThreads;
    if (fp8) {
      mla_rope_kv_bf16_f8_wide<<<tokens * all.parts, kThreads, 0, stream>>>(all);
    } else {
      mla_rope_kv_bf16_bf16_wide<<<tokens * all.parts, kThreads, 0, stream>>>(all);
    }
  });
  PrintRow("rope_append_kv",
           "\"tokens\": " + std::to_string(tokens) + ", \"layout\": \"" + (packed ? "split_k" : "flash") +
               "\", \"cache\": \"" + (fp8 ? "fp8" : "bf16") + "\"",
           us, 2.0 * q_bytes + 2.0 * kv_bytes + 2.0 * size * tokens * kKvHeads * kWidth, 0);
}

}  // namespace

int main() {
  for (const int tokens : {1, 128, 1024, 4096}) {
    for (const bool packed : {false, true}) {
      for (const bool fp8 : {false, true}) Run(tokens, packed, fp8);
    }
  }
}
