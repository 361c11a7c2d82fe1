// A mixture of experts on a GPU: a plan, two routed products and a weighted sum.
#include <algorithm>
#include <string>

#include "expert_mlp/gpu_shape.h"

namespace mla {
namespace gpu {

extern const Image kImage_expert_mlp;

namespace {

constexpr int64_t kSharedInts = (48 << 10) / static_cast<int64_t>(sizeof(int));
// What the plan has room for.
constexpr int64_t kMaxExperts = (kSharedInts - PlanInts(0)) / (PlanInts(1) - PlanInts(0));

ExpertPlan LayOut(const ExpertMlpArgs& args, const ProductKernel (&kernels)[2]) {
  const int64_t pairs = args.tokens * args.slots, all_tiles = ExpertTiles(args);
  ExpertPlan plan = {};
  int32_t* next = args.plan;
  const auto take = [&](int64_t count) {
    int32_t* part = next;
    next += count;
    return part;
  };
  plan.start = take(args.experts + 1);
  for (int i = 0; i < 2; ++i) {
    plan.tile_expert[i] = take(all_tiles);
    plan.tile_first[i] = take(all_tiles);
    plan.tile_tokens[i] = kernels[i].tokens;
    plan.tiles[i] = static_cast<int32_t>(pairs / kernels[i].tokens + std::min(args.experts, pairs));
  }
  plan.token = take(pairs);
  plan.position = take(pairs);
  return plan;
}

ProductKernel ChooseFor(const ExpertMlpArgs& args, ProductArgs product) {
  const int64_t pairs = args.tokens * args.slots, busy = std::min(args.experts, pairs);
  product.batches = busy;  // For the choice alone.
  return ChooseProduct(product, CeilDiv(pairs, busy));
}

}  // namespace

xla::ffi::Error RunExperts(const ExpertMlpArgs& args, ProductArgs gate_up, ProductArgs down,
                           const Stream& stream) {
  if (args.experts > kMaxExperts) {
    return xla::ffi::Error::InvalidArgument(
        "mla_jax.expert_mlp: expected at most " + std::to_string(kMaxExperts) +
        " experts on a GPU, got " + std::to_string(args.experts));
  }
  if (args.tokens == 0 || args.hidden == 0) return xla::ffi::Error::Success();
  const bool any = args.experts > 0 && args.slots > 0;
  gate_up.x = args.x;
  gate_up.x_type = gate_up.y_type = args.io_type;
  gate_up.x_stride = args.hidden;
  gate_up.y = args.gated;
  gate_up.y_stride = args.inner;
  gate_up.gated = true;
  gate_up.tokens = args.tokens;
  down.tokens = args.tokens * args.slots;
  down.x = args.gated;
  down.x_type = args.io_type;
  down.x_stride = args.inner;
  down.y = args.sums;
  down.y_type = DType::kF32;
  down.y_stride = args.hidden;

  ExpertGpuArgs all{args, {}};
  if (any) {
    const ProductKernel kernels[2] = {ChooseFor(args, gate_up), ChooseFor(args, down)};
    all.plan = LayOut(args, kernels);
    xla::ffi::Error error =
        Launch({&kImage_expert_mlp, "mla_expert_plan"}, 1, kPlanThreads,
               static_cast<size_t>(PlanInts(args.experts)) * sizeof(int), stream, &all);
    ProductArgs* products[2] = {&gate_up, &down};
    for (int i = 0; i < 2 && error.success(); ++i) {
      ProductArgs& product = *products[i];
      product.batches = 1;
      product.tile_expert = all.plan.tile_expert[i];
      product.tile_first = all.plan.tile_first[i];
      product.expert_start = all.plan.start;
      product.row_of = i == 0 ? all.plan.token : nullptr;
      product.token_blocks = all.plan.tiles[i];
      error = LaunchProduct(kernels[i], product, stream);
    }
    if (error.failure()) return error;
  } else {
    all.args.slots = 0;
  }
  const int64_t parts = CeilDiv(args.hidden, kCombineThreads);
  return Launch({&kImage_expert_mlp, "mla_expert_combine"}, args.tokens * parts, kCombineThreads, 0,
                stream, &all);
}

xla::ffi::Error ExpertMlp(const ExpertMlpArgs& args, const Stream& stream) {
  ProductArgs product = {};
  product.format = args.io_type == DType::kF32 ? WeightFormat::kF32 : WeightFormat::kBF16;
  product.batches = product.block_n = 1;
  const int64_t element = args.io_type == DType::kF32 ? 4 : 2;
  ProductArgs gate_up = product, down = product;
  gate_up.data = args.gate_up;
  gate_up.rows = 2 * args.inner;
  gate_up.k = args.hidden;
  down.data = args.down;
  down.rows = args.hidden;
  down.k = args.inner;
  for (ProductArgs* weight : {&gate_up, &down}) {
    weight->block_k = std::max<int64_t>(weight->k, 1);
    weight->expert_bytes = weight->rows * weight->k * element;
  }
  return RunExperts(args, gate_up, down, stream);
}

}  // namespace gpu
}  // namespace mla
