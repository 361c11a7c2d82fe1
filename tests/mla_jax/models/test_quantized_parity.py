"""Quantised checkpoints: transformers' numbers from the dequantised weights, while the weights stay quantised."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mla_jax
from custom_calls.quantized_tensor import QuantizedTensor, dequantize, in_rows
from mla_jax import LLM, SamplingParams
from mla_jax.cache import init_cache
from mla_jax.errors import ConfigError
from mla_jax.layers import RopeState
from mla_jax.models import decode_step, forward, freeze, prefill
from mla_jax.paging import AttentionMetadata, PageTable, advance

GOLDENS = Path(__file__).resolve().parents[2] / "goldens_quantized"
BOUND = 1e-4
KERNELS = ["reference", "native"]

# Containers of kv_b_proj, gate_up_proj of the experts and the dense gate_proj; None is plain.
CONTAINERS = {
    "ct_int4": (None, "int4_group", None),
    "ct_mxfp4": (None, "mxfp4", None),
    "fp8_block": ("fp8_block", "fp8_block", "fp8_block"),
    "fp8_tensor": ("fp8_tensor", "fp8_channel", "fp8_tensor"),
    "fp8_ue8m0": ("fp8_block", "fp8_block", "fp8_block"),
    "quark_mixed": ("fp8_channel", "mxfp4", "mxfp4"),
    "quark_mxfp4": (None, "mxfp4", "mxfp4"),
    "quark_mxfp4_attention": ("mxfp4", "mxfp4", "mxfp4"),
}
CASES = sorted(CONTAINERS)


@functools.cache
def loaded(case, kernels="native", dtype="float32", absorb_weights="auto"):
    model, config = mla_jax.load(
        GOLDENS / case, dtype=dtype, kernels=kernels, absorb_weights=absorb_weights, progress=False
    )
    assert config.dtype == dtype
    return freeze(model)


@functools.cache
def golden(case):
    with np.load(GOLDENS / case / "golden.npz") as stored:
        return dict(stored)


def prompts_of(case):
    return [golden(case)[f"prompt_{i}"] for i in range(3)]


# Compiling is what these tests cost, and half of that are optimisations.
FAST = {"xla_backend_optimization_level": 0}
run_forward = jax.jit(forward, compiler_options=FAST)


def logits_of(model, case):
    """Of the three prompts, in one batch that is padded on the right with a valid token."""
    prompts = prompts_of(case)
    tokens = np.full((3, max(map(len, prompts))), 5, np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)] = prompt
    logits = run_forward(model, tokens)
    assert logits.dtype == jnp.float32
    return [np.asarray(logits[i, : len(prompt)]) for i, prompt in enumerate(prompts)]


def cosine(got, case):
    got = np.concatenate(got).astype(np.float64)
    expected = np.concatenate([golden(case)[f"logits_{i}"] for i in range(3)]).astype(np.float64)
    return (got * expected).sum() / np.linalg.norm(got) / np.linalg.norm(expected)


def weights_of(params):
    """kv_b_proj, the experts' gate_up_proj, the dense gate_proj."""
    dense, sparse = params["model"]["layers"]
    return (
        sparse["self_attn"]["kv_b_proj"]["weight"],
        sparse["mlp"]["experts"]["gate_up_proj"],
        dense["mlp"]["gate_proj"]["weight"],
    )


def is_quantized(node):
    return isinstance(node, QuantizedTensor)


def test_every_golden_folder_is_covered():
    assert sorted(path.name for path in GOLDENS.iterdir()) == CASES


@pytest.mark.parametrize("case", CASES)
def test_weights_stay_quantised(case):
    params = loaded(case).params
    found = [getattr(weight, "container", None) for weight in weights_of(params)]
    assert tuple(found) == CONTAINERS[case]
    # Heads, embeddings and routers are never quantised.
    assert not any(
        map(is_quantized, (params["lm_head"]["weight"], params["model"]["embed_tokens"]["weight"]))
    )
    assert not is_quantized(params["model"]["layers"][1]["mlp"]["gate"]["weight"])


@functools.partial(jax.jit, static_argnames=("lengths", "steps"), compiler_options=FAST)
def generate(model, tokens, lengths, steps):
    """Ragged prefill of all prompts in one batch, then greedy decoding; the pool starts as NaN."""
    longest = max(lengths) + steps + 1
    cache = init_cache(model.config, num_tokens=3 * (longest + 16), page_size=16)
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


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_logits_are_transformers(case, kernels):
    for i, logits in enumerate(logits_of(loaded(case, kernels), case)):
        np.testing.assert_allclose(logits, golden(case)[f"logits_{i}"], rtol=0, atol=BOUND)


# The reference: one case a family of containers; the others' are in the test above.
@pytest.mark.parametrize(
    ("case", "kernels"),
    [(case, "native") for case in CASES]
    + [(case, "reference") for case in ("ct_int4", "fp8_block", "quark_mixed")],
)
def test_paged_greedy_decoding_is_transformers(case, kernels):
    prompts, expected = prompts_of(case), golden(case)
    lengths = tuple(map(len, prompts))
    logits, tokens = generate(
        loaded(case, kernels), np.concatenate(prompts), lengths, expected["tokens"].shape[1]
    )
    np.testing.assert_array_equal(tokens, expected["tokens"])
    np.testing.assert_allclose(logits, expected["decode_logits"], rtol=0, atol=BOUND)


@pytest.mark.parametrize(
    ("case", "kernels"),
    [(case, "native") for case in CASES] + [("quark_mixed", "reference")],
)
def test_bfloat16_is_near(case, kernels):
    model = loaded(case, kernels, "bfloat16")
    # The codes and scales are the same ones, whatever the model computes in.
    for low, high in zip(weights_of(model.params), weights_of(loaded(case).params), strict=True):
        if is_quantized(low):
            assert (low.data.dtype, low.scale.dtype) == (high.data.dtype, high.scale.dtype)
            rows = in_rows(low)
            np.testing.assert_array_equal(rows.data, high.data)
            np.testing.assert_array_equal(rows.scale, high.scale)
        else:
            assert (low.dtype, high.dtype) == (jnp.bfloat16, jnp.float32)
    # A near tie of a router may go the other way in 8 bits: the bound is on the direction of all logits.
    assert cosine(logits_of(model, case), case) > 0.98


@pytest.mark.parametrize("case", ["quark_mixed", "fp8_block"])
def test_split_merge_freeze_and_thaw_keep_the_tensors(case):
    frozen = loaded(case)
    module = frozen.thaw()
    graph, params, rope = nnx.split(module, nnx.Param, RopeState)
    again = freeze(nnx.merge(graph, params, rope))
    assert jax.tree.structure(again) == jax.tree.structure(frozen) == jax.tree.structure(freeze(module))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(frozen), strict=True):
        assert a is b
    assert tuple(getattr(w, "container", None) for w in weights_of(again.params)) == CONTAINERS[case]
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    assert any(is_quantized(variable.get_value()) for _, variable in flat)


# absorb_weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["quark_mxfp4_attention", "fp8_block"])
def test_absorbed_weights_as_plain_numbers_are_the_same_numbers(case):
    own, other = (loaded(case, absorb_weights=choice) for choice in ("auto", "bfloat16"))
    kv_b, wide = (weights_of(model.params)[0] for model in (own, other))
    assert not is_quantized(wide)
    assert wide.dtype == jnp.float32  # the compute dtype
    np.testing.assert_array_equal(wide, dequantize(kv_b))
    assert (
        weights_of(loaded(case, dtype="bfloat16", absorb_weights="bfloat16").params)[0].dtype == jnp.bfloat16
    )
    # Nothing else has changed.
    assert weights_of(other.params)[1].container == weights_of(own.params)[1].container
    for i, logits in enumerate(logits_of(other, case)):
        np.testing.assert_allclose(logits, golden(case)[f"logits_{i}"], rtol=0, atol=BOUND)


@pytest.mark.parametrize(
    ("case", "choice", "container"),
    [
        ("fp8_ue8m0", "mxfp4", "mxfp4"),
        ("ct_int4", "mxfp4", "mxfp4"),
        ("quark_mxfp4_attention", "fp8", "fp8_channel"),
        ("ct_int4", "fp8", "fp8_channel"),
    ],
)
def test_absorbed_weights_requantised(case, choice, container):
    model = loaded(case, absorb_weights=choice)
    for layer in model.params["model"]["layers"]:
        assert layer["self_attn"]["kv_b_proj"]["weight"].container == container
    logits = logits_of(model, case)
    assert np.isfinite(np.concatenate(logits)).all()
    assert cosine(logits, case) > (0.99 if choice == "fp8" else 0.7)


def test_absorbed_weights_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match="'mxfp4' needs kv_lora_rank to be a multiple of 32, got 40"):
        loaded("fp8_block", absorb_weights="mxfp4")
    for choice in ("int4", None, "AUTO", 1):
        with pytest.raises(
            ConfigError, match="absorb_weights: expected one of auto, bfloat16, mxfp4, fp8, got"
        ):
            mla_jax.load(tmp_path / "none", absorb_weights=choice)  # before any file


def test_llm_gives_the_golden_tokens():
    case = "quark_mxfp4_attention"
    llm = LLM(GOLDENS / case, dtype="float32", max_model_len=32, max_num_seqs=1, max_total_tokens=32)
    params = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
    (done,) = llm.generate([prompts_of(case)[1].tolist()], params, progress=False)
    assert list(done.token_ids) == golden(case)["tokens"][1].tolist()
