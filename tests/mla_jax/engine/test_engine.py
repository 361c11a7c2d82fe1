"""The scheduler: every request gets its own answer, whatever else is being served."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import mla_jax
from mla_jax.config import RopeConfig, RouterConfig
from mla_jax.engine import Engine, EngineLimits, Event, Request
from mla_jax.engine.programs import bucket_of, buckets
from mla_jax.errors import RequestError

CONFIG = mla_jax.ModelConfig(
    model_type="deepseek_v3",
    vocab_size=61,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    q_lora_rank=None,
    kv_lora_rank=20,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=10,
    intermediate_size=24,
    moe_intermediate_size=12,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=1,
    mlp_layer_types=("dense", "sparse"),
    router=RouterConfig("sigmoid", "noaux_tc", 1, 1, True, 1.5),
    rope=RopeConfig(1e4, 4),
    rms_norm_eps=1e-6,
    latent_norm_eps=1e-6,
    max_position_embeddings=96,
)

LIMITS = EngineLimits(
    max_model_len=64,
    max_num_seqs=3,
    max_total_tokens=96,
    page_size=4,
    max_prefill_tokens=16,
    min_prefill_bucket=4,
)

PROMPT_LENGTHS = (1, 5, 16, 17, 33, 40, 2, 9)


@pytest.fixture(scope="module")
def model():
    return mla_jax.freeze(mla_jax.MLAForCausalLM.init(CONFIG, jax.random.key(3)))


@pytest.fixture(scope="module")
def prompts():
    generator = np.random.default_rng(11)
    return [tuple(generator.integers(0, CONFIG.vocab_size, n).tolist()) for n in PROMPT_LENGTHS]


def run(engine: Engine, requests: list[Request]) -> list[list[Event]]:
    """Serves all requests; the events of each, in order."""
    ids = [engine.add(request) for request in requests]
    events: dict[int, list[Event]] = {request_id: [] for request_id in ids}
    for _ in range(10_000):
        if not engine.has_work:
            return [events[request_id] for request_id in ids]
        for event in engine.step():
            events[event.request_id].append(event)
    raise AssertionError("the engine does not come to an end")


def tokens(events: list[Event]) -> list[int]:
    return [event.token_id for event in events]


@pytest.fixture(scope="module")
def alone(model, prompts):
    """Greedy answers when each request has the engine for itself."""
    engine = Engine(model, LIMITS)
    return [tokens(run(engine, [Request(prompt, 9)])[0]) for prompt in prompts]


def test_teacher_forcing_agrees(model, prompts, alone) -> None:
    forward = jax.jit(mla_jax.forward)
    for prompt, answer in zip(prompts, alone, strict=True):
        logits = np.asarray(forward(model, np.array([prompt + tuple(answer)])))[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer


def test_answers_do_not_depend_on_the_batch(model, prompts, alone) -> None:
    # 8 requests over 3 rows and a pool that holds two of the longest: they wait their turn.
    engine = Engine(model, LIMITS)
    together = run(engine, [Request(prompt, 9) for prompt in prompts])
    assert [tokens(events) for events in together] == alone
    assert not engine.has_work
    assert engine.num_running == 0


@pytest.mark.parametrize("page_size", [1, 64])
def test_page_size_changes_nothing(model, prompts, alone, page_size) -> None:
    engine = Engine(model, replace(LIMITS, page_size=page_size, max_total_tokens=192))
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


def test_programs_are_bounded_and_reused(model, prompts) -> None:
    # Sizes that no other test has, so that nothing is compiled yet.
    engine = Engine(model, replace(LIMITS, max_total_tokens=100, max_model_len=60))
    assert sum(engine.compiled_programs().values()) == 0
    run(engine, [Request(prompt, 9) for prompt in prompts])
    first = engine.compiled_programs()
    decode = first.pop("decode")
    assert first == {"admit": 1, "release": 1, "prefill": 3}
    assert 2 <= decode <= len(engine.decode_buckets) == len(engine.prefill_buckets) == 3
    assert sum(first.values()) <= engine.max_programs
    run(engine, [Request(prompt[::-1], 9, temperature=0.7, seed=5) for prompt in prompts])
    assert engine.compiled_programs() == {**first, "decode": decode}


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
    others = [tokens(run(engine, [replace(request, seed=seed)])[0]) for seed in range(8, 14)]
    assert any(other != first for other in others)


def test_logprobs_are_the_models_own(model, prompts) -> None:
    engine = Engine(model, LIMITS)
    prompt = prompts[2]
    events = run(engine, [Request(prompt, 4, temperature=2.0, seed=1, logprobs=3), Request(prompts[0], 4)])
    answer = tokens(events[0])
    logits = np.asarray(jax.jit(mla_jax.forward)(model, np.array([prompt + tuple(answer)])))[0]
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    for i, event in enumerate(events[0]):
        row = expected[len(prompt) - 1 + i]
        assert event.logprobs is not None
        assert set(np.argsort(-row)[:3].tolist()) | {event.token_id} == set(event.logprobs)
        for token, value in event.logprobs.items():
            assert value == pytest.approx(row[token], abs=1e-4)
    assert all(event.logprobs is None for event in events[1])


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
        ({"prompt": (3, 61)}, r"prompt: expected token ids in \[0, 61\), got 61 at position 1"),
        ({"prompt": (-1,)}, r"got -1 at position 0"),
        ({"prompt": (1,) * 64}, "prompt: expected at most 63 tokens"),
        ({"max_tokens": 0}, "max_tokens: expected at least 1, got 0"),
        ({"logprobs": 21}, "logprobs: expected 0 to 20, got 21"),
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


@pytest.mark.parametrize("field", ["max_model_len", "max_num_seqs", "max_total_tokens", "page_size"])
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
