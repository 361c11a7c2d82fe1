"""`LLM.stream`: piece by piece what `generate` says, whoever reads, gives up or fails beside it."""

import gc
import itertools
import threading
from dataclasses import replace

import pytest
from llm_case import GREEDY, PROMPTS, WARM, collect, parts

from mla_jax.errors import MlaJaxError, RequestError


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
        thread.join()
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
    waiting = llm._start(llm._requests([[3, 4]], GREEDY))[0]
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
    got = [next(other)]
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
        got.extend(other)
    assert 0 < len(got) < GREEDY.max_tokens
    assert [piece.token_id for piece in got] == alone[1].token_ids[: len(got)]
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
