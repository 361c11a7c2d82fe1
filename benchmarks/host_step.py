"""Host time of one jitted call with the weights of a 61-layer DeepSeek-V3, by how the model is handed over.

The weights have the real tree (names, layers, leaves) in tiny shapes, and the program does nothing with
them, so that what is measured is flattening, dispatch and argument handling. Also compiles the real
shapes with abstract weights. Usage: python benchmarks/host_step.py
"""

import statistics
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

import mla_jax
from mla_jax.config import RopeConfig, RouterConfig, YarnConfig

V3 = mla_jax.ModelConfig(
    model_type="deepseek_v3",
    vocab_size=129280,
    hidden_size=7168,
    num_hidden_layers=61,
    num_attention_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    n_routed_experts=256,
    num_experts_per_tok=8,
    n_shared_experts=1,
    mlp_layer_types=("dense",) * 3 + ("sparse",) * 58,
    router=RouterConfig("sigmoid", "noaux_tc", 8, 4, True, 2.5),
    rope=RopeConfig(1e4, 64, "interleaved", YarnConfig(40.0, 4096, mscale=1.0, mscale_all_dim=1.0)),
    rms_norm_eps=1e-6,
    latent_norm_eps=1e-6,
    max_position_embeddings=163840,
    dtype="bfloat16",
)

TINY = replace(
    V3,
    vocab_size=64,
    hidden_size=32,
    num_attention_heads=2,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=16,
    qk_rope_head_dim=16,
    v_head_dim=16,
    intermediate_size=32,
    moe_intermediate_size=16,
    n_routed_experts=16,
    num_experts_per_tok=2,
    rope=RopeConfig(1e4, 16),
    max_position_embeddings=256,
)


def milliseconds(call, repeats: int = 50) -> float:
    """Median time of `call()` in milliseconds."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def host_times() -> None:
    """Prints milliseconds a call for each way of handing the model over."""
    model = mla_jax.MLAForCausalLM.init(TINY, jax.random.key(0))
    frozen = mla_jax.freeze(model)
    tokens = jnp.zeros((1,), jnp.int32)
    print(f"61 layers, {len(jax.tree.leaves(frozen))} weight leaves; host time a call, median of 50, ms")

    def nothing(model, tokens):
        return tokens

    plain = jax.jit(nothing, keep_unused=True)
    print(f"  jax.jit(FrozenModel)   {milliseconds(lambda: plain(frozen, tokens)):7.3f}")
    print(f"  jax.jit(nnx module)    {milliseconds(lambda: plain(model, tokens)):7.3f}")
    through_nnx = nnx.jit(nothing)
    print(f"  nnx.jit(nnx module)    {milliseconds(lambda: through_nnx(model, tokens)):7.3f}")

    cache = mla_jax.init_cache(TINY, num_tokens=64)
    table = mla_jax.PageTable.allocate(cache, 1, 64)
    meta = mla_jax.advance(
        mla_jax.AttentionMetadata.extend(table, jnp.ones(1, jnp.int32), jnp.ones(1, jnp.int32))
    )
    step = jax.jit(mla_jax.decode_step, donate_argnames=("cache",))
    state = {"cache": cache}

    def decode() -> None:
        logits, state["cache"] = step(frozen, tokens, cache=state["cache"], meta=meta)
        logits.block_until_ready()

    print(f"  whole tiny decode step {milliseconds(decode):7.3f}  (kernels included)")


def compile_times() -> None:
    """Prints trace, lowering and compile seconds of the real shapes, without data."""
    model = mla_jax.freeze(mla_jax.MLAForCausalLM.abstract(V3))
    pool = lambda: mla_jax.init_cache(V3, num_tokens=65536, page_size=64)  # noqa: E731
    cache = jax.eval_shape(pool)
    print("DeepSeek-V3, 61 layers, abstract weights, seconds")
    for name, function, rows, tokens in (
        ("decode, 8 sequences", mla_jax.decode_step, 8, 8),
        ("prefill, 512 tokens", mla_jax.prefill, 1, 512),
    ):
        table = jax.eval_shape(lambda rows=rows: mla_jax.PageTable.empty(pool(), rows, 4096))
        lengths = jax.ShapeDtypeStruct((rows,), jnp.int32)

        def step(model, ids, cache, table, held, new, function=function, tokens=tokens):
            meta = mla_jax.AttentionMetadata.extend(table, held, new, num_tokens=tokens)
            return function(model, ids, cache, meta)

        ids = jax.ShapeDtypeStruct((tokens,), jnp.int32)
        start = time.perf_counter()
        traced = jax.jit(step, donate_argnames=("cache",)).trace(model, ids, cache, table, lengths, lengths)
        at_trace = time.perf_counter()
        lowered = traced.lower()
        at_lower = time.perf_counter()
        lowered.compile()
        end = time.perf_counter()
        print(
            f"  {name}: trace {at_trace - start:.1f}, lower {at_lower - at_trace:.1f}, "
            f"compile {end - at_lower:.1f}, together {end - start:.1f}"
        )


if __name__ == "__main__":
    host_times()
    compile_times()
