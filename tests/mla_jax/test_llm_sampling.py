"""`LLM`: what a request says about drawing tokens, and when its answer ends."""

from dataclasses import replace

import numpy as np
import pytest
from llm_case import GREEDY, PROMPTS, SIZES, WARM, collect, parts

from mla_jax import LLM, SamplingParams
from mla_jax.errors import RequestError

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


def test_more_answers_than_rows_wait_their_turn(llm):
    asked = replace(WARM, n=3 * SIZES["max_num_seqs"] + 1, max_tokens=3)
    got = llm.generate(PROMPTS[0], asked, progress=False)
    assert len(got) == asked.n
    last = replace(asked, n=1, seed=WARM.seed + asked.n - 1)
    assert parts(got[-1]) == parts(llm.generate(PROMPTS[0], last, progress=False)[0])


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


def test_the_models_own_end_token_ends(alone, variant):
    ids = alone[0].token_ids
    end = ids.index(ids[9])
    other = LLM(variant(config={"eos_token_id": ids[9]}, generation_config=None), **SIZES)
    done = other.generate(PROMPTS[0], replace(GREEDY, ignore_eos=False), progress=False)[0]
    assert (done.token_ids, done.finish_reason) == (ids[: end + 1], "stop")


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
