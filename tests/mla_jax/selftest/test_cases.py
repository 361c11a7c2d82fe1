"""The cases of a self-test: every op, arguments that the op takes, results that are what they are said to be."""

import jax
import jax.numpy as jnp
import pytest

from custom_calls.op import OPS
from custom_calls.quantized_tensor import QuantizedTensor, dequantize
from mla_jax.selftest.cases import cases
from mla_jax.selftest.run import CODES


@pytest.fixture(scope="module")
def all_cases():
    return cases()


def test_every_op_has_a_case(all_cases):
    assert {case.op for case in all_cases} == set(OPS)


def test_a_case_is_its_op_and_nothing_else(all_cases):
    for case in all_cases:
        jaxpr = jax.make_jaxpr(lambda a, case=case: case.run(a, "native"))(dict(case.arguments))
        ops = [eqn.primitive.name for eqn in jaxpr.eqns if eqn.primitive.name in OPS]
        assert ops == [case.op], case.what


def test_what_a_case_says_of_its_results(all_cases):
    for case in all_cases:
        results = jax.eval_shape(lambda a, case=case: case.run(a, "native"), dict(case.arguments))
        for name, index in case.updated.items():
            given = case.arguments[name]
            assert (results[index].shape, results[index].dtype) == (given.shape, given.dtype), case.what
        for index, form in case.coded.items():
            assert form in CODES or jnp.dtype(form) == results[index].dtype, case.what


def test_cases_are_told_apart(all_cases):
    assert len({(case.op, case.what) for case in all_cases}) == len(all_cases)


def test_every_container_of_weights_is_multiplied(all_cases):
    """The FP8 of AMD's gfx942 is in a dtype of its own; MXFP4 has an op for each of its layouts besides."""
    found = {}
    for case in all_cases:
        for name in ("weight", "gate_up", "down"):
            weight = case.arguments.get(name)
            if isinstance(weight, QuantizedTensor):
                found.setdefault(case.op, set()).add((weight.container, weight.data.dtype.name))
    mxfp4, int4 = ("mxfp4", "uint8"), ("int4_group", "uint8")
    block, fnuz = (("fp8_block", f"float8_{codes}") for codes in ("e4m3fn", "e4m3fnuz"))
    channel = ("fp8_channel", "float8_e4m3fn")
    assert found["mla_jax.linear_quantized"] == {mxfp4, block, fnuz, channel, int4}
    assert found["mla_jax.absorb_quantized"] == {mxfp4, fnuz, channel, int4}
    assert found["mla_jax.expert_mlp_quantized"] == {mxfp4, block, int4}


def test_attention_over_every_pool_and_number_of_heads(all_cases):
    found = {(heads, dtype) for heads, _, dtype in pools(all_cases)}
    types = ("bfloat16", "float8_e4m3fn")
    assert found == {(heads, dtype) for heads in (8, 12, 16, 20, 32, 64, 128) for dtype in types}
    assert {(page, dtype) for _, page, dtype in pools(all_cases)} == {
        (page, dtype) for page in (1, 16, 64, 128) for dtype in types
    }


def pools(all_cases):
    """(heads, page size, dtype of the pool) of every case of latent attention."""
    arguments = [case.arguments for case in all_cases if case.op == "mla_jax.mla_attention"]
    return [(a["q_latent"].shape[1], a["kv"].shape[2], a["kv"].dtype.name) for a in arguments]


def test_codes_of_int4_are_the_values_rounded(all_cases):
    """A weight that lost its values would still be the same weight for both implementations."""
    weights = {
        case.arguments["weight"].container: dequantize(case.arguments["weight"])
        for case in all_cases
        if case.op == "mla_jax.linear_quantized"
    }
    step = jnp.abs(weights["fp8_channel"]).max() / 7
    assert float(jnp.abs(weights["int4_group"] - weights["fp8_channel"]).max()) < step
