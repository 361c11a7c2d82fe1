"""Parity with transformers on every golden checkpoint, and the NNX model as a citizen of Flax."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mla_jax
from mla_jax.cache import init_cache
from mla_jax.layers import RopeState
from mla_jax.models import MLAForCausalLM, decode_step, forward, freeze, prefill
from mla_jax.paging import AttentionMetadata, PageTable, advance

KERNELS = ["reference", "native"]
CASES = [
    "deepseek_v2",
    "deepseek_v2_lite",
    "deepseek_v2_lite_bf16",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v3_tf5",
    "glm4_moe_lite",
    "kimi_k2",
    "kimi_k25",
    "moonlight",
    "youtu",
]
BOUND = 1e-4
PAGE_SIZES = (1, 16, 64)
# The reference gets one page size a case, in turn; the native kernels get all.
PAGED = [(case, "native", size) for case in CASES for size in PAGE_SIZES]
PAGED += [(case, "reference", PAGE_SIZES[i % 3]) for i, case in enumerate(CASES)]


@functools.cache
def loaded(folder, kernels):
    model, config = mla_jax.load(folder, dtype="float32", kernels=kernels, progress=False)
    assert config.dtype == "float32"
    with np.load(folder / "golden.npz") as golden:
        return freeze(model), dict(golden)


def prompts_of(golden):
    return [golden[f"prompt_{i}"] for i in range(3)]


def test_every_golden_folder_is_covered(goldens):
    assert sorted(path.name for path in goldens.iterdir() if path.is_dir()) == sorted(CASES)


@jax.jit
def forward_and_hidden(model, tokens):
    """`forward`, and the residual stream after the embedding and every layer: (layers + 1, B, S, hidden)."""
    module = model.thaw()
    meta = AttentionMetadata.dense(*tokens.shape)
    stream = [module.model.embed_tokens(tokens.reshape(-1))]
    for layer in module.model.layers:
        stream.append(layer(stream[-1], None, meta)[0])
    return forward(model, tokens), jnp.stack(stream).reshape(len(stream), *tokens.shape, -1)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_logits_and_hidden_states_are_transformers(goldens, case, kernels):
    model, golden = loaded(goldens / case, kernels)
    prompts = prompts_of(golden)
    # One batch, padded on the right with a valid token: causal, so it changes nothing before it.
    tokens = np.full((3, max(map(len, prompts))), 5, np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)] = prompt
    logits, stream = forward_and_hidden(model, tokens)
    assert logits.dtype == jnp.float32
    for i, prompt in enumerate(prompts):
        np.testing.assert_allclose(logits[i, : len(prompt)], golden[f"logits_{i}"], rtol=0, atol=BOUND)
    np.testing.assert_allclose(stream[:, 0, len(prompts[0]) - 1], golden["hidden"], rtol=0, atol=BOUND)


@functools.partial(jax.jit, static_argnames=("lengths", "page_size", "steps"))
def generate(model, tokens, lengths, page_size, steps):
    """Ragged prefill of all prompts in one batch, then greedy decoding; the pool starts as NaN."""
    longest = max(lengths) + steps + 1
    cache = init_cache(model.config, num_tokens=3 * (longest + page_size), page_size=page_size)
    cache = cache.with_kv(jnp.full_like(cache.kv, jnp.nan))
    new = jnp.array(lengths, jnp.int32)
    table = PageTable.empty(cache, 3, longest).append(jnp.zeros_like(new), new)
    meta = AttentionMetadata.extend(table, jnp.zeros_like(new), new, num_tokens=sum(lengths))
    logits, cache = prefill(model, tokens, cache, meta)

    def step(state, _):
        logits, cache, meta = state
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        after, cache = decode_step(model, token, cache, meta)
        return (after, cache, advance(meta)), (logits, token)

    _, both = jax.lax.scan(step, (logits, cache, advance(meta)), None, length=steps)
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), both)


@pytest.mark.parametrize(("case", "kernels", "page_size"), PAGED)
def test_paged_greedy_decoding_is_transformers(goldens, case, kernels, page_size):
    model, golden = loaded(goldens / case, kernels)
    prompts = prompts_of(golden)
    lengths = tuple(map(len, prompts))
    logits, tokens = generate(model, np.concatenate(prompts), lengths, page_size, golden["tokens"].shape[1])
    np.testing.assert_array_equal(tokens, golden["tokens"])
    np.testing.assert_allclose(logits, golden["decode_logits"], rtol=0, atol=BOUND)


# The NNX model -----------------------------------------------------------------------------------------

TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2, 6], [36, 0, 30, 7, 7, 8, 35, 11]], np.int32)


def test_attribute_paths_are_checkpoint_names(native_model):
    model = native_model.thaw()
    assert model.model.layers[1].self_attn.q_b_proj.weight.get_value().shape == (3 * 16, 14)
    paths = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in paths
    assert "model.layers.0.self_attn.kv_a_layernorm.weight" in paths
    assert "lm_head.weight" in paths
    assert len(paths) == len(jax.tree.leaves(native_model.params))
    # The table is one shared variable and no parameter.
    assert model.rope is model.model.layers[0].self_attn.rope is model.model.layers[1].self_attn.rope


def test_split_and_merge(native_model):
    model = native_model.thaw()
    graph, params, rope = nnx.split(model, nnx.Param, RopeState)
    again = nnx.merge(graph, params, rope)
    assert again.rope is again.model.layers[1].self_attn.rope
    run = jax.jit(forward)
    np.testing.assert_array_equal(run(freeze(again), TOKENS), run(native_model, TOKENS))


@pytest.mark.parametrize("jit", [jax.jit, nnx.jit], ids=["jax.jit", "nnx.jit"])
def test_jit_of_the_module_is_the_frozen_model(model, jit):
    np.testing.assert_array_equal(jit(forward)(model.thaw(), TOKENS), jax.jit(forward)(model, TOKENS))


def test_init_is_random_and_reproducible(config):
    a, b, c = (freeze(MLAForCausalLM.init(config, jax.random.key(seed))) for seed in (0, 0, 1))
    for left, right in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_array_equal(left, right)
    assert (np.asarray(a.params["lm_head"]["weight"]) != np.asarray(c.params["lm_head"]["weight"])).any()
    assert a.kernels == "auto"


def test_abstract_model_has_the_real_ones_shapes_and_lowers(config, native_model):
    abstract = freeze(MLAForCausalLM.abstract(config, kernels="native"))
    assert jax.tree.structure(abstract) == jax.tree.structure(native_model)
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(native_model), strict=True):
        assert isinstance(a, jax.ShapeDtypeStruct)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    cache = jax.eval_shape(lambda: init_cache(config, num_tokens=64, page_size=16))

    def step(model, cache, tokens, lens):
        table = PageTable.allocate(cache, 2, 32)
        return decode_step(
            model, tokens, cache, AttentionMetadata.extend(table, lens, lens + 1 - lens, num_tokens=2)
        )

    two = jax.ShapeDtypeStruct((2,), jnp.int32)
    text = jax.jit(step).lower(abstract, cache, two, two).as_text()
    assert "mla_jax.mla_attention" in text
    logits, _ = jax.eval_shape(step, abstract, cache, two, two)
    assert (logits.shape, logits.dtype) == ((2, config.vocab_size), jnp.float32)
    assert jax.eval_shape(forward, abstract, TOKENS).shape == (2, 8, config.vocab_size)


def test_tied_embeddings_are_the_output_head(config, native_model):
    tied = dataclasses.replace(config, tie_word_embeddings=True)
    params = {"model": native_model.params["model"]}
    untied = {**params, "lm_head": {"weight": params["model"]["embed_tokens"]["weight"]}}
    table = native_model.thaw().rope.get_value()
    a = MLAForCausalLM(tied, params, table, kernels="native")
    b = MLAForCausalLM(config, untied, table, kernels="native")
    assert a.lm_head is None
    np.testing.assert_array_equal(jax.jit(forward)(freeze(a), TOKENS), jax.jit(forward)(freeze(b), TOKENS))
    assert "lm_head" not in freeze(a).params


@pytest.mark.parametrize("kernels", KERNELS)
def test_bfloat16_model_gives_float32_logits_near_the_float32_models(config, native_model, kernels):
    low = jax.tree.map(
        lambda leaf, info: leaf.astype(info.dtype),
        native_model.params,
        freeze(MLAForCausalLM.abstract(dataclasses.replace(config, dtype="bfloat16"))).params,
    )
    assert low["model"]["layers"][1]["mlp"]["gate"]["e_score_correction_bias"].dtype == jnp.float32
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    run = jax.jit(forward)
    bf16 = dataclasses.replace(
        native_model, params=low, config=dataclasses.replace(config, dtype="bfloat16"), kernels=kernels
    )
    got = np.asarray(run(bf16, TOKENS), np.float64)
    expected = np.asarray(run(dataclasses.replace(native_model, params=exact), TOKENS), np.float64)
    assert run(bf16, TOKENS).dtype == jnp.float32
    # A router's near tie may go the other way in 8 bits, so the bound is on the direction of all logits.
    cosine = (got * expected).sum() / np.linalg.norm(got) / np.linalg.norm(expected)
    assert cosine > 0.995


# Gradients ---------------------------------------------------------------------------------------------


def loss(model, tokens):
    logits = jax.nn.log_softmax(forward(model, tokens)[:, :-1], axis=-1)
    return -jnp.mean(jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1))


def check_slope(value, params, gradient):
    """Central differences along random directions in float32: 1 % of the slope, and 2e-4 for its rounding."""
    leaves, structure = jax.tree.flatten(params)
    gradients = jax.tree.leaves(gradient)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        direction = [rng.standard_normal(x.shape).astype(x.dtype) for x in leaves]
        norm = np.sqrt(sum(np.vdot(d, d) for d in direction))
        direction = [d / norm for d in direction]
        step = np.float32(4e-3)
        ends = [
            [np.asarray(x) + t * d for x, d in zip(leaves, direction, strict=True)] for t in (step, -step)
        ]
        high, low = (float(value(jax.tree.unflatten(structure, end))) for end in ends)
        slope = (high - low) / (2 * float(step))
        exact = sum(float(np.vdot(g, d)) for g, d in zip(gradients, direction, strict=True))
        assert abs(slope - exact) <= 0.01 * abs(exact) + 2e-4, (seed, slope, exact)


def test_gradients(reference_model, native_model, config):
    """One test of two compilations, which are what costs: the reference as a frozen model, the native kernels as
    an NNX module. Finite, nonzero, equal, and the slope."""
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (4, 9)).astype(np.int32)
    run = jax.jit(jax.value_and_grad(loss))
    run_module = jax.jit(nnx.value_and_grad(loss))
    a, frozen = run(reference_model, tokens)
    b, module = run_module(native_model.thaw(), tokens)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    flat = nnx.to_flat_state(module)
    # Only parameters: the RoPE table is not trained.
    assert len(flat) == len(jax.tree.leaves(frozen.params))
    for path, variable in flat:
        name = ".".join(map(str, path))
        native = np.asarray(variable.get_value())
        reference = np.asarray(functools.reduce(lambda node, key: node[key], path, frozen.params))
        for gradient in (native, reference):
            assert np.isfinite(gradient).all(), name
            # The correction bias chooses experts and does nothing else.
            assert bool(np.abs(gradient).max() > 1e-7) != ("e_score_correction_bias" in name), name
        scale = max(float(np.abs(reference).max()), 1e-3)
        np.testing.assert_allclose(native, reference, rtol=1e-3, atol=1e-5 * scale, err_msg=name)

    def native_loss(params):
        return run_module(dataclasses.replace(native_model, params=params).thaw(), tokens)[0]

    own = {path: variable.get_value() for path, variable in flat}
    as_params = jax.tree_util.tree_map_with_path(
        lambda path, _: own[tuple(getattr(key, "key", getattr(key, "idx", None)) for key in path)],
        native_model.params,
    )
    check_slope(native_loss, native_model.params, as_params)
