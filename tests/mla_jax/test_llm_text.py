"""`LLM` between text and ids: chat templates, the checkpoint's tokenizer, one's own, or none."""

import json
from dataclasses import replace

import numpy as np
import pytest
from llm_case import GREEDY, PROMPTS, SIZES, WARM, Bytes, agrees, collect, parts

from mla_jax import LLM, SamplingParams
from mla_jax.errors import RequestError, TemplateError, TokenizerError

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
    assert own.generate("hi", GREEDY, progress=False)[0].token_ids == tokens  # unless it is to be ignored


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
        breaks_at: int | None = None

        def decode(self, ids, *, skip_special_tokens=True):
            if self.breaks_at in ids:
                raise ZeroDivisionError("in decode")
            return super().decode(ids)

    own = LLM(llm.model, tokenizer=Fragile(), **SIZES)
    expected, other = own.generate(["hi", "ho"], GREEDY, progress=False)
    own.tokenizer.breaks_at = next(token for token in other.token_ids if token not in expected.token_ids)
    good = own.stream("hi", GREEDY)
    first = next(good)
    bad = own.stream("ho", GREEDY)
    with pytest.raises(ZeroDivisionError):
        collect(bad)
    assert collect([first, *good]) == parts(expected)
    assert not own.engine.has_work


def test_a_request_whose_text_failed_is_not_served_on(llm, monkeypatch):
    """Though its owner has not noticed yet: the step was asked for by somebody else."""
    failing = llm.stream(PROMPTS[0], GREEDY)
    next(failing)
    (live,) = llm._live.values()

    def take(event):
        raise ZeroDivisionError("in decode")

    monkeypatch.setattr(live.sequence, "take", take)
    llm.generate(PROMPTS[1], replace(GREEDY, max_tokens=3), progress=False)
    assert llm.engine.num_running == 0
    with pytest.raises(ZeroDivisionError):
        next(failing)


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
