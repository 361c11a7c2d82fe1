"""`LLM`: what it is made from, and prompts in, completions out, whatever else is being served."""

import json
from dataclasses import replace

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from llm_case import GREEDY, MAX_MODEL_LEN, PROMPTS, SIZES, Bytes, parts

import mla_jax
from mla_jax import LLM
from mla_jax.errors import (
    CheckpointError,
    ConfigError,
    KernelUnavailableError,
    MlaJaxError,
    RequestError,
    ShapeError,
)

# Completions


def test_a_completion_says_what_happened(llm, alone):
    one = alone[0]
    assert isinstance(one, mla_jax.Completion)
    assert one.finish_reason == "length"
    assert one.usage == (len(one.prompt_token_ids), 24)
    assert one.usage.prompt_tokens == len(llm.tokenizer.encode(PROMPTS[0]))
    assert one.usage.completion_tokens == len(one.token_ids)
    assert one.prompt_token_ids == llm.tokenizer.encode(PROMPTS[0])
    assert one.text == llm.tokenizer.decode(one.token_ids) != ""
    assert one.logprobs is None


def test_more_prompts_than_the_pool_holds_come_back_in_order(llm, alone):
    together = llm.generate(PROMPTS, GREEDY, progress=False)
    assert [parts(one) for one in together] == [parts(one) for one in alone]
    backwards = llm.generate(PROMPTS[::-1], GREEDY, progress=False)
    assert [parts(one) for one in backwards] == [parts(one) for one in alone[::-1]]


def test_every_way_to_write_token_ids(llm, alone):
    ids = alone[0].prompt_token_ids
    for prompt in (
        ids,
        tuple(ids),
        [np.int64(i) for i in ids],
        np.array(ids),
        np.array(ids, np.uint16),
        jnp.array(ids),
    ):
        for prompts in (prompt, [prompt]):
            got = llm.generate(prompts, GREEDY, progress=False)
            assert [parts(one) for one in got] == [parts(alone[0])]
            assert json.dumps(got[0].prompt_token_ids) == json.dumps(ids)
    square = llm.generate(np.array([ids[:2], ids[1:3]]), GREEDY, progress=False)
    assert [one.prompt_token_ids for one in square] == [ids[:2], ids[1:3]]
    mixed = llm.generate([PROMPTS[0], ids], GREEDY, progress=False)
    assert parts(mixed[0]) == parts(mixed[1]) == parts(alone[0])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "prompts: expected texts or lists of token ids, got None"),
        (5, "prompts: expected texts or lists of token ids, got 5"),
        (b"text", "prompts: expected texts or lists of token ids, got b'text'"),
        ({"prompt": "text"}, "prompts: expected texts or lists of token ids, got {'prompt'"),
        ({3, 4}, "prompts: expected texts or lists of token ids, got {3, 4}"),
        (np.array(3), r"prompts: expected texts or lists of token ids, got array\(3\)"),
        ([3.0], "prompt: expected integer token ids, got 3.0 at position 0"),
        ([4, True], "prompt: expected integer token ids, got True at position 1"),
        (np.array([1.5]), r"prompt: expected integer token ids, got .*1.5.* at position 0"),
        ([[4, 3.0]], "prompt: expected integer token ids, got 3.0 at position 1"),
        ([[4, None]], "prompt: expected integer token ids, got None at position 1"),
        ([["text"]], "prompt: expected integer token ids, got 'text' at position 0"),
        ([None], "prompt: expected a list of token ids, got None"),
        (["text", 3], "prompt: expected a list of token ids, got 3"),
        ([b"text"], "prompt: expected a list of token ids, got b'text'"),
        ([3, 2048], r"prompt: expected token ids in \[0, 2048\), got 2048 at position 1"),
        ([[3, -1]], r"prompt: expected token ids in \[0, 2048\), got -1 at position 1"),
        ([[3, 10**30]], "prompt: expected token ids in"),
        ([[]], "prompt: expected at least one token, got none"),
        ([[3] * 64], r"prompt: expected at most 63 tokens \(max_model_len 64 less one to generate\), got 64"),
        (["\ud800"], "text: expected Unicode text"),
    ],
)
def test_malformed_prompts_are_refused_before_anything_runs(llm, prompts, message):
    with pytest.raises(RequestError, match=message):
        llm.generate(prompts, GREEDY)
    if isinstance(prompts, list):
        with pytest.raises(RequestError, match=message):
            llm.generate(
                ["fine", *prompts] if not isinstance(prompts[0], int | float) else ["fine", prompts], GREEDY
            )
    assert not llm.engine.has_work


def test_a_refused_request_queues_none_of_its_neighbours(llm, monkeypatch):
    """Every request is looked at once, when it is queued; the first that cannot be takes the others with it."""
    checked, check = [], llm.engine.check
    monkeypatch.setattr(llm.engine, "check", lambda request: checked.append(request.prompt) or check(request))
    with pytest.raises(RequestError, match="prompt: expected at least one token"):
        llm.generate([[3], [4, 5], [], [6]], GREEDY)
    assert checked == [(3,), (4, 5), ()]
    assert not llm.engine.has_work
    assert llm._live == {}
    llm.generate([[3], [4, 5]], replace(GREEDY, max_tokens=1), progress=False)
    assert checked[3:] == [(3,), (4, 5)]


def test_no_prompts_give_no_completions(llm, capsys):
    assert llm.generate([], GREEDY) == []
    assert capsys.readouterr().err == ""


def test_an_empty_string_is_the_begin_token(llm):
    done = llm.generate("", replace(GREEDY, max_tokens=3), progress=False)[0]
    assert done.prompt_token_ids == [llm.tokenizer.bos_token_id]
    assert len(done.token_ids) == 3


def test_an_empty_string_without_a_begin_token_is_refused(llm):
    bare = LLM(llm.model, tokenizer=Bytes(), **SIZES)
    with pytest.raises(RequestError, match="prompt: expected at least one token, got none"):
        bare.generate("")


@pytest.mark.parametrize("max_tokens", [None, 10_000])
def test_generation_goes_up_to_max_model_len(llm, alone, max_tokens):
    done = llm.generate(PROMPTS[0], replace(GREEDY, max_tokens=max_tokens), progress=False)[0]
    assert sum(done.usage) == MAX_MODEL_LEN
    assert done.finish_reason == "length"
    assert done.token_ids[:24] == alone[0].token_ids


def test_the_longest_prompt_leaves_room_for_one_token(llm):
    done = llm.generate([[5] * (MAX_MODEL_LEN - 1)], GREEDY, progress=False)[0]
    assert done.usage == (MAX_MODEL_LEN - 1, 1)
    assert done.finish_reason == "length"


def test_a_request_that_can_never_fit_is_refused(llm):
    small = LLM(llm.model, **SIZES | {"max_total_tokens": 32})
    with pytest.raises(
        RequestError, match=r"can never fit: 20 prompt tokens and up to 24 new .* raise max_total_tokens"
    ):
        small.generate([[5] * 3, [5] * 20], GREEDY)
    assert not small.engine.has_work
    with pytest.raises(RequestError, match="can never fit"):
        small.stream([5] * 20, GREEDY)


# Construction


def test_the_kernel_table_is_printed_and_kept(folder, capsys):
    llm = LLM(folder, kernels="reference", **SIZES)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(llm.kernels) >= 9
    for row in llm.kernels:
        assert row.implementation == "reference"
        assert any(
            line.split()[:2] == [row.op, "reference"] and row.reason in line
            for line in shown.err.splitlines()
        )


def test_kernels_of_a_model_in_memory(llm):
    assert llm.model.kernels == "auto"
    asked = LLM(llm.model, kernels="reference", **SIZES)
    assert asked.model.kernels == "reference"
    assert {row.implementation for row in asked.kernels} == {"reference"}
    kept = LLM(asked.model, **SIZES)
    assert kept.model.kernels == "reference"
    assert kept.model.params is asked.model.params


def test_dtype_of_a_checkpoint(folder):
    assert LLM(folder, **SIZES).config.dtype == "bfloat16"
    wide = LLM(folder, dtype="float32", **SIZES)
    assert wide.config.dtype == "float32"
    assert wide.engine._state.cache.kv.dtype == jnp.float32
    mixed = LLM(wide.model, dtype="float32", kv_cache_dtype="bfloat16", **SIZES)
    assert mixed.engine._state.cache.kv.dtype == jnp.bfloat16


def test_default_sizes(llm, folder):
    sizes = LLM(llm.model).limits
    assert (sizes.max_model_len, sizes.max_num_seqs, sizes.max_total_tokens, sizes.page_size) == (
        256,
        8,
        2048,
        16,
    )
    sizes = LLM(str(folder), max_total_tokens=100).limits
    assert (sizes.max_model_len, sizes.max_total_tokens) == (100, 100)
    sizes = LLM(llm.model, max_model_len=np.int32(40), max_num_seqs=3).limits
    assert (sizes.max_model_len, sizes.max_total_tokens) == (40, 120)


@pytest.mark.parametrize(("kv_cache_dtype", "tokens"), [("auto", 100), ("float32", 50), ("fp8", 200)])
def test_default_sizes_keep_to_the_budget(llm, monkeypatch, kv_cache_dtype, tokens):
    row = llm.config.kv_lora_rank + llm.config.qk_rope_head_dim
    monkeypatch.setattr("mla_jax.llm.DEFAULT_CACHE_BYTES", 100 * 2 * row * llm.config.num_hidden_layers)
    sizes = LLM(llm.model, kv_cache_dtype=kv_cache_dtype).limits
    assert (sizes.max_model_len, sizes.max_total_tokens) == (tokens, tokens)
    sizes = LLM(llm.model, kv_cache_dtype=kv_cache_dtype, max_model_len=30).limits
    assert (sizes.max_model_len, sizes.max_total_tokens) == (30, min(tokens, 8 * 30))
    sizes = LLM(llm.model, kv_cache_dtype=kv_cache_dtype, max_model_len=256).limits  # asked for, so it is had
    assert (sizes.max_model_len, sizes.max_total_tokens) == (256, 256)


@pytest.mark.parametrize(
    "name", ["page_size", "max_model_len", "max_num_seqs", "max_total_tokens", "decode_steps"]
)
@pytest.mark.parametrize("value", [0, -1, True, 2.0, "8"])
def test_sizes_are_checked(llm, name, value):
    with pytest.raises(RequestError, match=f"{name}: expected an integer >= 1, got {value!r}"):
        LLM(llm.model, **SIZES | {name: value})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"kernels": "fast"},
            KernelUnavailableError,
            "kernels: expected one of auto, native, reference, got 'fast'",
        ),
        ({"kernels": ["auto"]}, KernelUnavailableError, "kernels: expected one of .*, got \\['auto'\\]"),
        ({"dtype": "float16"}, ConfigError, "dtype: expected .*, got 'float16'"),
        ({"dtype": np.float16}, ConfigError, "dtype: expected .*, got <class 'numpy.float16'>"),
        ({"dtype": ["auto"]}, ConfigError, "dtype: expected .*, got \\['auto'\\]"),
        ({"dtype": None}, ConfigError, "dtype: expected .*, got None"),
        ({"kv_cache_dtype": ["fp8"]}, ShapeError, "cache dtype: expected .*, got \\['fp8'\\]"),
        ({"kv_cache_dtype": np.float16}, ShapeError, "cache dtype: expected .*, got <class 'numpy.float16'>"),
        ({"kv_cache_dtype": "int8"}, ShapeError, "cache dtype: expected .*, got 'int8'"),
        ({"kv_cache_dtype": None}, ShapeError, "cache dtype: expected .*, got None"),
        (
            {"max_model_len": 257},
            RequestError,
            "max_model_len: expected at most 256 .max_position_emb.*, got 257",
        ),
        (
            {"max_total_tokens": 10**14},
            RequestError,
            "max_total_tokens, page_size: expected at most 2147483646",
        ),
        (
            {"page_size": 10**14},
            RequestError,
            "page_size: expected at most 2147483646 tokens .*, got 100000000000000",
        ),
        (
            {"max_num_seqs": 10**12},
            RequestError,
            "a cache for 160 tokens and 1000000000000 sequences cannot be",
        ),
    ],
)
def test_bad_arguments_are_refused(folder, llm, arguments, error, message):
    for source in (folder, llm.model):
        with pytest.raises(error, match=message):
            LLM(source, **SIZES | arguments)


def test_another_dtype_for_a_model_in_memory_is_refused(llm):
    with pytest.raises(
        ConfigError, match="dtype: expected 'auto', or 'bfloat16' as this model in memory has"
    ):
        LLM(llm.model, dtype="float32", **SIZES)


def test_names_of_dtypes_and_dtypes_are_one(llm, folder):
    assert LLM(folder, dtype=jnp.float32, **SIZES).config.dtype == "float32"
    assert LLM(llm.model, dtype=ml_dtypes.bfloat16, **SIZES).config.dtype == "bfloat16"
    for name, kind in (("float32", np.float32), ("bfloat16", jnp.dtype("bfloat16"))):
        asked = LLM(llm.model, kv_cache_dtype=kind, **SIZES)
        assert asked.limits == LLM(llm.model, kv_cache_dtype=name, **SIZES).limits
        assert asked.engine._state.cache.kv.dtype == kind


def test_sizes_may_be_any_kind_of_integer(llm):
    kinds = (np.int64, np.uint8, np.array, jnp.int32)
    sizes = {name: kind(size) for kind, (name, size) in zip(kinds, SIZES.items(), strict=True)}
    limits = LLM(llm.model, **sizes).limits
    assert limits == llm.limits
    assert all(type(getattr(limits, name)) is int for name in SIZES)


def test_a_path_like_object_is_a_path(folder):
    class Path:
        def __fspath__(self):
            return str(folder)

    assert LLM(Path(), **SIZES).config.vocab_size == 2048


def test_a_hub_id_is_of_one_commit(folder, tmp_path, monkeypatch):
    """Settings, tokenizer and weights; whatever becomes of the branch in between."""
    snapshot = tmp_path / "snapshots" / ("c0ffee" + "0" * 34)
    snapshot.parent.mkdir()
    snapshot.symlink_to(folder)
    asked = []

    def snapshot_download(name, *, revision, **_):
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    found = LLM("owner/name", revision="v2", **SIZES)
    assert asked == [("owner/name", "v2"), ("owner/name", snapshot.name)]
    assert found.tokenizer.vocab_size < found.config.vocab_size == 2048
    asked.clear()
    with pytest.raises(RequestError, match="max_model_len"):
        LLM("owner/name", max_model_len=10**6)
    assert asked == [("owner/name", None)]  # refused before the weights were fetched


def test_only_a_hub_id_has_a_revision(llm, folder):
    with pytest.raises(CheckpointError, match="revision 'main' was given, but a folder has none"):
        LLM(folder, revision="main")
    with pytest.raises(CheckpointError, match="revision: expected none for a model in memory, got 'main'"):
        LLM(llm.model, revision="main")
    with pytest.raises(CheckpointError, match="revision: expected a branch, tag or commit, got 5"):
        LLM("owner/name", revision=5)


@pytest.mark.parametrize("source", [None, 5, ["folder"], {}])
def test_what_is_neither_path_nor_model_is_refused(source):
    with pytest.raises(CheckpointError, match="expected a checkpoint folder, a hub id or a model, got"):
        LLM(source)


def test_an_abstract_model_is_refused(llm):
    with pytest.raises(CheckpointError, match="expected a model with weights, got an abstract one"):
        LLM(mla_jax.MLAForCausalLM.abstract(llm.config))


def test_arguments_are_checked_before_weights_are_read(variant):
    broken = variant()
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RequestError, match="max_model_len: expected at most 256"):
        LLM(broken, max_model_len=1000)
    with pytest.raises(ConfigError, match="dtype"):
        LLM(broken, dtype="float16")
    with pytest.raises(MlaJaxError, match=r"model\.safetensors"):
        LLM(broken)


def test_missing_native_kernels_are_refused_at_load(folder, llm, monkeypatch):
    from custom_calls import registry

    monkeypatch.setattr(
        registry, "library", lambda platform: registry.Library(platform, "m", frozenset(), "too old", {})
    )
    for source in (folder, llm.model):
        with pytest.raises(
            KernelUnavailableError, match=r"no native kernel on platform 'cpu': too old \(and \d+ more ops\)"
        ):
            LLM(source, kernels="native", **SIZES)
    assert {row.reason for row in LLM(llm.model, **SIZES).kernels} == {"too old"}


# Progress


def test_progress_is_one_line_and_can_be_silent(llm, capsys):
    llm.generate(PROMPTS[:2], replace(GREEDY, max_tokens=3), progress=False)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")
    llm.generate(PROMPTS[:2], replace(GREEDY, max_tokens=3))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("[2/2] 6 tokens in ")
    assert shown.err.count("\n") == 1
    llm.chat([{"role": "user", "content": "hello"}], replace(GREEDY, max_tokens=3))
    assert capsys.readouterr().err == ""


def test_progress_counts_only_its_own_requests(llm, capsys):
    stream = llm.stream(PROMPTS[0], replace(GREEDY, max_tokens=5))
    next(stream)
    llm.generate(PROMPTS[:2], GREEDY)
    assert capsys.readouterr().err.startswith("[2/2] 48 tokens in ")
    assert len(list(stream)) == 4
