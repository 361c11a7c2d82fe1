"""The cases of a self-test: every op, arguments that the op takes, results that are what they are said to be."""

import jax
import jax.numpy as jnp
import pytest

from custom_calls.op import OPS
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
