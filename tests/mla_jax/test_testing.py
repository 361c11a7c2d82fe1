"""`assert_in_place`: the model's own steps pass it, and steps that copy or are not donated do not."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from mla_jax.cache import init_cache
from mla_jax.config import ModelConfig, RopeConfig, RouterConfig
from mla_jax.models import MLAForCausalLM, decode_step, freeze, prefill
from mla_jax.paging import AttentionMetadata, PageTable, advance
from mla_jax.testing import _copies, assert_in_place

KERNELS = ["reference", "native"]
CONFIG = ModelConfig(
    model_type="deepseek_v3",
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    q_lora_rank=16,
    kv_lora_rank=32,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    intermediate_size=32,
    moe_intermediate_size=16,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=1,
    mlp_layer_types=("dense", "sparse"),
    router=RouterConfig("sigmoid", "noaux_tc", 2, 1, True, 2.5),
    rope=RopeConfig(1e4, 8),
    rms_norm_eps=1e-6,
    latent_norm_eps=1e-6,
    max_position_embeddings=4096,
)


def plan(kernels, dtype="float32", num_tokens=2**17):
    """Shapes only: nothing of this is ever allocated, so the pool can be far larger than the activations."""
    model = freeze(MLAForCausalLM.abstract(CONFIG, kernels=kernels))
    cache = jax.eval_shape(partial(init_cache, CONFIG, num_tokens=num_tokens, page_size=16, dtype=dtype))

    def steps(cache):
        table = PageTable.allocate(cache, 2, 64)
        meta = AttentionMetadata.extend(table, jnp.zeros(2, jnp.int32), jnp.array([20, 12]), num_tokens=36)
        return meta, advance(meta)

    chunk, one = jax.eval_shape(steps, cache)
    return model, cache, chunk, one


def tokens(meta):
    return jax.ShapeDtypeStruct((meta.num_tokens,), jnp.int32)


# XLA:CPU cannot scatter into narrow floats in place, which the reference has to: it promises float32 only.
@pytest.mark.parametrize(
    ("kernels", "dtype"),
    [("reference", "float32"), ("native", "float32"), ("native", "bfloat16"), ("native", "fp8")],
)
def test_decode_updates_the_pool_in_place(kernels, dtype):
    model, cache, _, meta = plan(kernels, dtype)
    report = assert_in_place(
        jax.jit(decode_step, donate_argnames=("cache",)), model, tokens(meta), cache=cache, meta=meta
    )
    assert report.cache_bytes == cache.nbytes <= report.alias_bytes
    assert report.temp_bytes < cache.nbytes
    assert report.copies == ()


@pytest.mark.parametrize("kernels", KERNELS)
def test_prefill_updates_the_pool_in_place(kernels):
    model, cache, meta, _ = plan(kernels)
    report = assert_in_place(jax.jit(prefill, donate_argnums=2), model, tokens(meta), cache, meta)
    assert report.cache_bytes <= report.alias_bytes


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_decode_loop_carries_the_pool_in_place(kernels):
    model, cache, _, meta = plan(kernels)

    @partial(jax.jit, donate_argnames=("cache",))
    def generate(model, first, cache, meta):
        def body(state):
            i, token, cache, meta = state
            logits, cache = decode_step(model, token, cache, meta)
            return i + 1, jnp.argmax(logits, axis=-1).astype(jnp.int32), cache, advance(meta)

        return jax.lax.while_loop(lambda state: state[0] < 32, body, (0, first, cache, meta))

    report = assert_in_place(generate, model, tokens(meta), cache, meta)
    assert report.cache_bytes <= report.alias_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8"])
def test_fork_copies_one_page_and_not_the_pool(dtype):
    _, cache, _, meta = plan("native", dtype)
    one = jax.ShapeDtypeStruct((), jnp.int32)
    run = jax.jit(PageTable.fork, donate_argnums=1)
    report = assert_in_place(run, meta.page_table, cache, one, one, one)
    assert report.cache_bytes <= report.alias_bytes


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_step_without_donation_is_refused(kernels):
    model, cache, _, meta = plan(kernels)
    with pytest.raises(AssertionError, match=r"copies the cache|aliases 0 bytes, .* is it donated\?"):
        assert_in_place(jax.jit(decode_step), model, tokens(meta), cache, meta)


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_step_that_reads_the_old_pool_is_refused(kernels):
    model, cache, _, meta = plan(kernels)

    @partial(jax.jit, donate_argnames=("cache",))
    def step(model, token, cache, meta):
        logits, after = decode_step(model, token, cache, meta)
        return logits, after, jnp.max(cache.kv) - jnp.max(after.kv)

    with pytest.raises(AssertionError, match="copies the cache"):
        assert_in_place(step, model, tokens(meta), cache, meta)


def test_a_temporary_of_the_pools_size_is_refused():
    _, cache, _, _ = plan("native")

    @partial(jax.jit, donate_argnums=0)
    def step(cache):
        return cache.with_kv(jax.lax.sort(cache.kv, dimension=1))

    with pytest.raises(AssertionError, match=r"bytes of temporaries|copies the cache"):
        assert_in_place(step, cache)


UNSIGNED = {"float32": jnp.uint32, "bfloat16": jnp.uint16, "fp8": jnp.uint8}


@pytest.mark.parametrize("dtype", UNSIGNED)
@pytest.mark.parametrize("flat", [False, True])
def test_a_copy_under_another_type_or_shape_is_a_copy(dtype, flat):
    _, cache, _, _ = plan("native", dtype)

    @partial(jax.jit, donate_argnums=0)
    def step(cache):
        codes = jax.lax.bitcast_convert_type(cache.kv, UNSIGNED[dtype])
        turned = jnp.flip(codes.reshape(-1) if flat else codes, axis=0)
        return cache.with_kv(jax.lax.bitcast_convert_type(turned.reshape(codes.shape), cache.kv.dtype))

    with pytest.raises(AssertionError, match="copies the cache, or an array of its") as raised:
        assert_in_place(step, cache)
    assert "copy" in str(raised.value).splitlines()[1]


def test_a_second_pool_among_the_results_is_refused():
    _, cache, _, _ = plan("native")

    @partial(jax.jit, donate_argnums=0)
    def step(cache):
        return cache.with_kv(cache.kv.at[0, 0].set(1.0)), jnp.zeros_like(cache.kv)

    with pytest.raises(
        AssertionError, match="beside what it updates in place|copies the cache|of temporaries"
    ):
        assert_in_place(step, cache)


def instruction(result, opcode):
    return f'%a.1 = {result} {opcode}(%b), metadata={{op_name="copy"}}'


@pytest.mark.parametrize("kind", ["copy", "copy-start"])
@pytest.mark.parametrize(
    ("result", "num_bytes"),
    [
        ("f32[2,8]{1,0}", 64),
        ("u8[64]{0}", 64),
        ("bf16[4,8]{1,0}", 64),
        ("f8e4m3fn[8,8]{1,0:T(8,128)}", 64),
        ("s4[128]{0:E(4)}", 64),
        ("pred[64]{0}", 64),
        ("c64[8]{0}", 64),
        ("u16[2,4,4]{2,1,0}", 64),
        ("(u16[32]{0}, u16[32]{0}, u32[]{:S(1)})", 64),
        ("f64[]", 8),
        ("token[]", 0),
    ],
)
def test_copies_are_read_by_their_bytes(kind, result, num_bytes):
    line = instruction(result, kind)
    assert _copies(f"  {line}\n", num_bytes) == [line]
    assert _copies(line, num_bytes + 1) == []
    assert _copies(instruction(result, "fusion"), num_bytes) == []


def test_without_a_cache_there_is_nothing_to_assert():
    with pytest.raises(ValueError, match="expected a LatentCache among the arguments, got none"):
        assert_in_place(jax.jit(lambda x: x), jnp.ones(3))


def test_every_cache_among_the_arguments_counts():
    _, cache, _, _ = plan("native")

    def both(one, two):
        return one.with_kv(one.kv.at[0, 0].set(1.0)), two.with_kv(two.kv.at[0, 0].set(1.0))

    report = assert_in_place(jax.jit(both, donate_argnums=(0, 1)), cache, cache)
    assert report.cache_bytes == 2 * cache.nbytes
    with pytest.raises(AssertionError):
        assert_in_place(jax.jit(both, donate_argnums=0), cache, cache)
