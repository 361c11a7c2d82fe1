"""`LLM` against numbers: its logits, and what transformers computes from the same checkpoint."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from llm_case import GOLDEN, GOLDEN_SIZES, GREEDY, parts

import mla_jax
from mla_jax import LLM, SamplingParams
from mla_jax.errors import RequestError


@pytest.fixture(scope="module")
def golden():
    """float32: in bfloat16 another shape may round differently, and two tokens may be equally likely."""
    return LLM(GOLDEN, kernels="native", **GOLDEN_SIZES)


# Logits


def test_logits_are_those_of_forward(golden, rng):
    sequences = [rng.integers(0, 96, length).tolist() for length in (1, 16, 17)]
    got = golden.logits(sequences)
    for ids, logits in zip(sequences, got, strict=True):
        assert type(logits) is np.ndarray
        assert logits.flags.writeable  # the caller's own
        assert logits.dtype == np.float32
        assert logits.shape == (len(ids), golden.config.vocab_size)
        expected = np.asarray(jax.jit(mla_jax.forward)(golden.model, np.array([ids], np.int32)))[0]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert golden.logits([]) == []


def widths_of(llm, monkeypatch):
    """How many tokens each run of the model gets from now on; it answers zeros, and compiles nothing."""
    widths = []

    def forward(model, tokens):
        widths.append(tokens.shape[1])
        return np.zeros((*tokens.shape, llm.config.vocab_size), np.float32)

    monkeypatch.setattr(llm, "_forward", forward)
    return widths


def test_logits_of_many_lengths_take_few_programs(llm, monkeypatch):
    widths = widths_of(llm, monkeypatch)
    llm.logits([[3] * length for length in range(1, 257)])
    assert sorted(set(widths)) == [16, 32, 64, 128, 256]


def test_logits_of_a_whole_context(variant, monkeypatch):
    """Even one that is shorter than the smallest program: there is no position beyond it to pad with."""
    short = LLM(variant(config={"max_position_embeddings": 8}))
    widths = widths_of(short, monkeypatch)
    assert short.logits([[3] * 8, [3]])[0].shape == (8, 2048)
    assert widths == [8, 8]
    with pytest.raises(RequestError, match=r"token_ids\[0\]: expected 1 to 8 tokens .*, got 9"):
        short.logits([[3] * 9])


def test_logits_predict_what_generate_takes(golden):
    prompts = [[5, 17, 33], [42, 8, 9, 10, 11, 12]]
    for done in golden.generate(prompts, GREEDY, progress=False):
        ids = done.prompt_token_ids + done.token_ids
        rows = golden.logits([np.array(ids)])[0]
        assert rows[len(done.prompt_token_ids) - 1 : -1].argmax(-1).tolist() == done.token_ids


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([3, 4], r"token_ids\[0\]: expected a list of token ids, got 3"),
        (
            [[3], []],
            r"token_ids\[1\]: expected 1 to 256 tokens \(max_position_embeddings in config.json\), got 0",
        ),
        ([[3] * 257], r"token_ids\[0\]: expected 1 to 256 tokens .*, got 257"),
        ([[3, 2048]], r"token_ids\[0\]: expected token ids in \[0, 2048\), got 2048 at position 1"),
        ([[3.0]], r"token_ids\[0\]: expected integer token ids, got 3.0 at position 0"),
        (["text"], r"token_ids\[0\]: expected a list of token ids, got 'text'"),
        ("text", "token_ids: expected lists of token ids, got 'text'"),
        (None, "token_ids: expected lists of token ids, got None"),
    ],
)
def test_malformed_token_ids_are_refused(llm, ids, message):
    with pytest.raises(RequestError, match=message):
        llm.logits(ids)


# The goldens of transformers, through the whole library


@pytest.fixture(scope="module")
def expected():
    return np.load(GOLDEN / "golden.npz")


TAKEN = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)


def test_golden_tokens_with_native_kernels(golden, expected):
    prompts = [expected[f"prompt_{i}"] for i in range(3)]
    got = golden.generate(prompts, TAKEN, progress=False)
    assert [one.token_ids for one in got] == expected["tokens"].tolist()
    assert {row.implementation for row in golden.kernels} == {"native"}
    np.testing.assert_allclose(golden.logits(prompts[1:2])[0], expected["logits_1"], rtol=0, atol=1e-4)


def test_golden_tokens_with_references(expected):
    # One prompt, one row: compiling takes the time, and the models' own tests have every prompt and page size.
    llm = LLM(GOLDEN, kernels="reference", **GOLDEN_SIZES | {"max_num_seqs": 1})
    got = llm.generate([expected["prompt_2"]], TAKEN, progress=False)
    assert got[0].token_ids == expected["tokens"][2].tolist()
    assert {row.implementation for row in llm.kernels} == {"reference"}


def with_cache(page_size, kv_cache_dtype):
    cache = {"page_size": page_size, "kv_cache_dtype": kv_cache_dtype}
    llm = LLM(GOLDEN, **GOLDEN_SIZES | {"max_num_seqs": 1} | cache)
    pool = llm.engine._state.cache
    assert (pool.page_size, pool.kv.dtype.name) == (page_size, llm.limits.kv_cache_dtype)
    return llm


def test_page_sizes_change_nothing(expected):
    llm = with_cache(1, "float32")
    got = llm.generate([expected["prompt_1"]], TAKEN, progress=False)
    assert got[0].token_ids == expected["tokens"][1].tolist()


@pytest.mark.parametrize("kv_cache_dtype", ["bfloat16", "fp8"])
def test_narrow_caches(expected, kv_cache_dtype):
    llm = with_cache(64, kv_cache_dtype)
    assert llm.limits.kv_cache_dtype == ("bfloat16" if kv_cache_dtype == "bfloat16" else "float8_e4m3fn")
    got = llm.generate([expected["prompt_1"]] * 2, replace(TAKEN, max_tokens=8), progress=False)
    assert parts(got[0]) == parts(got[1])
    if kv_cache_dtype == "bfloat16":
        assert got[0].token_ids[0] == expected["tokens"][1][0]
