// mla_attention on matrix cores against its plain kernel, over ragged sequences, masks, splits,
// page sizes, slopes of the scores and broken metadata; pages that nobody owns hold NaN, outputs
// begin as NaN. Which keys a token sees both take from gpu_plan.h: that is for the ops' own tests.
// Prints one line a failure and a count; the exit status says if there was one.
// Build and run: nvcc -std=c++17 -O3 -gencode arch=compute_90a,code=sm_90a -Icsrc
// benchmarks/gpu/mla_attention_check.cu -o build/check && build/check
#include <cmath>
#include <cstring>
#include <random>

#include "mla_attention.h"

namespace {

using namespace attention;

// Of scores whose peak hardly moves from step to step, of such whose sums must be scaled, and of
// such whose peaks are so far apart that float32 cannot hold one relative to another.
constexpr float kFlat = 0.07f, kSteep = 0.7f, kCliff = 7.0f;

// Keys of the first sequence, and as many that every thread of a merge has several batches of
// splits.
constexpr int kKeys = 700, kManyKeys = 4300;

struct Case {
  int heads, page_size, splits, rows;
  bool float8, cached_only;
  float softmax_scale;
  int fault;  // 0: none, 1: a page outside the pool, 2: a sequence too long, 3: a layer
  int keys = kKeys;
};

float FromBits(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}
uint16_t ToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <typename T>
std::vector<T> Read(const Memory& memory) {
  std::vector<T> values(memory.bytes() / sizeof(T));
  Check(cudaMemcpy(values.data(), memory.at(), memory.bytes(), cudaMemcpyDeviceToHost), "read");
  return values;
}

struct Result {
  std::vector<uint16_t> out;
  std::vector<float> lse;
};

// On the plain kernel, where `plan` says no split.
Result RunOne(MlaAttentionArgs args, const TilePlan& plan) {
  const size_t queries = args.tokens * args.heads;
  const size_t parts = plan.splits;
  Memory out(2 * queries * kRank), lse(4 * queries), partial(4 * queries * kRank * parts),
      partial_lse(4 * queries * parts);
  for (const Memory* memory : {&out, &lse, &partial, &partial_lse}) {
    Check(cudaMemset(memory->at(), 0xff, memory->bytes()), "poison");
  }
  args.out = out.at();
  args.lse = lse.at<float>();
  if (plan.splits == 0) {
    args.splits = 1;
    mla_attention_plain<<<static_cast<unsigned>(queries), kPlainThreads, kRank * sizeof(float)>>>(
        args);
  } else {
    args.partial = partial.at<float>();
    args.partial_lse = partial_lse.at<float>();
    Launch(args, plan, nullptr);
  }
  Check(cudaDeviceSynchronize(), "run");
  return {Read<uint16_t>(out), Read<float>(lse)};
}

bool Same(const Case& c, int64_t tokens, const Result& got, const Result& wanted) {
  double worst_cosine = 0, worst_lse = 0;
  const char* wrong = nullptr;
  for (int64_t row = 0; row < tokens * c.heads; ++row) {
    double dot = 0, a2 = 0, b2 = 0;
    for (int i = 0; i < kRank; ++i) {
      const float a = FromBits(got.out[row * kRank + i]), b = FromBits(wanted.out[row * kRank + i]);
      if (std::isnan(a) != std::isnan(b) && wrong == nullptr)
        wrong = "NaN where there is none, or none";
      if (std::isnan(a)) continue;
      if ((a == 0) != (b == 0) && b2 == 0 && std::isinf(wanted.lse[row])) wrong = "not 0";
      dot += double{a} * b;
      a2 += double{a} * a;
      b2 += double{b} * b;
    }
    if (a2 + b2 > 0) worst_cosine = std::max(worst_cosine, 1 - dot / std::sqrt(a2 * b2));
    if (a2 + b2 > 0 && std::abs(a2 / b2 - 1) > 1e-2) wrong = "another length";
    const float a = got.lse[row], b = wanted.lse[row];
    if (std::isnan(a) != std::isnan(b) || std::isinf(a) != std::isinf(b)) wrong = "logsumexp";
    if (std::isfinite(a) && std::isfinite(b))
      worst_lse = std::max(worst_lse, std::abs(double{a} - b));
  }
  // Two ways to round bfloat16 weights and results; the logarithm only differs by float32 sums,
  // whose terms grow with the scale.
  if (worst_cosine > 2e-5) wrong = "cosine difference";
  if (worst_lse > 1e-4 * c.softmax_scale / kFlat) wrong = "logsumexp's value";
  if (wrong != nullptr) {
    std::printf(
        "keys %d heads %d page %d splits %d rows %d float8 %d cached %d scale %.2f fault %d: %s "
        "(cosine %.2e lse %.2e)\n",
        c.keys, c.heads, c.page_size, c.splits, c.rows, c.float8, c.cached_only,
        double{c.softmax_scale}, c.fault, wrong, worst_cosine, worst_lse);
  }
  return wrong == nullptr;
}

bool RunCase(const Case& c, uint32_t seed) {
  std::mt19937 random(seed);
  const int layers = 2, layer = 1;
  const std::vector<int> rows = {1, 3, 1, 2, 0, 1, 1}, held = {c.keys, 130, 64, 1, 40, 65, 3};
  const int sequences = static_cast<int>(rows.size());
  const int max_pages = (c.keys + 4) / c.page_size + 1, pages = sequences * max_pages;
  std::vector<int> starts = {0}, table(sequences * max_pages), lengths = held;
  for (const int n : rows) starts.push_back(starts.back() + n);
  std::vector<int> order(pages);
  for (int i = 0; i < pages; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random);
  for (int i = 0; i < pages; ++i) table[i] = order[i];
  const int64_t tokens = starts.back() + 2;  // The last two are nobody's.
  const int64_t slots = int64_t{pages} * c.page_size;

  std::normal_distribution<float> normal;
  const size_t element = c.float8 ? 1 : 2;
  std::vector<uint8_t> pool(layers * slots * kWidth * element, 0xff);  // NaN in either type.
  for (int s = 0; s < sequences; ++s) {
    for (int key = 0; key < held[s]; ++key) {
      const int64_t slot =
          int64_t{table[s * max_pages + key / c.page_size]} * c.page_size + key % c.page_size;
      uint8_t* row = pool.data() + (layer * slots + slot) * kWidth * element;
      for (int i = 0; i < kWidth; ++i) {
        if (c.float8) {
          const uint32_t bits = random();
          row[i] = static_cast<uint8_t>((bits & 0x87) | (4 + bits / 256 % 5) << 3);
        } else {
          const uint16_t bits = ToBits(normal(random));
          std::memcpy(row + 2 * i, &bits, 2);
        }
      }
    }
  }
  std::vector<uint16_t> latent(tokens * c.heads * kRank), rope(tokens * c.heads * kRope);
  for (uint16_t& value : latent) value = ToBits(normal(random));
  for (uint16_t& value : rope) value = ToBits(normal(random));
  int layer_number = layer;
  if (c.fault == 1) table[0 * max_pages + 600 / c.page_size] = pages;
  if (c.fault == 2) lengths[1] = max_pages * c.page_size + 1;
  if (c.fault == 3) layer_number = layers;

  Memory cache(pool), q_latent(latent), q_rope(rope), page_table(table), query_start_loc(starts),
      seq_lens(lengths), number(std::vector<int>{layer_number}),
      scales(std::vector<float>{0.5f, 0.75f});
  MlaAttentionArgs args = {};
  args.q_latent = q_latent.at();
  args.q_rope = q_rope.at();
  args.cache = cache.at();
  args.layer = number.at<int>();
  args.scales = scales.at<float>();
  args.page_table = page_table.at<int>();
  args.query_start_loc = query_start_loc.at<int>();
  args.seq_lens = seq_lens.at<int>();
  args.io_type = mla::DType::kBF16;
  args.cache_type = c.float8 ? mla::DType::kF8E4M3FN : mla::DType::kBF16;
  args.tokens = tokens;
  args.sequences = sequences;
  args.heads = c.heads;
  args.rank = kRank;
  args.rope = kRope;
  args.layers = layers;
  args.pages = pages;
  args.page_size = c.page_size;
  args.max_pages = max_pages;
  args.softmax_scale = c.softmax_scale;
  args.cached_only = c.cached_only;
  return Same(c, tokens, RunOne(args, {c.rows, c.splits}), RunOne(args, {1, 0}));
}

}  // namespace

int main() {
  int run = 0, failed = 0;
  for (const int heads : {1, 5, 16, 17, 32, 33, 64, 100, 128}) {
    for (const bool float8 : {false, true}) {
      for (const int rows : {16, 32, 64}) {
        for (const int splits : {1, 2, 5, 12, 40}) {
          const int page_sizes[] = {64, 1, 16, 5, 128};
          const Case c = {heads,
                          page_sizes[run % 5],
                          splits,
                          rows,
                          float8,
                          run / 5 % 2 == 1,
                          run / 30 % 2 == 1 ? kSteep : kFlat,
                          run / 2 % 4};
          if (!RunCase(c, static_cast<uint32_t>(run))) ++failed;
          ++run;
        }
      }
    }
  }
  for (const int heads : {16, 128}) {
    for (const int splits : {33, 66, 130}) {
      for (const float scale : {kFlat, kSteep, kCliff}) {
        const Case c = {heads, 64, splits,   heads == 16 ? 16 : 64, false, false,
                        scale, 0,  kManyKeys};
        if (!RunCase(c, static_cast<uint32_t>(run))) ++failed;
        ++run;
      }
    }
  }
  std::printf("%d of %d cases failed\n", failed, run);
  return failed != 0;
}
