"""`LLM`: strings or ids in, completions out, whatever else is being served.

Most tests share one instance around the example checkpoint, made smaller: what it says is noise, so what is
expected is taken from a greedy continuation, or from `mla_jax.forward`.
"""

import gc
import importlib.util
import itertools
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mla_jax
from mla_jax import LLM, SamplingParams
from mla_jax.errors import (
    CheckpointError,
    ConfigError,
    KernelUnavailableError,
    MlaJaxError,
    RequestError,
    ShapeError,
    TemplateError,
    TokenizerError,
)

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "goldens" / "deepseek_v3"

MAX_MODEL_LEN = 64
SIZES = {"page_size": 4, "max_model_len": MAX_MODEL_LEN, "max_num_seqs": 4, "max_total_tokens": 160}
GOLDEN_SIZES = {"max_model_len": 80, "max_num_seqs": 2, "max_total_tokens": 160}
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
WARM = SamplingParams(max_tokens=24, temperature=1.5, seed=7, ignore_eos=True)

PROMPTS = [
    "def attention(",
    "The latent cache holds",
    "import",
    "a = b",
    "for row in rows:",
    "x",
    "RoPE is",
    "(",
    "B",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("make_demo", ROOT / "examples" / "make_demo_checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    demo.CONFIG |= {"num_hidden_layers": 2, "max_position_embeddings": 256}
    demo.CONFIG["rope_scaling"]["original_max_position_embeddings"] = 64
    path = tmp_path_factory.mktemp("demo") / "checkpoint"
    # A tokenizer of this repository's own words would change with every one of them; this text never does.
    (path.parent / "mla_jax").mkdir()
    shutil.copy(ROOT / "LICENSE", path.parent / "mla_jax" / "words.py")
    demo.__file__ = str(path.parent / "examples" / "script.py")
    demo.main(path)
    return path


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder, **SIZES)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(request):
    yield
    if "llm" in request.fixturenames:
        engine = request.getfixturevalue("llm").engine
        assert not engine.has_work
        assert engine._free_pages == engine._num_pages


@pytest.fixture(scope="module")
def alone(llm):
    """Every prompt's greedy completion when it has the engine for itself."""
    return [llm.generate(prompt, GREEDY, progress=False)[0] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def variant(folder, tmp_path_factory):
    """variant(name={...} or None): a copy of the checkpoint with JSON files replaced, merged or left out."""

    def make(**files):
        copy = tmp_path_factory.mktemp("variant")
        for path in folder.iterdir():
            if path.suffix == ".safetensors":
                (copy / path.name).symlink_to(path)
            else:
                shutil.copy(path, copy / path.name)
        for stem, change in files.items():
            path = copy / f"{stem}.json"
            if change is None:
                path.unlink()
            elif isinstance(change, str):
                path.write_text(change)
            else:
                path.write_text(json.dumps(json.loads(path.read_text()) | change))
        return copy

    return make


def collect(stream):
    """(text, ids, finish reason) of a stream; only its last piece may have a reason."""
    pieces = list(stream)
    assert all(piece.finish_reason is None for piece in pieces[:-1])
    return "".join(p.text for p in pieces), [p.token_id for p in pieces], pieces[-1].finish_reason


def parts(completion):
    return completion.text, completion.token_ids, completion.finish_reason


def agrees(ids, expected, tokenizer):
    """Whether ids are what is expected, up to the first that only a model without this tokenizer may draw."""
    count = next((n for n, i in enumerate(ids) if i >= tokenizer.vocab_size), len(ids))
    return ids[:count] == expected[:count] != []


class Bytes:
    """A tokenizer of one's own: UTF-8 bytes, and an end token after them."""

    eos_token_id = 256
    vocab_size = 257

    def encode(self, text, *, add_special_tokens=True):
        return np.frombuffer(text.encode(), np.uint8)

    def decode(self, ids, *, skip_special_tokens=True):
        return bytes(i for i in ids if i < 256).decode(errors="replace")


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


# Sampling parameters


def test_n_answers_follow_their_prompt_and_have_seeds_of_their_own(llm):
    asked = replace(WARM, n=3, max_tokens=12)
    got = llm.generate(PROMPTS[:2], asked, progress=False)
    assert [one.prompt_token_ids for one in got] == [
        llm.tokenizer.encode(p) for p in PROMPTS[:2] for _ in range(3)
    ]
    assert len({tuple(one.token_ids) for one in got[:3]}) == 3
    assert [parts(one) for one in llm.generate(PROMPTS[:2], asked, progress=False)] == [
        parts(one) for one in got
    ]
    single = [llm.generate(PROMPTS[1], replace(asked, n=1, seed=7 + i), progress=False)[0] for i in range(3)]
    assert [parts(one) for one in single] == [parts(one) for one in got[3:]]


def test_without_a_seed_samples_differ(llm):
    got = llm.generate([PROMPTS[0]] * 2, replace(WARM, seed=None), progress=False)
    again = llm.generate(PROMPTS[0], replace(WARM, seed=None), progress=False)
    assert len({tuple(one.token_ids) for one in (*got, *again)}) == 3


def test_the_largest_seed_has_successors(llm):
    got = llm.generate(PROMPTS[0], replace(WARM, seed=2**32 - 1, n=2, max_tokens=8), progress=False)
    assert got[0].token_ids != got[1].token_ids
    zero = llm.generate(PROMPTS[0], replace(WARM, seed=0, max_tokens=8), progress=False)
    assert got[1].token_ids != zero[0].token_ids


def test_every_prompt_may_have_its_own_params(llm, alone):
    sampled = llm.generate(PROMPTS[1], WARM, progress=False)[0]
    own = (replace(GREEDY, max_tokens=3), WARM, replace(GREEDY, max_tokens=5, n=2))
    got = llm.generate(PROMPTS[:3], own, progress=False)
    assert [len(one.token_ids) for one in got] == [3, 24, 5, 5]
    assert parts(got[1]) == parts(sampled) != parts(alone[1])
    assert parts(got[2]) == parts(got[3])
    assert got[2].token_ids == alone[2].token_ids[:5]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([], "params: expected one for each of 2 prompts, got 0"),
        ([GREEDY] * 3, "params: expected one for each of 2 prompts, got 3"),
        ([GREEDY, {}], "params: expected SamplingParams or None, got {}"),
        (5, "params: expected SamplingParams, a list of them, or None, got 5"),
        ({"max_tokens": 5}, "params: expected SamplingParams, a list of them, or None, got {"),
        ("greedy", "params: expected SamplingParams, a list of them, or None, got 'greedy'"),
    ],
)
def test_malformed_params_are_refused(llm, params, message):
    with pytest.raises(RequestError, match=message):
        llm.generate(PROMPTS[:2], params)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_logprobs(llm, alone, count):
    done = llm.generate(PROMPTS[0], replace(GREEDY, logprobs=count), progress=False)[0]
    assert done.token_ids == alone[0].token_ids
    assert done.logprobs is not None
    assert len(done.logprobs) == len(done.token_ids)
    for token, reported in zip(done.token_ids, done.logprobs, strict=True):
        assert len(reported) == max(count, 1)  # the greedy token is the likeliest
        assert max(reported, key=reported.__getitem__) == token
        assert all(type(i) is int and type(p) is float and p <= 0 for i, p in reported.items())
        assert np.exp(list(reported.values())).sum() <= 1 + 1e-5


def test_logprobs_of_one_request_change_no_other(llm, alone):
    got = llm.generate(PROMPTS[:3], [GREEDY, replace(GREEDY, logprobs=2), GREEDY], progress=False)
    assert [parts(one) for one in got] == [parts(one) for one in alone[:3]]
    assert [one.logprobs is None for one in got] == [True, False, True]


# Ends


def stop_strings(text):
    """Some texts that a text contains, each with the place where it is first complete."""
    words = [text[i : i + width] for width in (1, 3, 9, 15) for i in range(8, len(text) - 15, 17)]
    # At the end of a shorter text U+FFFD may still become a character.
    return [(word, text.index(word)) for word in words if "\ufffd" not in word]


def test_stop_strings_end_and_are_left_out(llm, alone):
    text = alone[0].text
    chosen = stop_strings(text)
    assert any(len(word) == 15 for word, _ in chosen)  # longer than any token: it spans several
    params = [replace(GREEDY, stop=word) for word, _ in chosen]
    for (word, at), done in zip(
        chosen, llm.generate([PROMPTS[0]] * len(params), params, progress=False), strict=True
    ):
        assert done.text == text[:at], word
        assert done.finish_reason == "stop"
        assert done.token_ids == alone[0].token_ids[: len(done.token_ids)]
        assert word in llm.tokenizer.decode(done.token_ids)
        assert word not in llm.tokenizer.decode(done.token_ids[:-1])  # not a token too many


def test_streams_hold_stop_strings_back(llm, alone):
    text = alone[0].text
    for word, at in stop_strings(text)[-4:]:
        streamed = collect(llm.stream(PROMPTS[0], replace(GREEDY, stop=(word,))))
        assert streamed[0] == text[:at]
        assert streamed[2] == "stop"


def test_the_beginning_of_a_stop_string_is_not_lost(llm, alone):
    params = replace(GREEDY, stop=(alone[0].text[-4:] + "\0", "\0\0"))
    assert parts(llm.generate(PROMPTS[0], params, progress=False)[0]) == parts(alone[0])
    pieces = list(llm.stream(PROMPTS[0], params))
    assert "".join(piece.text for piece in pieces) == alone[0].text
    assert pieces[-1].text.endswith(alone[0].text[-4:])  # held until the end showed that it was none


def test_the_first_of_several_stop_strings_wins(llm, alone):
    text = alone[0].text
    late, early = text[30:34], text[12:16]
    done = llm.generate(PROMPTS[0], replace(GREEDY, stop=(late, "\0", early)), progress=False)[0]
    assert done.text == text[: min(text.index(early), text.index(late))]


def test_stop_tokens_end_and_their_text_is_left_out(llm, alone):
    ids = alone[0].token_ids
    end = ids.index(ids[6])
    for params in (
        replace(GREEDY, stop_token_ids=(ids[6],)),
        replace(GREEDY, stop_token_ids=(ids[6], ids[20])),
    ):
        done = llm.generate(PROMPTS[0], params, progress=False)[0]
        assert done.token_ids == ids[: end + 1]
        assert done.text == llm.tokenizer.decode(ids[:end])
        assert done.finish_reason == "stop"
        assert collect(llm.stream(PROMPTS[0], params)) == parts(done)


def test_a_stop_token_as_the_last_token_is_a_stop(llm, alone):
    ids = alone[0].token_ids
    end = ids.index(ids[6])
    done = llm.generate(
        PROMPTS[0], replace(GREEDY, max_tokens=end + 1, stop_token_ids=(ids[6],)), progress=False
    )[0]
    assert done.finish_reason == "stop"


def test_generation_config_is_honoured(llm, alone, variant):
    ids = alone[0].token_ids
    ends = [i for i in (ids[9], ids[15]) if i not in ids[:9]]
    values = {"do_sample": False, "eos_token_id": [1, *ends], "max_new_tokens": 20}
    other = LLM(variant(generation_config=values), **SIZES)
    done = other.generate(PROMPTS[0], progress=False)[0]
    assert done.token_ids == ids[: min(ids.index(i) for i in ends) + 1]
    assert done.finish_reason == "stop"
    assert (
        other.generate(PROMPTS[0], SamplingParams(ignore_eos=True), progress=False)[0].token_ids == ids[:20]
    )
    own = other.generate(PROMPTS[0], SamplingParams(ignore_eos=True, max_tokens=22), progress=False)[0]
    assert own.token_ids == ids[:22]
    assert collect(other.stream(PROMPTS[0])) == parts(done)


def test_the_temperature_of_generation_config_is_the_default(llm, alone):
    # The example's generation_config.json samples at 0.6.
    bare, asked = SamplingParams(max_tokens=24, seed=3, ignore_eos=True), {"temperature": 0.6, "top_p": 0.95}
    got = llm.generate([PROMPTS[0]] * 2, [bare, replace(bare, **asked)], progress=False)
    assert parts(got[0]) == parts(got[1]) != parts(alone[0])


def test_without_generation_config_the_default_is_greedy(llm, alone, variant):
    other = LLM(variant(generation_config=None), **SIZES)
    done = other.generate(PROMPTS[0], SamplingParams(max_tokens=24, ignore_eos=True), progress=False)[0]
    assert done.token_ids == alone[0].token_ids


def test_a_repetition_penalty_is_said_to_be_ignored(variant, capsys):
    LLM(variant(generation_config={"repetition_penalty": 1.05}), **SIZES)
    assert "repetition_penalty 1.05 is not supported: ignored" in capsys.readouterr().err


# Streams


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        WARM,
        replace(WARM, logprobs=1),
        replace(GREEDY, max_tokens=1),
        replace(GREEDY, max_tokens=None),
    ],
    ids=["greedy", "warm", "logprobs", "one", "all"],
)
def test_a_stream_equals_its_completion(llm, params):
    for prompt in (PROMPTS[1], llm.tokenizer.encode(PROMPTS[3])):
        assert collect(llm.stream(prompt, params)) == parts(llm.generate(prompt, params, progress=False)[0])


def test_pieces_report_speed(llm):
    pieces = list(llm.stream(PROMPTS[0], GREEDY))
    assert len({piece.prompt_tps for piece in pieces}) == 1
    assert pieces[0].prompt_tps > 0
    assert pieces[0].generation_tps == 0
    assert all(piece.generation_tps > 0 for piece in pieces[1:])
    text, token_id, prompt_tps, generation_tps, finish_reason = pieces[-1]
    assert (text, token_id, finish_reason) == (pieces[-1].text, pieces[-1].token_id, "length")
    assert (prompt_tps, generation_tps) == (pieces[-1].prompt_tps, pieces[-1].generation_tps)


def test_streams_may_be_read_in_turn(llm, alone):
    streams = [llm.stream(prompt, GREEDY) for prompt in PROMPTS[:6]]  # two more than there are rows
    pieces = list(zip(*streams, strict=True))
    for number, own in enumerate(zip(*pieces, strict=True)):
        assert collect(own) == parts(alone[number])


def test_generate_and_logits_while_streams_are_open(llm, alone):
    first, second = llm.stream(PROMPTS[0], GREEDY), llm.stream(PROMPTS[1], GREEDY)
    got_first = list(itertools.islice(first, 5))
    got_second = list(itertools.islice(second, 2))
    assert [parts(one) for one in llm.generate(PROMPTS, GREEDY, progress=False)] == [
        parts(one) for one in alone
    ]
    got_first += itertools.islice(first, 3)
    assert llm.logits([[3, 4]])[0].shape == (2, 2048)
    assert collect([*got_second, *second]) == parts(alone[1])
    assert collect([*got_first, *first]) == parts(alone[0])


def test_threads_share_an_engine(llm, alone):
    answers, failures = {}, []

    def serve(number):
        try:
            for again in range(3):
                use = (number + again) % len(PROMPTS)
                if number % 2:
                    done = collect(llm.stream(PROMPTS[use], GREEDY))
                else:
                    done = parts(llm.generate(PROMPTS[use], GREEDY, progress=False)[0])
                answers[number, again] = done == parts(alone[use])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert len(answers) == 18
    assert all(answers.values())


@pytest.mark.parametrize("how", ["close", "forget", "never started", "before the first token"])
def test_abandoned_streams_give_their_rows_back(llm, alone, how):
    streams = [llm.stream(prompt, GREEDY) for prompt in PROMPTS]
    if how != "never started":
        for stream in streams[: 1 if how == "before the first token" else 6]:
            next(stream)
    if how == "close":
        for stream in streams:
            stream.close()
    del streams
    if how != "never started":
        del stream
    gc.collect()
    assert not llm.engine.has_work
    assert parts(llm.generate(PROMPTS[2], GREEDY, progress=False)[0]) == parts(alone[2])


def test_a_waiting_stream_can_be_abandoned(llm):
    running = [llm.stream(prompt, GREEDY) for prompt in PROMPTS[:4]]
    for stream in running:
        next(stream)
    waiting = llm._start(*llm._requests([[3, 4]], GREEDY)[0])
    llm._drop(waiting)
    for stream in running:
        stream.close()
    assert not llm.engine.has_work


def test_streams_collected_in_the_middle_of_a_step_wait_for_its_end(llm, alone, monkeypatch):
    """The garbage collector closes generators, and it may run anywhere."""
    doomed = [llm.stream(prompt, GREEDY) for prompt in PROMPTS[1:3]]
    for stream in doomed:
        next(stream)
    decode, running = llm.engine._programs.decode, []

    def collecting(*args, **kwargs):
        doomed.clear()
        if len(running) < 2:
            gc.collect()
        running.append(llm.engine.num_running)
        return decode(*args, **kwargs)

    del stream
    monkeypatch.setattr(llm.engine._programs, "decode", collecting)
    assert parts(llm.generate(PROMPTS[0], GREEDY, progress=False)[0]) == parts(alone[0])
    assert running[:2] == [3, 1]  # given up during the first step, gone before the second


def test_dropping_never_waits_for_another_thread(llm):
    stream = llm.stream(PROMPTS[0], GREEDY)
    next(stream)
    with llm._lock:
        closer = threading.Thread(target=stream.close)
        closer.start()
        closer.join(60)
        assert not closer.is_alive()
    assert llm.engine.num_running == 1
    llm.generate(PROMPTS[1], replace(GREEDY, max_tokens=1), progress=False)
    assert llm.engine.num_running == 0


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ("text", replace(GREEDY, n=2), "n: expected 1 for a stream, got 2"),
        ([], GREEDY, "prompt: expected at least one token, got none"),
        ([2048], GREEDY, "prompt: expected token ids in"),
        (3, GREEDY, "prompt: expected a list of token ids, got 3"),
        (["text"], GREEDY, "prompt: expected integer token ids, got 'text' at position 0"),
        ("text", [GREEDY, GREEDY], "params: expected one for each of 1 prompts, got 2"),
    ],
)
def test_streams_are_refused_when_asked_for(llm, prompt, params, message):
    with pytest.raises(RequestError, match=message):
        llm.stream(prompt, params)


def test_an_interrupted_step_costs_its_requests_and_nothing_after(llm, alone, monkeypatch):
    other, fetched = llm.stream(PROMPTS[1], GREEDY), llm.stream(PROMPTS[2], replace(GREEDY, max_tokens=1))
    next(other)
    programs, decode = llm.engine._programs, llm.engine._programs.decode

    def interrupted(*args, **kwargs):
        decode(*args, **kwargs)  # donates the state, whose successor is then lost
        raise KeyboardInterrupt

    monkeypatch.setattr(programs, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS[0], GREEDY, progress=False)
    assert [parts(one) for one in llm.generate(PROMPTS[:5], GREEDY, progress=False)] == [
        parts(one) for one in alone[:5]
    ]
    with pytest.raises(MlaJaxError, match="interrupted, and this request was lost"):
        next(other)
    assert collect(fetched)[1] == alone[2].token_ids[:1]


def test_an_interrupted_generate_gives_everything_back(llm, alone, monkeypatch):
    step, left = llm.engine.step, iter(range(7))

    def interrupted():
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, GREEDY, progress=False)
    assert parts(llm.generate(PROMPTS[0], GREEDY, progress=False)[0]) == parts(alone[0])


# Chat


def test_chat_is_the_template_and_generate(llm):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello there"}]
    ids = llm.encode_chat(messages)
    assert llm.tokenizer.decode(ids, skip_special_tokens=False) == (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>hello there<｜Assistant｜>"
    )
    expected = llm.generate([ids], GREEDY, progress=False)
    assert llm.chat(messages, GREEDY) == llm.chat(tuple(messages), GREEDY) == expected


def test_several_conversations(llm):
    one, two = [{"role": "user", "content": "hello"}], [{"role": "user", "content": "bye"}]
    answered = [*two, {"role": "assistant", "content": "so long"}, {"role": "user", "content": "wait"}]
    conversations = [one, two, answered]
    expected = [llm.chat(conversation, GREEDY)[0] for conversation in conversations]
    assert llm.chat(conversations, GREEDY) == expected
    per_conversation = llm.chat(conversations, [GREEDY, WARM, replace(GREEDY, n=2)])
    assert [per_conversation[i] for i in (0, 2, 3)] == [expected[0], expected[2], expected[2]]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages: expected at least one message"),
        (None, "messages: expected a list of messages, got None"),
        ("hello", "messages: expected a list of messages, got 'hello'"),
        ({"role": "user", "content": "hello"}, "messages: expected a list of messages, got {"),
        ([{"role": "user"}], r"messages\[0\]"),
        ([{"content": "hello"}], r"messages\[0\]"),
        ([{"role": "user", "content": 5}], r"messages\[0\]"),
        (["hello"], r"messages\[0\]"),
        ([[{"role": "user", "content": "hello"}], []], "messages: expected at least one message"),
        ([{"role": "user", "content": "hello " * 99}], "prompt: expected at most 63 tokens"),
    ],
)
def test_malformed_conversations_are_refused(llm, messages, message):
    with pytest.raises(RequestError, match=message):
        llm.chat(messages, GREEDY)


def test_template_errors_are_sentences(variant):
    for template, message in (
        ("{{ raise_exception('no system message') }}", "no system message"),
        ("{% for", "chat template"),
    ):
        other = LLM(variant(tokenizer_config={"chat_template": template}), **SIZES)
        with pytest.raises(TemplateError, match=message):
            other.chat([{"role": "user", "content": "hello"}])
    settings = json.loads((variant() / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    other = LLM(variant(tokenizer_config=json.dumps(settings)), **SIZES)
    with pytest.raises(TemplateError, match="no chat template 'default'"):
        other.chat([{"role": "user", "content": "hello"}])


# Tokenizers


def test_an_own_tokenizer(llm):
    own = LLM(llm.model, tokenizer=Bytes(), **SIZES)
    done = own.generate("hi", replace(GREEDY, max_tokens=40), progress=False)[0]
    assert done.prompt_token_ids == [104, 105]
    assert json.dumps(done.prompt_token_ids) == "[104, 105]"
    assert max(done.token_ids) < 256 + 1
    # Random bytes: nearly everywhere broken UTF-8, at the end too, and never a split character.
    assert done.text == Bytes().decode(done.token_ids)
    assert "\ufffd" in done.text
    assert collect(own.stream("hi", replace(GREEDY, max_tokens=40))) == parts(done)
    with pytest.raises(TokenizerError, match=r"chat: .* is needed; this LLM was given another one"):
        own.chat([{"role": "user", "content": "hello"}])


def test_an_own_tokenizers_end_token_ends(llm):
    own = LLM(llm.model, tokenizer=Bytes(), **SIZES)
    tokens = own.generate("hi", GREEDY, progress=False)[0].token_ids
    own.tokenizer.eos_token_id = tokens[5]
    done = own.generate("hi", replace(GREEDY, ignore_eos=False), progress=False)[0]
    assert done.token_ids == tokens[: tokens.index(tokens[5]) + 1]
    assert done.finish_reason == "stop"


def test_ids_past_the_tokenizers_last_are_never_drawn(llm):
    own = LLM(llm.model, tokenizer=Bytes(), **SIZES)
    hot = SamplingParams(max_tokens=60, temperature=50.0, seed=1, ignore_eos=True, n=20)
    drawn = np.concatenate([one.token_ids for one in own.generate([[3, 4]], hot, progress=False)])
    assert drawn.size == 1200
    assert drawn.max() < Bytes.vocab_size
    assert len(set(drawn.tolist())) > 200
    assert own.engine.vocab_limit == 257


@pytest.mark.parametrize(
    ("attributes", "limit"),
    [
        ({"vocab_size": 300}, 300),
        ({"vocab_size": np.int64(300)}, 300),
        ({"vocab_size": 9999}, 2048),
        ({"vocab_size": None}, 2048),
        ({"vocab_size": lambda self: 300}, 2048),
        # transformers' vocab_size is without added tokens, the end token among them; its length is with them.
        ({"vocab_size": 300, "__len__": lambda self: 310}, 310),
    ],
)
def test_where_a_tokenizers_ids_end(llm, attributes, limit):
    tokenizer = type("Own", (Bytes,), attributes)()
    assert LLM(llm.model, tokenizer=tokenizer, **SIZES).engine.vocab_limit == limit


@pytest.mark.parametrize(
    "tokenizer",
    [5, "folder", object(), type("NoSkip", (Bytes,), {"decode": lambda self, ids: ""})()],
    ids=["number", "text", "object", "without skip_special_tokens"],
)
def test_objects_that_are_no_tokenizer_are_refused(llm, tokenizer):
    with pytest.raises(
        TokenizerError, match=r"tokenizer: expected an object with eos_token_id, encode\(text\)"
    ):
        LLM(llm.model, tokenizer=tokenizer, **SIZES)


def test_a_tokenizer_that_encodes_rubbish_is_refused(llm):
    for rubbish, message in (
        (["a"], "the tokenizer's encode: expected integer"),
        (5, "encode: expected a list"),
    ):
        tokenizer = type("Rubbish", (Bytes,), {"encode": lambda self, text, rubbish=rubbish: rubbish})()
        with pytest.raises(RequestError, match=message):
            LLM(llm.model, tokenizer=tokenizer, **SIZES).generate("hi")


def test_a_tokenizer_that_fails_costs_its_own_request(llm, alone):
    class Fragile(Bytes):
        broken = False

        def decode(self, ids, *, skip_special_tokens=True):
            if self.broken:
                raise ZeroDivisionError("in decode")
            return super().decode(ids)

    own = LLM(llm.model, tokenizer=Fragile(), **SIZES)
    expected = own.generate("hi", GREEDY, progress=False)[0]
    good = own.stream("hi", GREEDY)
    first = next(good)
    own.tokenizer.broken = True
    bad = own.stream("ho", GREEDY)
    with pytest.raises(ZeroDivisionError):
        next(bad)
    own.tokenizer.broken = False
    assert collect([first, *good]) == parts(expected)
    assert not own.engine.has_work


def test_a_model_in_memory_takes_and_gives_ids(llm, alone):
    for model in (llm.model, llm.model.thaw()):
        bare = LLM(model, **SIZES)
        done = bare.generate([alone[0].prompt_token_ids], GREEDY, progress=False)[0]
        assert done.text == ""
        assert agrees(done.token_ids, alone[0].token_ids, llm.tokenizer)
        text, ids, reason = collect(bare.stream(alone[0].prompt_token_ids, GREEDY))
        assert (text, ids, reason) == ("", done.token_ids, "length")
    with pytest.raises(
        RequestError, match=r"expected token ids, as there is no tokenizer \(a model in memory has none\)"
    ):
        bare.generate("text")
    with pytest.raises(RequestError, match="stop: expected none, as this LLM has no tokenizer"):
        bare.generate([[3]], SamplingParams(stop="x"))
    with pytest.raises(TokenizerError, match=r"chat: .* a model in memory has none"):
        bare.chat([{"role": "user", "content": "hello"}])
    end = ids[4]
    done = bare.generate([alone[0].prompt_token_ids], replace(GREEDY, stop_token_ids=[end]), progress=False)[
        0
    ]
    assert done.token_ids[-1] == end


def test_a_folder_without_a_tokenizer_takes_ids(llm, alone, variant):
    bare = LLM(variant(tokenizer=None), **SIZES)
    done = bare.generate([alone[0].prompt_token_ids], GREEDY, progress=False)[0]
    assert agrees(done.token_ids, alone[0].token_ids, llm.tokenizer)
    assert bare.engine.vocab_limit == 2048 > llm.engine.vocab_limit == llm.tokenizer.vocab_size
    with pytest.raises(
        RequestError, match=r"there is no tokenizer \(.*tokenizer.json: there is no such file\), got a"
    ):
        bare.generate("text")


def test_a_broken_tokenizer_is_refused_at_load(variant):
    with pytest.raises(TokenizerError, match=r"tokenizer.json"):
        LLM(variant(tokenizer="{"), **SIZES)


def test_an_own_tokenizer_replaces_a_broken_one(variant):
    assert LLM(variant(tokenizer="{"), tokenizer=Bytes(), **SIZES).tokenizer.eos_token_id == 256


# Logits


def test_logits_are_those_of_forward(rng):
    # float32: they are padded to a bucket, and in bfloat16 another shape may round differently.
    llm = LLM(GOLDEN, kernels="native", **GOLDEN_SIZES)
    sequences = [rng.integers(0, 96, length).tolist() for length in (1, 16, 17)]
    got = llm.logits(sequences)
    for ids, logits in zip(sequences, got, strict=True):
        assert type(logits) is np.ndarray
        assert logits.dtype == np.float32
        assert logits.shape == (len(ids), llm.config.vocab_size)
        expected = np.asarray(jax.jit(mla_jax.forward)(llm.model, np.array([ids], np.int32)))[0]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert llm.logits([]) == []


def test_logits_predict_what_generate_takes():
    # float32: in bfloat16 two tokens may be equally likely.
    golden = LLM(GOLDEN, kernels="native", **GOLDEN_SIZES)
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


@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_golden_tokens(kernels):
    golden = np.load(GOLDEN / "golden.npz")
    # Compiling takes the time here, so the references serve one sequence at a time.
    sizes = GOLDEN_SIZES if kernels == "native" else GOLDEN_SIZES | {"max_num_seqs": 1}
    llm = LLM(GOLDEN, kernels=kernels, **sizes)
    prompts = [golden[f"prompt_{i}"] for i in range(3)]
    got = llm.generate(prompts, SamplingParams(max_tokens=16, temperature=0, ignore_eos=True), progress=False)
    assert [one.token_ids for one in got] == golden["tokens"].tolist()
    assert {row.implementation for row in llm.kernels} == {kernels}
    if kernels == "native":
        np.testing.assert_allclose(llm.logits(prompts[1:2])[0], golden["logits_1"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("changes", [{"page_size": 1}, {"page_size": 64, "kv_cache_dtype": "float32"}])
def test_page_sizes_change_nothing(changes):
    golden = np.load(GOLDEN / "golden.npz")
    llm = LLM(GOLDEN, **GOLDEN_SIZES | {"max_num_seqs": 1} | changes)
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)
    got = llm.generate([golden["prompt_1"]], params, progress=False)
    assert got[0].token_ids == golden["tokens"][1].tolist()


@pytest.mark.parametrize("kv_cache_dtype", ["bfloat16", "fp8"])
def test_narrow_caches(kv_cache_dtype):
    golden = np.load(GOLDEN / "golden.npz")
    llm = LLM(GOLDEN, kv_cache_dtype=kv_cache_dtype, **GOLDEN_SIZES | {"max_num_seqs": 1})
    got = llm.generate([golden["prompt_1"]] * 2, SamplingParams(max_tokens=8, temperature=0), progress=False)
    assert parts(got[0]) == parts(got[1])
    if kv_cache_dtype == "bfloat16":
        assert got[0].token_ids[0] == golden["tokens"][1][0]


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


@pytest.mark.parametrize("name", ["page_size", "max_model_len", "max_num_seqs", "max_total_tokens"])
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
        ({"dtype": "float16"}, ConfigError, "dtype: expected .*, got 'float16'"),
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
