// mla_attention, decode: bf16 pool of 512 + 64 columns, pages of 64 in random order.
// Build and run: nvcc -std=c++17 -O3 -gencode arch=compute_90a,code=sm_90a -Icsrc
// benchmarks/gpu/mla_attention.cu -o build/mla_attention && build/mla_attention
#include <random>

#include "mla_attention.h"

namespace {

using namespace attention;

__global__ void Fill(mla::bf16* to, size_t n, uint32_t seed) {
  const size_t stride = gridDim.x * static_cast<size_t>(blockDim.x);
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n; i += stride) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u ^ seed;
    h = (h ^ h >> 15) * 2246822519u;
    to[i] = FromFloat<mla::bf16>(static_cast<float>(h >> 8) / 8388608.0f - 1.0f);
  }
}

void Run(int heads, int context, int batch) {
  constexpr int kPage = 64;
  const int pages = context / kPage;
  const size_t pool = size_t{1} * batch * context * kWidth;
  const int layers = static_cast<int>(std::clamp<size_t>(size_t{3000000000} / pool, 2, 16));
  const size_t queries = size_t{1} * batch * heads;

  std::vector<int> order(size_t{1} * batch * pages), starts(batch + 1), lengths(batch, context),
      numbers(16);
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  for (size_t i = 0; i < starts.size(); ++i) starts[i] = static_cast<int>(i);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<int>(i);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  Memory cache(2 * pool * layers), q_latent(2 * queries * kRank), q_rope(2 * queries * kRope),
      out(2 * queries * kRank), lse(4 * queries), page_table(order), query_start_loc(starts),
      seq_lens(lengths), layer_numbers(numbers), scales(std::vector<float>{1, 1});
  Fill<<<2048, 256>>>(cache.at<mla::bf16>(), pool * layers, 1);
  Fill<<<64, 256>>>(q_latent.at<mla::bf16>(), queries * kRank, 2);
  Fill<<<64, 256>>>(q_rope.at<mla::bf16>(), queries * kRope, 3);

  mla::MlaAttentionArgs args = {};
  args.q_latent = q_latent.at();
  args.q_rope = q_rope.at();
  args.cache = cache.at();
  args.scales = scales.at<float>();
  args.page_table = page_table.at<int>();
  args.query_start_loc = query_start_loc.at<int>();
  args.seq_lens = seq_lens.at<int>();
  args.out = out.at();
  args.lse = lse.at<float>();
  args.io_type = args.cache_type = mla::DType::kBF16;
  args.tokens = args.sequences = batch;
  args.heads = heads;
  args.rank = kRank;
  args.rope = kRope;
  args.layers = layers;
  args.pages = batch * pages;
  args.page_size = kPage;
  args.max_pages = pages;
  args.softmax_scale = 0.135f;
  const TilePlan plan = PlanTiles(args, std::min(context / 64, 128));
  Memory partial(4 * queries * kRank * plan.splits), partial_lse(4 * queries * plan.splits);
  args.partial = partial.at<float>();
  args.partial_lse = partial_lse.at<float>();
  const float us = MicrosecondsInGraph(layers, [&](int layer, cudaStream_t stream) {
    args.layer = layer_numbers.at<int>(4 * layer);
    Launch(args, plan, stream);
  });
  PrintRow("mla_attention",
           "\"heads\": " + std::to_string(heads) + ", \"context\": " + std::to_string(context) +
               ", \"batch\": " + std::to_string(batch) + ", \"splits\": " +
               std::to_string(plan.splits) + ", \"rows\": " + std::to_string(plan.rows),
           us, 2.0 * (static_cast<double>(pool) + static_cast<double>(queries) * (kRank + kWidth)),
           2.0 * static_cast<double>(queries) * context * (kRank + kWidth));
}

}  // namespace

int main() {
  for (const int heads : {16, 128}) {
    for (const int context : {4096, 32768}) {
      for (const int batch : {1, 8, 32, 128}) Run(heads, context, batch);
    }
  }
}
