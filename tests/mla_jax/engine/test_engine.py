"""The scheduler: every request gets its own answer, whatever else is being served."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_case import LIMITS, count, run, said, tokens

import mla_jax
from custom_calls.quantized_tensor import QuantizedTensor
from mla_jax.checking import CheckedStep
from mla_jax.engine import Engine, Event, Request
from mla_jax.engine.programs import bucket_of, buckets
from mla_jax.errors import CheckError, ConfigError, RequestError

run_forward = jax.jit(mla_jax.forward)


def whole_logits(model, prompt, answer):
    """What each token of the answer was drawn from, without a pool; padded, so that it is compiled once."""
    padded = np.zeros((1, LIMITS.max_model_len), np.int32)
    padded[0, : len(prompt) + len(answer)] = [*prompt, *answer]
    return np.asarray(run_forward(model, padded))[0, len(prompt) - 1 : len(prompt) + len(answer) - 1]


@pytest.fixture(scope="module")
def alone(model, prompts):
    """Greedy answers when each request has the engine for itself."""
    engine = Engine(model, LIMITS)
    return [tokens(run(engine, [Request(prompt, 9)])[0]) for prompt in prompts]


def test_teacher_forcing_agrees(model, prompts, alone) -> None:
    for prompt, answer in zip(prompts, alone, strict=True):
        assert whole_logits(model, prompt, answer).argmax(-1).tolist() == answer


def test_answers_do_not_depend_on_the_batch(model, prompts, alone) -> None:
    # 8 requests over 3 rows and a pool that holds two of the longest: they wait their turn.
    engine = Engine(model, LIMITS)
    together = run(engine, [Request(prompt, 9) for prompt in prompts])
    assert [tokens(events) for events in together] == alone
    assert not engine.has_work
    assert engine.num_running == 0


@pytest.mark.parametrize("page_size", [1, 64])
def test_page_size_changes_nothing(model, prompts, alone, page_size) -> None:
    # One prefill bucket and two decode buckets: every size is another compilation.
    sizes = {"max_total_tokens": 128, "max_num_seqs": 2, "min_prefill_bucket": 16}
    engine = Engine(model, replace(LIMITS, page_size=page_size, **sizes))
    assert [tokens(e) for e in run(engine, [Request(p, 9) for p in prompts])] == alone


def test_at_most_max_num_seqs_run_and_the_pool_is_never_overdrawn(model, prompts) -> None:
    engine = Engine(model, LIMITS)
    for prompt in prompts:
        engine.add(Request(prompt, 9))
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, engine.num_running)
        counts = np.asarray(engine._state.table.ref_counts)
        assert counts.max() <= 1
        assert int((counts == 0).sum()) == engine._free_pages >= 0
    assert most == LIMITS.max_num_seqs
    assert engine._free_pages == LIMITS.max_total_tokens // LIMITS.page_size


def test_a_request_waits_for_its_last_page(model, prompts, alone) -> None:
    """The pool has 24 pages: 16 and 8 run together, 16 and 9 do not."""
    for new, together in ((15, 2), (16, 1)):
        engine = Engine(model, LIMITS)
        requests = [Request(prompts[5], 24), Request(prompts[3], new)]  # 40 and 17 prompt tokens
        events: dict[int, list[int]] = {engine.add(request): [] for request in requests}
        most = 0
        while engine.has_work:
            for event in engine.step():
                events[event.request_id].append(event.token_id)
            most = max(most, engine.num_running)
        assert most == together
        assert [answer[:9] for answer in events.values()] == [alone[5], alone[3]]


def test_programs_are_bounded_and_reused(model, prompts) -> None:
    # Sizes that no other test has, so that nothing is compiled yet.
    sizes = {"max_total_tokens": 100, "max_model_len": 60, "max_num_seqs": 2, "min_prefill_bucket": 8}
    engine = Engine(model, replace(LIMITS, **sizes))
    assert sum(engine.compiled_programs().values()) == 0
    run(engine, [Request(prompts[0], 2)])
    run(engine, [Request(prompt, 9) for prompt in prompts])
    first = engine.compiled_programs()
    assert first == {"admit": 1, "release": 1, "fork": 0, "prefill": 2, "draw": 1, "decode": 2}
    assert (len(engine.prefill_buckets), len(engine.decode_buckets)) == (2, 2)
    again = [
        Request(p[::-1], 9, temperature=0.7, seed=5, logprobs=i % 3 or None) for i, p in enumerate(prompts)
    ]
    run(engine, again)
    assert engine.compiled_programs() == first
    run(engine, [Request(prompts[1], 3, temperature=1.0, seed=i) for i in range(4)])
    after = engine.compiled_programs()
    assert after == {**first, "fork": 1}
    assert sum(after.values()) == engine.max_programs == 8


# Copies of one prompt ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 2, 4, 5])
def test_samples_of_one_prompt_are_what_they_would_be_alone(model, prompts, length, monkeypatch) -> None:
    """Prompts of 1, 16, 33 and 40 tokens: with and without a tail page of 4 tokens, in one and several chunks."""
    prompt = prompts[length]
    samples = [Request(prompt, 6 + i, temperature=1.5, seed=i, logprobs=2) for i in range(3)]
    alone = [run(Engine(model, LIMITS), [sample])[0] for sample in samples]
    assert len({tuple(tokens(one)) for one in alone}) == 3
    engine = Engine(model, replace(LIMITS, max_total_tokens=192))
    chunks, forks = count(engine, monkeypatch, "prefill"), count(engine, monkeypatch, "fork")
    together = run(engine, samples)
    assert [said(one) for one in together] == [
        said(one) for one in alone
    ]  # tokens, the bits of their log-probabilities, and reasons
    assert len(chunks) == -(-len(prompt) // LIMITS.max_prefill_tokens)
    assert len(forks) == 2
    assert not np.asarray(engine._state.table.ref_counts).any()
    assert engine._free_pages == engine._num_pages


def test_copies_share_the_prompts_whole_pages_and_nothing_else(model, prompts) -> None:
    engine = Engine(model, replace(LIMITS, max_total_tokens=192))
    for i in range(3):
        engine.add(Request(prompts[4], 9, temperature=1.0, seed=i))  # 33 tokens: 8 pages and one token
    while engine.num_running < 3:
        engine.step()
    table = engine._state.table
    pages = np.asarray(table.pages)[:, :11]  # 33 + 9 tokens
    assert (pages < table.num_pages).all()
    assert (pages[:, :8] == pages[0, :8]).all()
    assert len(set(pages[:, 8:].ravel().tolist())) == 9
    counts = np.asarray(table.ref_counts)
    assert sorted(counts[counts > 0].tolist()) == [1] * 9 + [3] * 8
    assert engine._free_pages == 48 - 3 * 11  # each reserves what it would need alone
    assert engine._state.seq_lens.tolist() == [33, 33, 33]


def test_more_copies_than_rows_and_pages(model, prompts, monkeypatch) -> None:
    """The pool holds two of them: they come two by two, and the prompt is prefilled for each two."""
    engine = Engine(model, replace(LIMITS, max_total_tokens=96))
    samples = [Request(prompts[5], 8, temperature=1.0, seed=i) for i in range(5)]
    chunks = count(engine, monkeypatch, "prefill")
    ids = [engine.add(sample) for sample in samples]
    events: dict[int, list[Event]] = {request_id: [] for request_id in ids}
    while engine.has_work:
        for event in engine.step():
            events[event.request_id].append(event)
        assert engine.num_running <= 2
        assert int(engine._state.table.num_free()) >= engine._free_pages >= 0
    assert len(chunks) == 3 * 3
    alone = Engine(model, LIMITS)
    for request_id, sample in zip(ids, samples, strict=True):
        assert said(events[request_id]) == said(run(alone, [sample])[0])


def test_copies_of_a_request_that_ends_with_its_first_token(model, prompts, alone, monkeypatch) -> None:
    engine = Engine(model, LIMITS)
    chunks = count(engine, monkeypatch, "prefill")
    short, long = Request(prompts[3], 1), Request(prompts[3], 9)
    first, second, third = run(engine, [short, long, short])
    assert tokens(first) == tokens(third) == alone[3][:1]
    assert tokens(second) == alone[3]
    assert len(chunks) == 2  # 17 tokens in chunks of 16
    assert engine._free_pages == engine._num_pages


def test_only_neighbours_in_the_queue_share_and_nobody_is_overtaken(
    model, prompts, alone, monkeypatch
) -> None:
    engine = Engine(model, LIMITS)
    forks = count(engine, monkeypatch, "fork")
    order = [1, 2, 1, 1, 2]
    got = run(engine, [Request(prompts[i], 9) for i in order])
    assert [tokens(events) for events in got] == [alone[i] for i in order]
    assert len(forks) <= 1
    engine = Engine(model, LIMITS)
    ids = [engine.add(Request(prompts[i], 9)) for i in (1, 2, 1)]
    # The first step only sends.
    assert [[event.request_id for event in engine.step()] for _ in range(3)] == [[], ids[:1], ids[1:2]]


def test_another_prompt_of_the_same_length_is_no_copy(model, prompts, alone, monkeypatch) -> None:
    engine = Engine(model, LIMITS)
    forks = count(engine, monkeypatch, "fork")
    turned = Request(prompts[1][::-1], 9)
    first, second = run(engine, [Request(prompts[1], 9), turned])
    assert tokens(first) == alone[1]
    assert tokens(second) == tokens(run(engine, [turned])[0]) != alone[1]
    assert forks == []


def test_an_aborted_copy_leaves_the_others_alone(model, prompts, alone) -> None:
    engine = Engine(model, replace(LIMITS, max_total_tokens=192))
    ids = [engine.add(Request(prompts[4], 9)) for _ in range(3)]
    events: dict[int, list[int]] = {request_id: [] for request_id in ids}
    while engine.has_work:
        for event in engine.step():
            events[event.request_id].append(event.token_id)
        if len(events[ids[0]]) == 3:
            engine.abort(ids[0])
    assert events[ids[1]] == events[ids[2]] == alone[4]
    assert not np.asarray(engine._state.table.ref_counts).any()


# Ends and samples ----------------------------------------------------------------------------------------


def test_stop_ids_and_length(model, prompts, alone) -> None:
    engine = Engine(model, LIMITS)
    answer = alone[3]
    end = answer.index(answer[4])
    stopped = run(engine, [Request(prompts[3], 9, stop_token_ids=frozenset({answer[4]}))])[0]
    assert tokens(stopped) == answer[: end + 1]
    assert [event.finish_reason for event in stopped] == [None] * end + ["stop"]
    long = run(engine, [Request(prompts[3], 3)])[0]
    assert tokens(long) == answer[:3]
    assert long[-1].finish_reason == "length"


def test_generation_ends_at_max_model_len(model, prompts) -> None:
    engine = Engine(model, LIMITS)
    events = run(engine, [Request(prompts[5], 1000)])[0]
    assert len(prompts[5]) + len(events) == LIMITS.max_model_len
    assert events[-1].finish_reason == "length"


def test_seeds_decide_samples_and_neighbours_do_not(model, prompts) -> None:
    request = Request(prompts[1], 8, temperature=1.5, seed=7)
    engine = Engine(model, LIMITS)
    first = tokens(run(engine, [request])[0])
    crowd = [Request(prompt, 8, temperature=1.0, seed=i) for i, prompt in enumerate(prompts)]
    assert tokens(run(engine, [*crowd[:2], request, *crowd[2:]])[2]) == first
    # All 64 bits of a seed count.
    seeds = (8, 7 + 2**31, 7 + 2**32, 7 + 2**63)
    others = [tokens(run(engine, [replace(request, seed=seed)])[0]) for seed in seeds]
    assert len({tuple(other) for other in (first, *others)}) == 1 + len(seeds)


def test_every_token_is_drawn_with_a_key_of_its_own(model, prompts) -> None:
    """Of the seed's two halves and the number of tokens drawn before it."""
    seed = 7 + 5 * 2**32
    answer = tokens(run(Engine(model, LIMITS), [Request(prompts[1], 8, temperature=1.5, seed=seed)])[0])
    logits = whole_logits(model, prompts[1], answer)
    key = jax.random.fold_in(jax.random.key(np.uint32(7)), np.uint32(5))
    keys = jnp.stack([jax.random.fold_in(key, number) for number in range(len(answer))])
    assert mla_jax.sample(jnp.asarray(logits), keys, temperature=1.5).tolist() == answer


def test_logprobs_are_the_models_own(model, prompts) -> None:
    engine = Engine(model, LIMITS)
    prompt = prompts[2]
    events = run(engine, [Request(prompt, 4, temperature=2.0, seed=1, logprobs=3), Request(prompts[0], 4)])
    logits = whole_logits(model, prompt, tokens(events[0]))
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    for row, event in zip(expected, events[0], strict=True):
        assert event.logprobs is not None
        assert set(np.argsort(-row)[:3].tolist()) | {event.token_id} == set(event.logprobs)
        for token, value in event.logprobs.items():
            assert value == pytest.approx(row[token], abs=1e-4)
    assert all(event.logprobs is None for event in events[1])


def test_logprobs_do_not_depend_on_the_batch(model, prompts) -> None:
    """To the last bit, as the logits do not."""
    requests = [Request(prompt, 9, temperature=1.0, seed=3, logprobs=5) for prompt in prompts[:5]]
    engine = Engine(model, LIMITS)
    together = [said(one) for one in run(engine, requests)]
    assert together == [said(run(engine, [request])[0]) for request in requests]


def test_ids_beyond_the_tokenizer_are_never_drawn(model, prompts) -> None:
    engine = Engine(model, LIMITS, vocab_limit=5)
    events = run(engine, [Request(p, 9, temperature=3.0, seed=i) for i, p in enumerate(prompts)])
    assert max(max(tokens(one)) for one in events) < 5


def test_abort_gives_everything_back(model, prompts, alone) -> None:
    engine = Engine(model, LIMITS)
    ids = [engine.add(Request(prompt, 9)) for prompt in prompts[:5]]
    for _ in range(3):
        engine.step()
    for request_id in ids:
        engine.abort(request_id)
    engine.abort(12345)
    assert not engine.has_work
    assert engine._free_pages == 24
    assert [tokens(e) for e in run(engine, [Request(p, 9) for p in prompts])] == alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ()}, "prompt: expected at least one token, got none"),
        ({"prompt": (3, 2049)}, r"prompt: expected token ids in \[0, 2049\), got 2049 at position 1"),
        ({"prompt": (-1,)}, r"got -1 at position 0"),
        ({"prompt": (1,) * 64}, "prompt: expected at most 63 tokens"),
        ({"max_tokens": 0}, "max_tokens: expected at least 1, got 0"),
        ({"logprobs": 21}, "logprobs: expected 0 to 20, got 21"),
        ({"temperature": -0.5}, "temperature: expected finite numbers >= 0, got -0.5"),
        ({"temperature": float("nan")}, "temperature: expected finite numbers >= 0, got nan"),
        ({"top_p": 0.0}, r"top_p: expected numbers in \(0, 1\], got 0.0"),
        ({"top_k": -1}, "top_k: expected integers >= 0, got -1"),
        ({"min_p": 1.5}, r"min_p: expected numbers in \[0, 1\], got 1.5"),
    ],
)
def test_malformed_requests_are_refused(model, changes, message) -> None:
    engine = Engine(model, LIMITS)
    with pytest.raises(RequestError, match=message):
        engine.add(replace(Request((1, 2), 4), **changes))
    assert not engine.has_work


def test_a_request_that_can_never_fit_is_refused(model) -> None:
    engine = Engine(model, replace(LIMITS, max_total_tokens=32))
    with pytest.raises(RequestError, match=r"can never fit.* need 9 pages of 4 tokens, the pool has 8"):
        engine.add(Request((1,) * 20, 13))
    engine.add(Request((1,) * 20, 12))


@pytest.mark.parametrize(
    "field", ["max_model_len", "max_num_seqs", "max_total_tokens", "page_size", "decode_steps"]
)
@pytest.mark.parametrize("value", [0, -3, 1.5, True])
def test_limits_are_checked(field, value) -> None:
    with pytest.raises(RequestError, match=f"{field}: expected an integer >= 1, got"):
        replace(LIMITS, **{field: value})


def test_context_is_checked(model) -> None:
    with pytest.raises(RequestError, match="max_model_len: expected at most 96 .*, got 97"):
        Engine(model, replace(LIMITS, max_model_len=97))


def test_buckets() -> None:
    assert buckets(16, 100) == (16, 32, 64, 100)
    assert buckets(1, 8) == (1, 2, 4, 8)
    assert buckets(5, 5) == (5,)
    assert [bucket_of(n, (4, 8, 16)) for n in (1, 4, 5, 16)] == [4, 4, 8, 16]


# Checked mode ------------------------------------------------------------------------------------------


CHECKED = replace(
    LIMITS, min_prefill_bucket=16, max_num_seqs=2
)  # three programs: their compilation is the cost


def test_checked_steps_give_the_same_answers(model, prompts, alone) -> None:
    engine = Engine(model, CHECKED, checks=True)
    some = slice(3, 8)  # waiting, chunks, and rows that are given back
    together = run(engine, [Request(prompt, 9) for prompt in prompts[some]])
    assert [tokens(events) for events in together] == alone[some]
    compiled = engine.compiled_programs()
    assert 0 < compiled["prefill"] <= len(engine.prefill_buckets)
    assert 0 < compiled["decode"] <= len(engine.decode_buckets)


def test_a_checked_step_names_sequence_page_and_requests(model, prompts) -> None:
    engine = Engine(model, CHECKED, checks=True)
    ids = [engine.add(Request(prompts[i], 9, seed=i)) for i in (1, 6)]
    engine.step()
    engine.step()
    table = engine._state.table
    shared = table.pages.at[1, 0].set(table.pages[0, 0])
    engine._state = replace(engine._state, table=replace(table, pages=shared))
    with pytest.raises(
        CheckError,
        match=r"sequence 0: page 0 at entry 0: it is in 2 entries .* \(sequences of this step: requests 0, 1\)",
    ):
        engine.step()
    assert ids == [0, 1]


def test_a_checked_prefill_names_its_request(model, prompts) -> None:
    engine = Engine(model, CHECKED, checks=True)
    engine.add(Request(prompts[0], 1))
    run_to_end(engine)
    engine.add(Request(prompts[4], 2))
    engine.step()  # the first chunk of three
    table = engine._state.table
    engine._state = replace(engine._state, table=replace(table, ref_counts=table.ref_counts * 0))
    with pytest.raises(CheckError, match=r"taken 0 times.* \(sequences of this step: requests 1\)"):
        engine.step()


def run_to_end(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def test_a_weights_scale_is_looked_at_when_a_checked_engine_is_made(model) -> None:
    bad = QuantizedTensor(jnp.zeros((2, 16), jnp.uint8), jnp.full((2, 1), 255, jnp.uint8), "mxfp4")
    layers = [{**model.params["model"]["layers"][0], "extra": bad}, *model.params["model"]["layers"][1:]]
    broken = replace(model, params={**model.params, "model": {**model.params["model"], "layers": layers}})
    with pytest.raises(CheckError, match=r"weight params.model.layers.0.extra: mxfp4 scale \[0, 0\] is 255"):
        Engine(broken, LIMITS, checks=True)
    Engine(broken, LIMITS)


def test_checks_of_an_engine_are_a_bool(model) -> None:
    with pytest.raises(ConfigError, match="checks: expected True or False, got 1"):
        Engine(model, LIMITS, checks=1)  # type: ignore[arg-type]
    unchecked = Engine(model, LIMITS)
    assert unchecked.checks is False
    assert not isinstance(unchecked._programs.decode, CheckedStep)
