"""The router against an independent NumPy implementation, and the sparse layer against a loop over experts."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mla_jax.config import RouterConfig
from mla_jax.layers import MoE
from mla_jax.layers.moe import Router, route
from mla_jax.parameters import parameter_table, random_parameters

KERNELS = ["reference", "native"]


def best(values, count):
    """Indices of the `count` largest values, the lowest index first among equals."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]


def numpy_route(logits, bias, router, k):
    ids, weights = [], []
    for row in np.asarray(logits, np.float64):
        if router.scoring_func == "sigmoid":
            scores = [1 / (1 + np.exp(-x)) for x in row]
        else:
            shifted = [np.exp(x - max(row)) for x in row]
            scores = [x / sum(shifted) for x in shifted]
        biased = scores if bias is None else [s + b for s, b in zip(scores, bias, strict=True)]
        allowed = range(len(row))
        if router.topk_method != "greedy":
            size = len(row) // router.n_group
            groups = [range(g * size, (g + 1) * size) for g in range(router.n_group)]
            if router.topk_method == "noaux_tc":
                value = [sum(sorted((biased[e] for e in group), reverse=True)[:2]) for group in groups]
            else:
                value = [max(biased[e] for e in group) for group in groups]
            allowed = [e for g in best(value, router.topk_group) for e in groups[g]]
        chosen = best([biased[e] if e in allowed else -np.inf for e in range(len(row))], k)
        weight = [scores[e] for e in chosen]
        if router.norm_topk_prob:
            weight = [w / (sum(weight) + 1e-20) for w in weight]
        ids.append(chosen)
        weights.append([w * router.routed_scaling_factor for w in weight])
    return np.array(ids), np.array(weights)


ROUTERS = [
    RouterConfig(scoring, method, n_group, topk_group, norm, scale)
    for scoring, (method, n_group, topk_group), (norm, scale) in itertools.product(
        ("softmax", "sigmoid"),
        (
            ("greedy", 1, 1),
            ("greedy", 4, 1),  # greedy ignores groups
            ("group_limited_greedy", 4, 2),
            ("group_limited_greedy", 3, 1),
            ("noaux_tc", 4, 2),
            ("noaux_tc", 6, 3),
            ("noaux_tc", 1, 1),
        ),
        ((True, 2.5), (False, 16.0)),
    )
]


def name(router):
    return f"{router.scoring_func}-{router.topk_method}-{router.n_group}-{router.topk_group}-{router.norm_topk_prob}"


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    "router",
    ROUTERS,
    ids=lambda r: f"{r.scoring_func}-{r.topk_method}-{r.n_group}-{r.topk_group}-{r.norm_topk_prob}",
)
def test_route_is_the_numpy_router(rng, router, with_bias):
    logits = rng.standard_normal((40, 12)).astype(np.float32) * 2
    # A bias around -0.7 makes every choice negative: rejected groups have to be masked with -inf, not 0.
    bias = (rng.standard_normal(12) * 0.5 - 0.7).astype(np.float32) if with_bias else None
    expected_ids, expected = numpy_route(logits, bias, router, 3)
    ids, weights = route(jnp.asarray(logits), None if bias is None else jnp.asarray(bias), router, 3)
    assert (ids.dtype, weights.dtype) == (jnp.int32, jnp.float32)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


@pytest.mark.parametrize("router", ROUTERS, ids=name)
def test_ties_go_to_the_lowest_expert_and_group(router):
    # Few distinct values, all exactly representable: most choices are ties.
    rows = np.array(list(itertools.product((0.0, 1.0), repeat=6)), np.float32)
    logits = np.concatenate([rows, rows[::-1]], axis=1)
    ids, _ = route(jnp.asarray(logits), None, router, 2)
    np.testing.assert_array_equal(ids, numpy_route(logits, None, router, 2)[0])


def test_bias_chooses_and_never_weighs():
    router = RouterConfig("sigmoid", "noaux_tc", 1, 1, False, 1.0)
    logits = jnp.array([[0.0, 1.0, 2.0, 3.0]], jnp.float32)
    bias = jnp.array([9.0, 0.0, 9.0, -9.0], jnp.float32)
    ids, weights = route(logits, bias, router, 2)
    assert ids.tolist() == [[2, 0]]
    np.testing.assert_allclose(weights, [[1 / (1 + np.exp(-2.0)), 0.5]], rtol=1e-6)


def test_normalising_vanishing_scores_is_finite():
    router = RouterConfig("sigmoid", "noaux_tc", 1, 1, True, 2.5)
    _, weights = route(jnp.full((1, 4), -200.0, jnp.float32), None, router, 2)
    np.testing.assert_array_equal(weights, np.zeros((1, 2)))


def test_low_precision_logits_are_scored_in_float32():
    router = RouterConfig("softmax", "greedy", 1, 1, False, 1.0)
    logits = jnp.array([[1.0, 2.0, 3.0, 4.0]], jnp.bfloat16)
    np.testing.assert_allclose(route(logits, None, router, 4)[1].sum(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("kernels", KERNELS)
def test_router_computes_logits_in_float32(rng, config, kernels):
    """bfloat16 activations, float32 logits: rounding them first would turn near ties over."""
    table = parameter_table(config)["model"]["layers"][1]["mlp"]["gate"]
    params = random_parameters(table, jax.random.key(3), "bfloat16")
    assert params["e_score_correction_bias"].dtype == jnp.float32
    params["e_score_correction_bias"] = jnp.asarray(rng.standard_normal(8) * 0.3, jnp.float32)
    x = jnp.asarray(rng.standard_normal((50, 18)), jnp.bfloat16)
    logits = np.asarray(x, np.float64) @ np.asarray(params["weight"], np.float64).T
    expected_ids, expected = numpy_route(
        logits, np.asarray(params["e_score_correction_bias"]), config.router, 3
    )
    ids, weights = Router(config, params, kernels=kernels)(x)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)


def moe(config, kernels, shared=2):
    config = dataclasses.replace(config, n_shared_experts=shared)
    params = random_parameters(
        parameter_table(config)["model"]["layers"][1]["mlp"], jax.random.key(1), "float32"
    )
    return MoE(config, params, kernels=kernels), params


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("shared", [0, 2])
def test_moe_is_a_sum_over_chosen_experts_plus_shared(rng, config, shared, kernels):
    layer, params = moe(config, kernels, shared)
    x = rng.standard_normal((7, 18)).astype(np.float32)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    silu = lambda v: v / (1 + np.exp(-v))  # noqa: E731
    ids, weights = numpy_route(
        x @ exact["gate"]["weight"].T, exact["gate"]["e_score_correction_bias"], config.router, 3
    )
    expected = np.zeros((7, 18))
    for t in range(7):
        for e, w in zip(ids[t], weights[t], strict=True):
            gate, up = np.split(exact["experts"]["gate_up_proj"][e] @ x[t], 2)
            expected[t] += w * (exact["experts"]["down_proj"][e] @ (silu(gate) * up))
        if shared:
            own = {name: leaf["weight"] for name, leaf in exact["shared_experts"].items()}
            expected[t] += own["down_proj"] @ (silu(own["gate_proj"] @ x[t]) * (own["up_proj"] @ x[t]))
    assert (layer.shared_experts is None) == (shared == 0)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=2e-5)


@pytest.mark.parametrize("kernels", KERNELS)
def test_padded_rows_choose_no_expert_and_poison_nobody(rng, config, kernels):
    layer, _ = moe(config, kernels)
    x = jnp.asarray(rng.standard_normal((6, 18)), jnp.float32)
    live = jnp.array([True, True, False, True, False, True])
    clean, poisoned = layer(x, live), layer(jnp.where(live[:, None], x, jnp.nan), live)
    np.testing.assert_array_equal(clean[live], layer(x)[live])
    np.testing.assert_array_equal(poisoned[live], clean[live])
    # A padded row keeps only what the shared experts say.
    np.testing.assert_array_equal(clean[~live], layer.shared_experts(x)[~live])
