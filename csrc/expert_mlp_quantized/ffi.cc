// FFI binding of mla_jax.expert_mlp_quantized: contract 3, and 4 with scratch.
#include "common/backend.h"
#include "common/ffi_checks.h"
#include "common/quantized_ffi.h"
#include "expert_mlp/scratch_ffi.h"
#include "expert_mlp_quantized/kernel.h"
#include "python/targets.h"

namespace mla {
namespace {

// Only CPUs have a kernel for it.
#if defined(MLA_GPU)
constexpr bool kTakesVnni = false;
#else
constexpr bool kTakesVnni = true;
#endif

ffi::Error ExpertMlpQuantizedCall(Backend backend, ffi::AnyBuffer x, ffi::AnyBuffer gate_up,
                                  ffi::AnyBuffer gate_up_scale, ffi::AnyBuffer down,
                                  ffi::AnyBuffer down_scale, ffi::AnyBuffer topk_ids,
                                  ffi::AnyBuffer topk_weights, int64_t gate_up_code,
                                  int64_t gate_up_block_n, int64_t gate_up_block_k,
                                  int64_t down_code, int64_t down_block_n, int64_t down_block_k,
                                  ffi::Result<ffi::AnyBuffer> y, ffi::RemainingRets scratch) {
  Checker check("mla_jax.expert_mlp_quantized");
  ExpertMlpQuantizedArgs args = {};
  int64_t experts = 0;
  int64_t down_experts = 0;
  args.gate_up = QuantizedArgument(&check, "gate_up", gate_up, gate_up_scale, gate_up_code,
                                   gate_up_block_n, gate_up_block_k, &experts, kTakesVnni);
  args.down = QuantizedArgument(&check, "down", down, down_scale, down_code, down_block_n,
                                down_block_k, &down_experts, kTakesVnni);
  ExpertMlpArgs& base = args.base;
  base.io_type = check.Type("x", x, {DType::kF32, DType::kBF16});
  check.Int32("topk_ids", topk_ids);
  check.SameType("topk_weights", topk_weights, DType::kF32, "topk_weights");
  check.SameType("y", *y, base.io_type, "x");
  check.Rank("x", x, 2);
  check.Rank("gate_up", gate_up, args.gate_up.Vnni() ? 5 : 3);
  check.Rank("down", down, args.down.Vnni() ? 5 : 3);
  check.Rank("topk_ids", topk_ids, 2);
  base.tokens = Dim(x, 0);
  base.hidden = Dim(x, 1);
  base.experts = experts;
  base.inner = args.down.k;
  base.slots = Dim(topk_ids, 1);
  check.Require(experts == down_experts && args.down.n == base.hidden, "down",
                "as many experts as 'gate_up' and the width of 'x' in rows",
                "shape " + ShapeText(down.dimensions()));
  check.Require(args.gate_up.n == 2 * base.inner && args.gate_up.k == base.hidden, "gate_up",
                "(experts, 2 * inner, hidden) for inner " + std::to_string(base.inner) +
                    " and hidden " + std::to_string(base.hidden),
                std::to_string(args.gate_up.n) + " x " + std::to_string(args.gate_up.k));
  // The up rows begin with a tile.
  check.Require(!args.gate_up.Vnni() || base.inner % kVnniRows == 0, "gate_up",
                "inner a multiple of 16 in the vnni layout", std::to_string(base.inner));
  check.Shape("topk_ids", topk_ids, {base.tokens, kAny});
  check.Shape("topk_weights", topk_weights, {base.tokens, base.slots});
  check.Shape("y", *y, {base.tokens, base.hidden});
  ExpertScratch(check, scratch, base);
  if (!check.ok()) return check.error();
  base.x = x.untyped_data();
  base.ids = static_cast<const int32_t*>(topk_ids.untyped_data());
  base.weights = static_cast<const float*>(topk_weights.untyped_data());
  base.y = y->untyped_data();
  return MLA_RUN(ExpertMlpQuantized, ExpertMlpQuantizedArgs, args, backend);
}

}  // namespace
}  // namespace mla

XLA_FFI_DEFINE_HANDLER_SYMBOL(MLA_SCRATCH_HANDLER(expert_mlp_quantized, 3, 4),
                              mla::ExpertMlpQuantizedCall,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<mla::Backend>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("gate_up_code")
                                  .Attr<int64_t>("gate_up_block_n")
                                  .Attr<int64_t>("gate_up_block_k")
                                  .Attr<int64_t>("down_code")
                                  .Attr<int64_t>("down_block_n")
                                  .Attr<int64_t>("down_block_k")
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .RemainingRets(),
                              MLA_TRAITS);
