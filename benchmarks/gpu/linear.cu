// linear of MXFP4 weights, in rows and shuffled, bf16 activations, as the library launches it: up
// to 128 tokens on its own kernels, with the one that arranges tokens; beyond, a decoded copy and
// cuBLAS's product of it. Beside it cuBLAS's product of bf16 weights, where libcublas can be
// opened. Build and run: nvcc -std=c++17 -O3 -gencode arch=compute_90a,code=sm_90a -Icsrc
// benchmarks/gpu/linear.cu -o build/linear && build/linear
#include <utility>

#include "launchers.h"
// The library's behind it.
#include "cublas.h"
#include "fill.h"
#include "graph.h"
#include "linear_quantized/gpu_kernel.cc"
#include "linear_quantized/gpu_launch.cc"
#include "linear_shuffled/gpu_kernel.cc"
#include "mxfp4_dequantize/gpu_kernel.cc"
#include "mxfp4_dequantize/gpu_launch.cc"
// Both launchers have a constant of this name for themselves.
#define kProcessors kShuffledProcessors
#include "linear_shuffled/gpu_launch.cc"
#undef kProcessors

namespace mla {
namespace gpu {

const Image kImage_linear_quantized = {}, kImage_linear_shuffled = {}, kImage_mxfp4_dequantize = {};

const NamedKernel kNamedKernels[] = {MLA_NAMED_KERNEL(mla_product_e2m1_stream8),
                                     MLA_NAMED_KERNEL(mla_product_e2m1_narrow8),
                                     MLA_NAMED_KERNEL(mla_product_e2m1_wide8),
                                     MLA_NAMED_KERNEL(mla_product_e2m1_high16),
                                     MLA_NAMED_KERNEL(mla_product_e2m1_warpgroups16_split4),
                                     MLA_NAMED_KERNEL(mla_product_e2m1_warpgroups16),
                                     MLA_NAMED_KERNEL(mla_product_e2m1_warpgroups32_split4),
                                     MLA_NAMED_KERNEL(mla_product_e2m1_warpgroups32),
                                     MLA_NAMED_KERNEL(mla_product_e2m1_warpgroups64_split4),
                                     MLA_NAMED_KERNEL(mla_product_e2m1_warpgroups64),
                                     MLA_NAMED_KERNEL(mla_product_e2m1_warpgroups128_split4),
                                     MLA_NAMED_KERNEL(mla_product_e2m1_warpgroups128_split2),
                                     MLA_NAMED_KERNEL(mla_product_e2m1_warpgroups128),
                                     MLA_NAMED_KERNEL(mla_mxfp4_dequantize),
                                     MLA_NAMED_KERNEL(mla_linear_shuffled_few8),
                                     MLA_NAMED_KERNEL(mla_linear_shuffled_few16),
                                     MLA_NAMED_KERNEL(mla_linear_shuffled_arrange32),
                                     MLA_NAMED_KERNEL(mla_linear_shuffled_arrange64),
                                     MLA_NAMED_KERNEL(mla_linear_shuffled_arrange128),
                                     MLA_NAMED_KERNEL(mla_linear_shuffled_many32),
                                     MLA_NAMED_KERNEL(mla_linear_shuffled_many32_split),
                                     MLA_NAMED_KERNEL(mla_linear_shuffled_many64),
                                     MLA_NAMED_KERNEL(mla_linear_shuffled_many64_split),
                                     MLA_NAMED_KERNEL(mla_linear_shuffled_many128),
                                     MLA_NAMED_KERNEL(mla_linear_shuffled_many128_split),
                                     MLA_NAMED_KERNEL(mla_shuffled_dequantize),
                                     {nullptr, nullptr}};

}  // namespace gpu
}  // namespace mla

namespace {

// As custom_calls/linear_quantized.py and linear_shuffled.py have it: more go through a copy.
constexpr int64_t kKernelTokens = mla::kShuffledTokens;
// Of a graph; weights of bf16 repeat.
constexpr int kLayers = 16, kLayersOfMany = 4, kDenseLayers = 4;

// One product: y (tokens, n) = x (tokens, k) times a weight (n, k).
struct Product {
  int64_t n, k, tokens;
  mla::DType result;
  const mla::bf16* x;
  const uint8_t *data, *scale;
  void* y;
  uint8_t* arranged;
};

void RowMajor(const Product& product, cudaStream_t stream) {
  mla::LinearQuantizedArgs args = {};
  args.x = product.x;
  args.w.data = product.data;
  args.w.scale = product.scale;
  args.w.code = mla::Code::kE2M1;
  args.w.scale_type = mla::DType::kU8;
  args.w.n = product.n;
  args.w.k = product.k;
  args.w.block_n = 1;
  args.w.block_k = 32;
  args.y = product.y;
  args.x_type = mla::DType::kBF16;
  args.y_type = product.result;
  args.m = product.tokens;
  mla::gpu::LinearQuantized(args, {stream});
}

mla::LinearShuffledArgs ShuffledArgs(const Product& product) {
  mla::LinearShuffledArgs args = {};
  args.x = product.x;
  args.data = product.data;
  args.scale = product.scale;
  args.y = product.y;
  args.y_type = product.result;
  args.tokens = product.tokens;
  args.rows = product.n;
  args.tiles = product.n / 16;
  args.chunks = product.k / 32;
  args.scale_chunks = (args.chunks + 15) / 16;
  args.arranged = product.arranged;
  return args;
}

void Decode(const Product& product, bool shuffled, mla::bf16* values, cudaStream_t stream) {
  if (shuffled) {
    mla::LinearShuffledArgs args = ShuffledArgs(product);
    args.y = values;
    mla::gpu::ShuffledDequantize(args, {stream});
  } else {
    mla::gpu::Mxfp4Dequantize({product.data, product.scale, values, product.n * product.k / 32},
                              {stream});
  }
}

// Columns first, as cuBLAS has matrices: y' = weight' * x'.
void Multiply(const Cublas& cublas, const Product& product, const void* weight,
              cudaStream_t stream) {
  const int n = static_cast<int>(product.n), k = static_cast<int>(product.k);
  cublas.Products(stream, true, n, static_cast<int>(product.tokens), k, weight, k, 0, product.x, k,
                  0, product.y, n, 0, 1, product.result == mla::DType::kF32);
}

// A weight's shape, and operands for every product of it. Random bytes are codes and scales in
// either layout: no row nor group is padded.
class Linear {
 public:
  Linear(int64_t n, int64_t k)
      : n_(n),
        k_(k),
        data_(Data() * kLayers),
        scale_(Scales() * kLayers),
        dense_(Dense() * kDenseLayers),
        decoded_(Dense()),
        arranged_(mla::ArrangedBytes(kKernelTokens, k / 32)) {
    FillRandom(data_, ~0u, 0);
    FillRandom(scale_, 0x03030303u, 0x76767676u);
    FillRandom(dense_, kBFloats, kHalves);
  }

  void Run(const Cublas& cublas, int64_t tokens, mla::DType result) const {
    const bool many = tokens > kKernelTokens, f32 = result == mla::DType::kF32;
    const int layers = many ? kLayersOfMany : kLayers;
    const size_t in = 2 * tokens * k_, out = (f32 ? 4 : 2) * tokens * n_;
    const Memory x(in * layers), y(out * layers);
    FillRandom(x, kBFloats, kHalves);
    const auto product = [&](int layer) {
      return Product{n_,
                     k_,
                     tokens,
                     result,
                     x.at<mla::bf16>(in * layer),
                     data_.at<uint8_t>(Data() * layer),
                     scale_.at<uint8_t>(Scales() * layer),
                     y.at(out * layer),
                     arranged_.at<uint8_t>()};
    };
    const std::string shape = Shape() + ", \"tokens\": " + std::to_string(tokens) +
                              ", \"result\": \"" + (f32 ? "float32" : "bfloat16") + "\"";
    const double flop = 2.0 * static_cast<double>(tokens * n_ * k_);
    const double moved = static_cast<double>(in + out);
    if (many && !cublas.found()) return;
    for (const bool shuffled : {false, true}) {
      const float us = MicrosecondsInGraph(layers, [&](int layer, cudaStream_t stream) {
        if (many) {
          Decode(product(layer), shuffled, decoded_.at<mla::bf16>(), stream);
          Multiply(cublas, product(layer), decoded_.at(), stream);
        } else if (shuffled) {
          mla::gpu::LinearShuffled(ShuffledArgs(product(layer)), {stream});
        } else {
          RowMajor(product(layer), stream);
        }
      });
      PrintRow(shuffled ? "linear mxfp4 shuffled, kernels alone"
                        : "linear mxfp4 row_major, kernels alone",
               shape, us, static_cast<double>(Data() + Scales()) + moved, flop);
    }
    if (!cublas.found()) return;
    const float peer = MicrosecondsInGraph(layers, [&](int layer, cudaStream_t stream) {
      Multiply(cublas, product(layer), dense_.at(Dense() * (layer % kDenseLayers)), stream);
    });
    PrintRow("linear bf16 by cuBLAS", shape, peer, static_cast<double>(Dense()) + moved, flop);
  }

  // The copy that many tokens go through, by itself.
  void RunDecode() const {
    for (const bool shuffled : {false, true}) {
      const float us = MicrosecondsInGraph(kLayers, [&](int layer, cudaStream_t stream) {
        Product product = {};
        product.n = n_;
        product.k = k_;
        product.data = data_.at<uint8_t>(Data() * layer);
        product.scale = scale_.at<uint8_t>(Scales() * layer);
        Decode(product, shuffled, decoded_.at<mla::bf16>(), stream);
      });
      PrintRow(shuffled ? "mxfp4 shuffled to bf16" : "mxfp4 row_major to bf16", Shape(), us,
               static_cast<double>(Data() + Scales() + Dense()), 0);
    }
  }

 private:
  size_t Data() const { return n_ * k_ / 2; }
  size_t Scales() const { return n_ * k_ / 32; }
  size_t Dense() const { return n_ * k_ * 2; }
  std::string Shape() const {
    return "\"n\": " + std::to_string(n_) + ", \"k\": " + std::to_string(k_);
  }

  int64_t n_, k_;
  Memory data_, scale_, dense_, decoded_, arranged_;
};

}  // namespace

int main() {
  const Cublas cublas;
  for (const auto& [n, k] : {std::pair{18432, 7168}, std::pair{7168, 18432}}) {
    const Linear linear(n, k);
    for (const int tokens : {1, 8, 16, 32, 64, 128, 1024}) {
      for (const mla::DType result : {mla::DType::kF32, mla::DType::kBF16}) {
        linear.Run(cublas, tokens, result);
      }
    }
    linear.RunDecode();
  }
}
