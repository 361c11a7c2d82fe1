"""What a step must call follows from its equations and the library's targets, and not from the dispatcher."""

import jax
import jax.numpy as jnp
import pytest

from custom_calls.fused_qk_rmsnorm import TARGET_V1, fused_qk_rmsnorm
from custom_calls.linear import linear
from custom_calls.registry import Library
from custom_calls.rmsnorm import rmsnorm
from mla_jax.verify.lowering import NONE, Calls, calls_in, expected_calls

X, WEIGHT, NORM = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 8), (8, 8), (8,)))
LINEAR = ("mla_jax.linear.v1", "mla_jax.linear_bias.v1")


def library(*targets):
    return Library("cpu", "declared", frozenset(targets), "declared", {})


def expected(step, *arguments, having=()):
    return expected_calls(jax.make_jaxpr(step)(*arguments), library(*having))


def calls(targets=(), native=(), lacking=()):
    return Calls(frozenset(targets), frozenset(native), frozenset(lacking))


def both(x, weight, norm, kernels="auto"):
    return linear(rmsnorm(x, norm, eps=1e-6, kernels=kernels), weight, kernels=kernels)


def test_native_and_lacking_ops():
    arguments = X, WEIGHT, NORM
    assert expected(both, *arguments) == calls(lacking=("mla_jax.linear", "mla_jax.rmsnorm"))
    # A part of an op's targets is not enough, although this call needs no other.
    assert expected(both, *arguments, having=LINEAR[:1]).lacking == {"mla_jax.linear", "mla_jax.rmsnorm"}
    assert expected(both, *arguments, having=LINEAR) == calls(
        LINEAR[:1], ("mla_jax.linear",), ("mla_jax.rmsnorm",)
    )
    every = expected(both, *arguments, having=(*LINEAR, "mla_jax.rmsnorm.v1"))
    assert every == calls((LINEAR[0], "mla_jax.rmsnorm.v1"), ("mla_jax.linear", "mla_jax.rmsnorm"))


def test_a_native_form_that_hands_over_to_xla_calls_nothing():
    many = jax.ShapeDtypeStruct((200, 8), jnp.float32)
    found = expected(both, many, WEIGHT, NORM, having=(*LINEAR, "mla_jax.rmsnorm.v1"))
    assert found == calls((LINEAR[0],), ("mla_jax.linear", "mla_jax.rmsnorm"))


def test_a_reference_that_was_asked_for_lacks_nothing():
    assert expected(lambda *a: both(*a, kernels="reference"), X, WEIGHT, NORM) == NONE


def test_the_contract_that_the_library_holds():
    def step(x, norm):
        return fused_qk_rmsnorm(x, x, norm, norm, q_eps=1e-6)

    found = expected(step, X, NORM, having=(TARGET_V1,))
    assert found == calls((TARGET_V1,), ("mla_jax.fused_qk_rmsnorm",))


@pytest.mark.parametrize(
    "wrap",
    [
        jax.jit,
        lambda f: lambda *a: jax.lax.cond(a[0][0, 0] > 0, lambda: f(*a), lambda: a[0]),
        lambda f: lambda *a: jax.lax.fori_loop(0, 3, lambda i, x: f(x, *a[1:]), a[0]),
        lambda f: lambda *a: jax.lax.scan(lambda x, _: (f(x, *a[1:]), None), a[0], length=3)[0],
        jax.checkpoint,
    ],
    ids=["jit", "cond", "loop", "scan", "checkpoint"],
)
def test_equations_inside_others(wrap):
    assert expected(wrap(both), X, WEIGHT, NORM, having=LINEAR).targets == set(LINEAR[:1])


def test_calls_in_text():
    text = (
        "%1 = stablehlo.custom_call @mla_jax.linear.v1(%0) {api_version = 4}\n"
        "%2 = stablehlo.custom_call @Sharding(%1)\n"
        "%3 = stablehlo.custom_call @mla_jax.rope_append_latent.v12(%1)\n"
        '%4 = func.call @mla_jax.absorb.v1(%1) loc("custom_call mla_jax.absorb.v1")\n'
    )
    assert calls_in(text) == {"mla_jax.linear.v1", "mla_jax.rope_append_latent.v12"}
    lowered = jax.jit(both).lower(X, WEIGHT, NORM).as_text()
    assert calls_in(lowered) == {"mla_jax.linear.v1", "mla_jax.rmsnorm.v1"}
