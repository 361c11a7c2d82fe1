"""ModelConfig and its parts: every field is checked, every complaint names field, expected and got."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest

from mla_jax.config import (
    MAX_EXPERTS,
    MAX_INT,
    MAX_LAYERS,
    MAX_NUMBER,
    MAX_POSITIONS,
    ModelConfig,
    RopeConfig,
    RouterConfig,
    YarnConfig,
)
from mla_jax.errors import ConfigError, MlaJaxError

YARN = YarnConfig(40.0, 4096, 32.0, 1.0, 1.0, 1.0)
ROPE = RopeConfig(1e4, 6, "interleaved", YARN)
ROUTER = RouterConfig("sigmoid", "noaux_tc", 4, 2, True, 2.5)
CONFIG = ModelConfig(
    model_type="deepseek_v3",
    vocab_size=11,
    hidden_size=18,
    num_hidden_layers=2,
    num_attention_heads=3,
    q_lora_rank=14,
    kv_lora_rank=10,
    qk_nope_head_dim=5,
    qk_rope_head_dim=6,
    v_head_dim=7,
    intermediate_size=20,
    moe_intermediate_size=9,
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_shared_experts=2,
    mlp_layer_types=("dense", "sparse"),
    router=ROUTER,
    rope=ROPE,
    rms_norm_eps=1e-5,
    latent_norm_eps=1e-6,
    max_position_embeddings=64,
)

NO_INTEGERS = (None, True, False, 1.0, "1", [], math.nan, -1, MAX_INT + 1, 2**64, 10**5000, np.int64(1))
NO_NUMBERS = (
    None,
    True,
    "1",
    [],
    math.nan,
    math.inf,
    -math.inf,
    10**5000,
    2 * MAX_NUMBER,
    -1.0,
    np.float32(1),
)


def refused(base: Any, key: str, value: object, *parts: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(base, **{key: value})
    message = str(caught.value)
    for part in (key, "expected ", ", got ", *parts):
        assert part in message, message
    assert len(message) < 500
    assert "\n" not in message


def test_errors_are_value_errors_too():
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, MlaJaxError)


@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "intermediate_size",
        "max_position_embeddings",
    ],
)
def test_positive_integers(key):
    for value in (*NO_INTEGERS, 0):
        refused(CONFIG, key, value, "an integer from 1 to 2147483647")


@pytest.mark.parametrize(
    "key",
    [
        "moe_intermediate_size",
        "n_routed_experts",
        "num_experts_per_tok",
        "n_shared_experts",
        "num_nextn_predict_layers",
    ],
)
def test_integers(key):
    for value in NO_INTEGERS:
        refused(CONFIG, key, value, "an integer from 0 to 2147483647")


@pytest.mark.parametrize("key", ["q_lora_rank", "index_topk", "bos_token_id", "pad_token_id"])
def test_optional_integers(key):
    dataclasses.replace(CONFIG, **{key: None})
    for value in NO_INTEGERS[1:]:
        refused(CONFIG, key, value)
    if key in ("q_lora_rank", "index_topk"):
        refused(CONFIG, key, 0)
    else:
        assert getattr(dataclasses.replace(CONFIG, **{key: 0}), key) == 0


@pytest.mark.parametrize("key", ["rms_norm_eps", "latent_norm_eps"])
def test_epsilons(key):
    for value in (*NO_NUMBERS, 0, 0.0):
        refused(CONFIG, key, value, "a finite number above 0")
    for value in (1, 1.0, 5.5):
        refused(CONFIG, key, value, "a number below 1")


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias", "tie_word_embeddings"])
def test_booleans(key):
    for value in (None, 0, 1, "true", [], np.bool_(True)):
        refused(CONFIG, key, value, "true or false")
    assert getattr(dataclasses.replace(CONFIG, **{key: True}), key) is True


@pytest.mark.parametrize(
    ("key", "values", "part"),
    [
        ("model_type", [None, 1, [], b"x"], "a string"),
        ("tensor_prefix", [None, 1, []], "a string"),
        (
            "dtype",
            [None, "float64", "bf16", "", np.float32, ["float32"]],
            "one of 'float32', 'bfloat16', 'float16'",
        ),
        ("quantization", [{}, 1, b"{}"], "JSON text or None"),
        ("eos_token_ids", [None, 1, [1], {1}], "a tuple"),
        ("mlp_layer_types", [None, ["dense", "sparse"], "dense", {}], "a tuple"),
        (
            "mlp_layer_types",
            [("dense", "moe"), ("dense", None), ("dense", 1), ("dense", ["sparse"])],
            "one of",
        ),
        ("mlp_layer_types", [(), ("dense",), ("dense", "sparse", "sparse")], "num_hidden_layers = 2"),
        ("rope", [None, {}, YARN], "a RopeConfig"),
        ("router", [None, {}, ROPE], "a RouterConfig"),
    ],
)
def test_other_types(key, values, part):
    for value in values:
        refused(CONFIG, key, value, part)


def test_token_ids():
    for value in (-1, True, 1.0, None, "1"):
        with pytest.raises(ConfigError, match="eos_token_id: expected an integer"):
            dataclasses.replace(CONFIG, eos_token_ids=(1, value))
    assert dataclasses.replace(CONFIG, eos_token_ids=(999,)).eos_token_ids == (999,)  # beyond the vocabulary


def test_bounds_on_what_is_allocated():
    refused(CONFIG, "num_hidden_layers", MAX_LAYERS + 1, f"at most {MAX_LAYERS}")
    refused(CONFIG, "max_position_embeddings", MAX_POSITIONS + 1, f"at most {MAX_POSITIONS}")
    one = RouterConfig("softmax", "greedy", 1, 1, False, 1.0)
    few = dataclasses.replace(CONFIG, router=one)
    assert dataclasses.replace(few, n_routed_experts=MAX_EXPERTS).n_routed_experts == MAX_EXPERTS
    refused(few, "n_routed_experts", MAX_EXPERTS + 1, f"at most {MAX_EXPERTS}")
    layers = {"num_hidden_layers": 17, "mlp_layer_types": ("sparse",) * 17}
    with pytest.raises(
        ConfigError, match=r"n_routed_experts: expected at most .* 16 times that in all layers"
    ):
        dataclasses.replace(few, n_routed_experts=MAX_EXPERTS, **layers)
    most = dataclasses.replace(
        CONFIG, num_hidden_layers=MAX_LAYERS, mlp_layer_types=("sparse",) * MAX_LAYERS,
        max_position_embeddings=MAX_POSITIONS,
    )  # fmt: skip
    assert most.max_context == MAX_POSITIONS


def test_rope_dim_is_the_heads():
    refused(CONFIG, "qk_rope_head_dim", 8, "qk_rope_head_dim = 8, got 6")
    refused(CONFIG, "rope", RopeConfig(1e4, 8), "rope.dim", "got 8")


def test_sparse_layers_need_experts():
    for key in ("n_routed_experts", "moe_intermediate_size", "num_experts_per_tok"):
        refused(CONFIG, key, 0, "an integer from 1")
    assert dataclasses.replace(CONFIG, n_shared_experts=0).n_shared_experts == 0


def test_dense_models_have_none():
    dense = {"mlp_layer_types": ("dense", "dense"), "n_routed_experts": 0, "router": None}
    assert dataclasses.replace(CONFIG, **dense).router is None
    for change in ({"n_routed_experts": 8}, {"router": ROUTER}):
        with pytest.raises(ConfigError, match="n_routed_experts: expected 0 and no router"):
            dataclasses.replace(CONFIG, **{**dense, **change})


@pytest.mark.parametrize(
    ("router", "changes", "message"),
    [
        (ROUTER, {"n_routed_experts": 10}, "n_group: expected a divisor of n_routed_experts = 10, got 4"),
        (ROUTER, {"n_routed_experts": 4}, "n_group: expected at least two experts a group .*, got 4"),
        (ROUTER, {"num_experts_per_tok": 5}, "num_experts_per_tok: expected at most 4, .*, got 5"),
        (
            RouterConfig("softmax", "greedy", 1, 1, False, 1.0),
            {"num_experts_per_tok": 9},
            "num_experts_per_tok: expected at most 8, .*, got 9",
        ),
        (
            RouterConfig("softmax", "group_limited_greedy", 8, 3, False, 1.0),
            {"num_experts_per_tok": 4},
            "num_experts_per_tok: expected at most 3, .*, got 4",
        ),
    ],
)
def test_groups_and_experts(router, changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, router=router, **changes)


def test_groups_and_experts_at_the_limit():
    dataclasses.replace(CONFIG, num_experts_per_tok=4)
    one_each = RouterConfig("softmax", "group_limited_greedy", 8, 3, False, 1.0)
    dataclasses.replace(CONFIG, router=one_each, num_experts_per_tok=3)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("scoring_func", [None, "relu", 1, ["sigmoid"]]),
        ("topk_method", [None, "topk", 1, ["greedy"]]),
        ("n_group", [*NO_INTEGERS, 0]),
        ("topk_group", [*NO_INTEGERS, 0]),
        ("norm_topk_prob", [None, 0, 1, "true"]),
        ("routed_scaling_factor", [*NO_NUMBERS, 0, 0.0]),
    ],
)
def test_router(key, values):
    for value in values:
        refused(ROUTER, key, value)


def test_router_keeps_at_most_all_groups():
    refused(ROUTER, "topk_group", 5, "at most n_group = 4, got 5")
    with pytest.raises(ConfigError, match="topk_group: expected at most n_group = 1, got 2"):
        dataclasses.replace(ROUTER, n_group=1)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("theta", [*NO_NUMBERS, 0, 1, 1.0, 0.5]),
        ("dim", [*NO_INTEGERS, 0, 1, 7]),
        ("layout", [None, "neox", 1, ["half"]]),
    ],
)
def test_rope(key, values):
    spoken = {"theta": "rope_theta", "dim": "qk_rope_head_dim", "layout": "rope layout"}[key]
    for value in values:
        with pytest.raises(ConfigError, match=f"^{spoken}: expected .*, got "):
            dataclasses.replace(ROPE, **{key: value})


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("factor", [*NO_NUMBERS, 0, 0.99]),
        ("original_max_position_embeddings", [*NO_INTEGERS, 0]),
        ("beta_fast", [*NO_NUMBERS, 0.5]),
        ("beta_slow", [*NO_NUMBERS, 0, 0.0, 1e-300, 33.0]),
        ("mscale", NO_NUMBERS),
        ("mscale_all_dim", NO_NUMBERS),
        ("attention_factor", [*NO_NUMBERS[1:], 0, 0.0]),
    ],
)
def test_yarn(key, values):
    for value in values:
        reported = "beta_fast" if key == "beta_slow" and value == 33.0 else key
        with pytest.raises(ConfigError, match=f"^rope scaling: {reported}: expected .*, got "):
            dataclasses.replace(YARN, **{key: value})


def test_largest_numbers():
    big = YarnConfig(MAX_NUMBER, MAX_INT, MAX_NUMBER, MAX_NUMBER, MAX_NUMBER, MAX_NUMBER, MAX_NUMBER)
    assert RopeConfig(MAX_NUMBER, MAX_INT - 1, "half", big).scaling == big
    assert YarnConfig(int(MAX_NUMBER), 1).factor == MAX_NUMBER


def test_frozen_hashable_static():
    """A config is a static argument under jit: equal ones must compile once."""
    same = dataclasses.replace(CONFIG, rope=dataclasses.replace(ROPE, scaling=dataclasses.replace(YARN)))
    assert same == CONFIG
    assert same is not CONFIG
    assert hash(same) == hash(CONFIG)
    assert dataclasses.replace(CONFIG, vocab_size=12) != CONFIG
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.vocab_size = 12
    traces = []

    def step(config: ModelConfig) -> jax.Array:
        traces.append(config)
        return jax.numpy.zeros(config.vocab_size)

    jitted = jax.jit(step, static_argnums=0)
    assert jitted(CONFIG).shape == jitted(same).shape == (11,)
    assert len(traces) == 1


def test_derived_values():
    assert CONFIG.qk_head_dim == 11
    assert CONFIG.max_context == 64
    assert CONFIG.context_reason == "max_position_embeddings in config.json"


@pytest.mark.parametrize(("index_topk", "context"), [(1, 1), (63, 63), (64, 64), (65, 64), (MAX_INT, 64)])
def test_max_context_with_an_indexer(index_topk, context):
    config = dataclasses.replace(CONFIG, model_type="deepseek_v32", index_topk=index_topk)
    assert config.max_context == context
    if index_topk < 64:
        assert config.context_reason == (
            f"deepseek_v32 attends to its index_topk = {index_topk} best tokens only, and beyond that many tokens"
            " choosing them needs the sparse indexer, which is not supported"
        )
    else:
        assert config.context_reason == "max_position_embeddings in config.json"
