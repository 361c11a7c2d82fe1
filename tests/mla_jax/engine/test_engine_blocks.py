"""Blocks of decode steps: the tokens of single steps, ends on the device, and programs sent before tokens are read."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_case import CONFIG, LIMITS, run, said, tokens

from mla_jax.engine import Engine, Request
from mla_jax.engine.engine import default_decode_steps
from mla_jax.engine.programs import stop_bits
from mla_jax.errors import NumericsError
from mla_jax.testing import assert_in_place

BLOCKS = (1, 3, 4)


@pytest.fixture(scope="module")
def single(model):
    """Every program is one step."""
    return Engine(model, replace(LIMITS, decode_steps=1))


@pytest.fixture(scope="module", params=BLOCKS[1:])
def engine(request, model):
    return Engine(model, replace(LIMITS, decode_steps=request.param))


def mixture(prompts, single) -> list[Request]:
    """Ends of all kinds in the middle of blocks, warm and greedy rows, neighbours with the same prompt."""
    asked = []
    for i, prompt in enumerate(prompts):
        warm = {"temperature": 1.3, "seed": i, "top_p": (1.0, 0.8)[i % 2], "top_k": (0, 40, 0)[i % 3]}
        base = Request(prompt, 5 + i % 4, **(warm if i % 3 else {}))
        answer = tokens(run(single, [base])[0])
        stops = frozenset(answer[i % 5 : i % 5 + 1]) if i % 2 else frozenset()
        asked += [replace(base, stop_token_ids=stops)] * (2 if i == 4 else 1)
    return [*asked, Request(prompts[5], 1000), Request(prompts[1], 1), Request(prompts[0], 2)]


def test_the_tokens_are_those_of_single_steps(model, prompts, single, engine) -> None:
    asked = mixture(prompts, single)
    expected = [said(run(single, [request])[0]) for request in asked]
    assert {one[-1][2] for one in expected} == {"stop", "length"}
    assert len({len(one) for one in expected}) > 4
    assert [said(one) for one in run(engine, asked)] == expected
    assert [said(run(engine, [request])[0]) for request in asked[:5]] == expected[:5]
    assert engine._free_pages == engine._num_pages
    assert not np.asarray(engine._state.table.ref_counts).any()
    assert not np.asarray(engine._state.left).any()


def test_log_probabilities_are_those_of_single_steps(prompts, single, engine) -> None:
    """To the last bit, with neighbours that do not ask for any."""
    asked = [
        Request(prompts[2], 7, temperature=1.0, seed=3, logprobs=4),
        Request(prompts[1], 9),
        Request(prompts[6], 3, logprobs=0),
    ]
    expected = [said(run(single, [request])[0]) for request in asked]
    assert [said(one) for one in run(engine, asked)] == expected


def test_a_row_that_ends_stores_and_draws_nothing_more(model, prompts, single) -> None:
    """Whatever is sent for it: what the device holds, beside a row that goes on."""
    engine = Engine(model, replace(LIMITS, decode_steps=4, max_total_tokens=192))
    answer = tokens(run(single, [Request(prompts[3], 9)])[0])
    end = next(i for i in range(2, 9) if answer[i] not in answer[:i])
    stops = frozenset({answer[end], 10**6, -1, CONFIG.vocab_size})
    for request in (Request(prompts[3], 40, stop_token_ids=stops), Request(prompts[1], 50)):
        engine.add(request)
    for _ in range(3):  # two chunks and one
        engine.step()
    assert engine.num_running == 2
    rows = np.array([0, 1], np.int32)
    states = []
    for _ in range(5):
        before = np.asarray(engine._state.cache.kv).copy()
        drawn, engine._state = engine._programs.decode(
            model, engine._state, rows, np.int32(CONFIG.vocab_size), np.int32(3)
        )
        state = engine._state
        changed = (np.asarray(state.cache.kv) != before).any(-1).sum() // CONFIG.num_hidden_layers
        assert changed == (np.asarray(drawn.tokens) >= 0).sum()
        states.append(
            [int(field[0]) for field in (state.left, state.drawn, state.seq_lens, state.last_tokens)]
        )
    assert states[-1] == states[-2] == [0, end + 1, len(prompts[3]) + end, answer[end]]
    assert int(state.drawn[1]) >= 15
    assert int(state.left[1]) == 50 - int(state.drawn[1])


def test_a_program_is_sent_before_the_tokens_of_the_last_are_read(model, prompts, monkeypatch) -> None:
    engine = Engine(model, replace(LIMITS, decode_steps=3))
    order, decode, read = [], engine._programs.decode, engine._read
    monkeypatch.setattr(engine._programs, "decode", lambda *args: order.append("send") or decode(*args))
    monkeypatch.setattr(engine, "_read", lambda *args: order.append("read") or read(*args))
    (events,) = run(engine, [Request(prompts[1], 11)])
    assert len(events) == 11
    # The prompt's token and blocks of 3, 3, 3 and 1; nothing is sent for a request whose last token is on its way.
    assert order == ["send", "read"] * 4 + ["read"]


def test_a_known_end_gives_the_row_away_at_once(model, prompts, single) -> None:
    """Requests that wait are admitted as early as with single steps, counted in steps of the device."""
    asked = [Request(prompts[i], new) for i, new in ((1, 3), (0, 9), (6, 7), (7, 5), (1, 4))]

    def steps(block: int) -> int:
        engine = Engine(model, replace(LIMITS, decode_steps=block))
        taken, decode = [], engine._programs.decode

        def counting(*args):
            drawn, state = decode(*args)
            taken.append(int((np.asarray(drawn.tokens) >= 0).any(axis=1).sum()))
            return drawn, state

        engine._programs.decode = counting
        run(engine, asked)
        return sum(taken)

    assert steps(1) == steps(3) == steps(4)


def test_a_request_that_arrives_waits_for_one_block(model, prompts) -> None:
    engine = Engine(model, replace(LIMITS, decode_steps=4))
    first = engine.add(Request(prompts[1], 40))
    for _ in range(4):
        engine.step()
    read = len(run_until(engine, first, 9))
    second = engine.add(Request(prompts[0], 2))
    events = engine.step()  # sends the prompt and its first draw, reads the block that ran
    assert [event.request_id for event in events] == [first] * 4
    events = engine.step()
    assert events[0].request_id == second
    assert read >= 9


def run_until(engine: Engine, request_id: int, events: int) -> list:
    seen = []
    while len(seen) < events:
        seen += [event for event in engine.step() if event.request_id == request_id]
    return seen


def test_an_abort_drops_what_is_on_its_way(model, prompts, single) -> None:
    engine = Engine(model, replace(LIMITS, decode_steps=4))
    expected = tokens(run(single, [Request(prompts[4], 12)])[0])
    gone, stays = engine.add(Request(prompts[1], 30)), engine.add(Request(prompts[4], 12))
    seen = run_until(engine, gone, 3)
    assert seen
    engine.abort(gone)
    engine.abort(gone)
    late = engine.add(Request(prompts[4], 12))  # takes the row while the block is unread
    events = {stays: [], late: []}
    while engine.has_work:
        for event in engine.step():
            events[event.request_id].append(event.token_id)
    assert events[late] == expected
    assert expected[-len(events[stays]) :] == events[stays]
    assert engine._free_pages == engine._num_pages


def test_an_abort_of_all_leaves_nothing_behind(model, prompts, single) -> None:
    engine = Engine(model, replace(LIMITS, decode_steps=4))
    doomed = engine.add(Request(prompts[1], 30))
    run_until(engine, doomed, 2)
    engine.abort(doomed)
    assert not engine.has_work
    assert engine.step() == []
    request = Request(prompts[2], 6)
    assert said(run(engine, [request])[0]) == said(run(single, [request])[0])


@pytest.fixture(scope="module")
def poisoned(model, prompts, single):
    """The model with an embedding that is no number, for a token that one answer comes to."""
    answer = tokens(run(single, [Request(prompts[3], 9)])[0])
    at = next(i for i in range(3, 8) if answer[i] not in answer[:i])
    weight = model.params["model"]["embed_tokens"]["weight"].at[answer[at]].set(jnp.nan)
    inner = {**model.params["model"], "embed_tokens": {"weight": weight}}
    return replace(model, params={**model.params, "model": inner}), at


@pytest.mark.parametrize("block", BLOCKS)
def test_logits_that_are_no_numbers_name_the_request_and_cost_no_other_a_token(
    prompts, single, poisoned, block
) -> None:
    broken, at = poisoned
    engine = Engine(broken, replace(LIMITS, decode_steps=block))
    good = [Request(prompts[0], 12), Request(prompts[6], 9, temperature=1.0, seed=4)]
    expected = [said(run(engine, [request])[0]) for request in good]
    ids = [engine.add(request) for request in (good[0], Request(prompts[3], 20), good[1])]
    events = {request_id: [] for request_id in ids}
    errors = []
    while engine.has_work:
        try:
            for event in engine.step():
                events[event.request_id].append(event)
        except NumericsError as error:
            errors.append(str(error))
    assert errors == [
        f"request {ids[1]}: the logits after {len(prompts[3]) + at + 1} tokens are not numbers; the weights may be "
        "damaged, or too large for the compute dtype"
    ]
    assert [said(events[ids[0]]), said(events[ids[2]])] == expected
    assert len(events[ids[1]]) == at + 1
    assert engine._free_pages == engine._num_pages


def test_checked_blocks_give_the_same_answers(model, prompts, single) -> None:
    sizes = {"min_prefill_bucket": 16, "max_num_seqs": 2, "decode_steps": 3}
    engine = Engine(model, replace(LIMITS, **sizes), checks=True)
    asked = mixture(prompts, single)[1:5]
    assert [said(one) for one in run(engine, asked)] == [said(run(single, [request])[0]) for request in asked]


def test_the_pool_stays_in_place_in_a_block(model) -> None:
    engine = Engine(model, replace(LIMITS, max_total_tokens=8192, decode_steps=4))
    rows, number = np.array([0, 1], np.int32), np.int32(4)
    report = assert_in_place(engine._programs.decode, engine.model, engine._state, rows, number, number)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(engine._state))
    assert report.alias_bytes == state_bytes  # all of the state, not the pool alone


def test_one_step_is_a_program_without_a_loop(model) -> None:
    """But for those of the random numbers."""
    rows, number = np.array([0], np.int32), np.int32(9)
    loops = []
    for block, limit in ((1, ()), (2, (number,))):
        engine = Engine(model, replace(LIMITS, decode_steps=block))
        lowered = engine._programs.decode.lower(engine.model, engine._state, rows, number, *limit)
        loops.append(lowered.as_text().count("stablehlo.while"))
    assert loops[1] == loops[0] + 1


def test_the_default_is_of_the_platform(model, monkeypatch) -> None:
    assert Engine(model, LIMITS).decode_steps == default_decode_steps() == 4
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert default_decode_steps() == 1
    assert Engine(model, replace(LIMITS, decode_steps=7)).decode_steps == 7


def test_stop_bits() -> None:
    bits = stop_bits({0, 31, 32, 2048, 2049, -1, 10**7}, 2049)
    assert (bits.shape, bits.dtype) == ((65,), np.uint32)
    found = [word * 32 + bit for word in range(65) for bit in range(32) if bits[word] >> bit & 1]
    assert found == [0, 31, 32, 2048]
    assert not stop_bits((), 64).any()
    assert len(stop_bits((), 64)) == 2
