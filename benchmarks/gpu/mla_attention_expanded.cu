// mla_attention_expanded, prefill: bf16, 128 + 64 columns of queries and keys, 128 of values.
// Build and run: nvcc -std=c++17 -O3 -arch=sm_90 -Icsrc benchmarks/gpu/mla_attention_expanded.cu -o
// build/mla_attention_expanded && build/mla_attention_expanded
// Some rows of every result are checked against double precision.
#include <cmath>

#include "graph.h"
#include "mla_attention_expanded/gpu_kernel.cc"

namespace {

using namespace mla::gpu;

__global__ void Fill(mla::bf16* to, size_t n, uint32_t seed) {
  const size_t stride = gridDim.x * static_cast<size_t>(blockDim.x);
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n; i += stride) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u ^ seed;
    h = (h ^ h >> 15) * 2246822519u;
    h = (h ^ h >> 13) * 3266489917u;
    to[i] = FromFloat<mla::bf16>(static_cast<float>(h >> 8) / 8388608.0f - 1.0f);
  }
}

// One row a block: the values of `token` and `head` in double precision, one thread a column.
constexpr int kCheckedRows = 512;
__global__ void Exact(mla::ExpandedAttentionArgs args, int length, double* out, double* lse) {
  __shared__ double part[kValue];
  const int64_t token = blockIdx.x * 7919ll * 13 % args.tokens, head = blockIdx.x % args.heads;
  const auto* q =
      static_cast<const mla::bf16*>(args.q) + (token * args.heads + head) * args.q_width;
  const auto* q_rope =
      static_cast<const mla::bf16*>(args.q_rope) + (token * args.heads + head) * kRope;
  double total = 0, sum = 0;
  for (int64_t key = token / length * length; key <= token; ++key) {
    const auto* kv =
        static_cast<const mla::bf16*>(args.kv) + (key * args.heads + head) * (kNope + kValue);
    const auto* row = static_cast<const mla::bf16*>(args.rows) + (key + 1) * args.row_width - kRope;
    const int c = threadIdx.x;
    part[c] = static_cast<double>(ToFloat(q[c])) * ToFloat(kv[c]) +
              (c < kRope ? static_cast<double>(ToFloat(q_rope[c])) * ToFloat(row[c]) : 0.0);
    __syncthreads();
    for (int n = kValue / 2; n > 0; n /= 2) {
      if (c < n) part[c] += part[c + n];
      __syncthreads();
    }
    const double weight = exp(part[0] * args.softmax_scale);
    total += weight;
    sum += weight * ToFloat(kv[kNope + c]);
    __syncthreads();
  }
  out[blockIdx.x * kValue + threadIdx.x] = sum / total;
  if (threadIdx.x == 0) lse[blockIdx.x] = log(total);
}

__global__ void Compare(mla::ExpandedAttentionArgs args, const double* out, const double* lse,
                        double* worst) {
  const int64_t token = blockIdx.x * 7919ll * 13 % args.tokens, head = blockIdx.x % args.heads;
  const int64_t row = token * args.heads + head;
  const double value = ToFloat(static_cast<const mla::bf16*>(args.out)[row * kValue + threadIdx.x]);
  worst[blockIdx.x * kValue + threadIdx.x] = fmax(
      fabs(value - out[blockIdx.x * kValue + threadIdx.x]), fabs(args.lse[row] - lse[blockIdx.x]));
}

template <typename Shape, typename Kernel>
void Run(const char* name, Kernel kernel, int sequences, int length, int heads) {
  const int64_t tokens = int64_t{1} * sequences * length;
  const size_t rows = static_cast<size_t>(tokens) * heads;
  std::vector<int> starts;
  for (int s = 0; s <= sequences; ++s) starts.push_back(s * length);
  Memory q(2 * rows * (kNope + kRope)), q_rope(2 * rows * kRope), kv(2 * rows * (kNope + kValue)),
      latent(2 * tokens * 576), out(2 * rows * kValue), lse(4 * rows), query_start_loc(starts),
      exact(8 * kCheckedRows * kValue), exact_lse(8 * kCheckedRows),
      worst(8 * kCheckedRows * kValue);
  Fill<<<2048, 256>>>(q.at<mla::bf16>(), q.bytes() / 2, 1);
  Fill<<<2048, 256>>>(q_rope.at<mla::bf16>(), q_rope.bytes() / 2, 2);
  Fill<<<2048, 256>>>(kv.at<mla::bf16>(), kv.bytes() / 2, 3);
  Fill<<<2048, 256>>>(latent.at<mla::bf16>(), latent.bytes() / 2, 4);

  ExpandedGpuArgs all = {};
  mla::ExpandedAttentionArgs& args = all.args;
  args.q = q.at();
  args.q_rope = q_rope.at();
  args.kv = kv.at();
  args.rows = latent.at();
  args.query_start_loc = query_start_loc.at<int>();
  args.out = out.at();
  args.lse = lse.at<float>();
  args.io_type = mla::DType::kBF16;
  args.tokens = tokens;
  args.heads = heads;
  args.q_width = kNope + kRope;
  args.nope = kNope;
  args.v = kValue;
  args.rope = kRope;
  args.row_width = 576;
  args.sequences = sequences;
  args.softmax_scale = 0.0721f;
  all.slots = static_cast<int>(TileSlots(args, Shape::kRows));
  all.scale = args.softmax_scale * 1.44269504f;
  Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             Shape::kSharedBytes),
        "shared memory");
  const float us = MicrosecondsInGraph(tokens > 4096 ? 3 : 20, [&](int, cudaStream_t stream) {
    kernel<<<all.slots * heads, Shape::kThreads, Shape::kSharedBytes, stream>>>(all);
  });
  Exact<<<kCheckedRows, kValue>>>(args, length, exact.at<double>(), exact_lse.at<double>());
  Compare<<<kCheckedRows, kValue>>>(args, exact.at<double>(), exact_lse.at<double>(),
                                    worst.at<double>());
  std::vector<double> errors(kCheckedRows * kValue);
  Check(cudaMemcpy(errors.data(), worst.at(), worst.bytes(), cudaMemcpyDeviceToHost), "errors");
  double error = 0;
  for (const double e : errors) error = e <= error ? error : e;  // NaN stays.
  if (!(error < 0x1p-7)) {
    std::fprintf(stderr, "wrong by %g with %d x %d tokens\n", error, sequences, length);
    std::exit(1);
  }
  const double flop =
      static_cast<double>(heads) * sequences * length * length * (kNope + kRope + kValue);
  PrintRow(name,
           "\"sequences\": " + std::to_string(sequences) +
               ", \"length\": " + std::to_string(length) + ", \"heads\": " + std::to_string(heads) +
               ", \"tflops\": " + std::to_string(flop / us * 1e-6) +
               ", \"max_error\": " + std::to_string(error),
           us, 2.0 * static_cast<double>(rows) * (kNope + kRope + kNope + 2 * kValue), flop);
}

// As the op chooses.
void Run(int sequences, int length, int heads) {
  if (length >= kLongTokens) {
    Run<ExpandedLong>("mla_expanded_long", mla_expanded_long, sequences, length, heads);
  } else {
    Run<ExpandedShort>("mla_expanded_short", mla_expanded_short, sequences, length, heads);
  }
}

}  // namespace

int main() {
  Run(1, 8192, 128);
  Run(1, 8192, 16);
  Run(1, 2048, 128);
  Run(16, 512, 128);
  Run(7, 333, 128);
}
