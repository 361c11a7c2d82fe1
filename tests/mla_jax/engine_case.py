"""What the tests of the engine share: a model's sizes, an engine's, and how requests are served and compared."""

import mla_jax
from mla_jax.config import RopeConfig, RouterConfig
from mla_jax.engine import Engine, EngineLimits, Event, Request

CONFIG = mla_jax.ModelConfig(
    model_type="deepseek_v3",
    vocab_size=2049,  # so wide that XLA sums a row in an order that depends on the number of rows
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


def said(events: list[Event]) -> list[tuple]:
    """Everything but the request's number."""
    return [(event.token_id, event.logprobs, event.finish_reason) for event in events]


def count(engine: Engine, monkeypatch, name: str) -> list:
    """The arguments of every call of one of the engine's programs from here on."""
    calls, program = [], getattr(engine._programs, name)
    monkeypatch.setattr(engine._programs, name, lambda *args: calls.append(args) or program(*args))
    return calls
