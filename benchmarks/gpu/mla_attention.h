// Launches mla_attention's kernels by themselves, as gpu_launch.cc does, with a choice of splits.
#ifndef MLA_BENCHMARKS_GPU_MLA_ATTENTION_H_
#define MLA_BENCHMARKS_GPU_MLA_ATTENTION_H_

#include "graph.h"
#include "mla_attention/gpu_kernel.cc"

namespace attention {

using namespace mla::gpu;

struct Tiled {
  void (*kernel)(MlaAttentionArgs);
  int rows, threads, shared;
};

template <typename Shape>
Tiled Of(void (*kernel)(MlaAttentionArgs)) {
  Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             Shape::kSharedBytes),
        "shared memory");
  return {kernel, Shape::kRows, Shape::kThreads, Shape::kSharedBytes};
}

// The kernel of blocks of `rows` heads.
inline Tiled TiledOf(int rows, mla::DType cache) {
  const bool bf16 = cache == mla::DType::kBF16;
  if (rows == 16) return Of<Heads16>(bf16 ? mla_attention_16 : mla_attention_16_f8);
  if (rows == 32) return Of<Heads32>(bf16 ? mla_attention_32 : mla_attention_32_f8);
  return Of<Heads64>(bf16 ? mla_attention_64 : mla_attention_64_f8);
}

// args.partial and partial_lse have room for plan.splits.
inline void Launch(MlaAttentionArgs args, const TilePlan& plan, cudaStream_t stream) {
  const Tiled tiled = TiledOf(plan.rows, args.cache_type);
  const int64_t blocks = args.tokens * ((args.heads + tiled.rows - 1) / tiled.rows);
  args.splits = plan.splits;
  if (args.splits == 1) args.partial = args.partial_lse = nullptr;
  tiled
      .kernel<<<static_cast<unsigned>(blocks * args.splits), tiled.threads, tiled.shared, stream>>>(
          args);
  if (args.splits == 1) return;
  const int groups = MergeGroupsOf(args), in_block = kMergeThreads / groups;
  const int64_t runs = args.tokens * args.heads * kRank / kMergeRun;
  const auto merge = groups == 1              ? mla_attention_merge_few
                     : groups == kFewerGroups ? mla_attention_merge_more
                                              : mla_attention_merge_many;
  merge<<<static_cast<unsigned>((runs + in_block - 1) / in_block), kMergeThreads, 0, stream>>>(
      args);
}

}  // namespace attention

#endif  // MLA_BENCHMARKS_GPU_MLA_ATTENTION_H_
