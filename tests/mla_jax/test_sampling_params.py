import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_jax.errors import RequestError
from mla_jax.sampling_params import MAX_N, ResolvedParams, SamplingParams, resolve

GREEDY = ResolvedParams(
    max_tokens=None,
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    seed=None,
    stop=(),
    stop_token_ids=(),
    eos_token_ids=(),
    logprobs=None,
    n=1,
)


def defaults(**values):
    return SimpleNamespace(**values)


@pytest.mark.parametrize(
    ("field", "values", "expected"),
    [
        ("max_tokens", [0, -1, True, 1.0, "1", math.nan], "an integer >= 1"),
        ("temperature", [-0.1, math.nan, math.inf, True, "1", 10**400, 1j], "a number >= 0"),
        ("top_p", [0, 0.0, -0.1, 1.01, math.nan, True, "1"], r"a number in \(0, 1\]"),
        ("top_k", [-1, True, 1.0, "1"], r"an integer >= 0 \(0 is off\)"),
        ("min_p", [-0.1, 1.01, math.nan, False, "0"], r"a number in \[0, 1\]"),
        ("seed", [-1, 2**32, True, 1.5], "an integer from 0 to 4294967295"),
        ("logprobs", [-1, 21, True, 1.0], "an integer from 0 to 20"),
        ("n", [0, -1, True, None, 1.0, MAX_N + 1, 10**30], "an integer from 1 to 16384"),
        ("ignore_eos", [None, 0, 1, "yes"], "True or False"),
        ("stop", [None, 3, b"a", True], "a string or a sequence of strings"),
        ("stop_token_ids", [None, 3, "12", b"12"], "a sequence of token ids"),
    ],
)
def test_refused_values(field, values, expected):
    for value in values:
        with pytest.raises(RequestError, match=f"^{field}: expected {expected}, got ") as error:
            SamplingParams(**{field: value})
        assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"stop": ""}, r"^stop\[0\]: expected a non-empty string, got ''"),
        ({"stop": ["a", ""]}, r"^stop\[1\]: expected a non-empty string, got ''"),
        ({"stop": ["a", 3]}, r"^stop\[1\]: expected a non-empty string, got 3"),
        ({"stop_token_ids": [1, -1]}, r"^stop_token_ids\[1\]: expected an integer >= 0, got -1"),
        ({"stop_token_ids": [True]}, r"^stop_token_ids\[0\]: expected an integer >= 0, got True"),
        ({"stop_token_ids": [None]}, r"^stop_token_ids\[0\]: expected an integer >= 0, got None"),
    ],
)
def test_refused_items(options, complaint):
    with pytest.raises(RequestError, match=complaint):
        SamplingParams(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 1},
        {"temperature": 0},
        {"top_p": 1},
        {"top_k": 0},
        {"min_p": 0},
        {"min_p": 1},
        {"seed": 0},
        {"seed": 2**32 - 1},
        {"logprobs": 0},
        {"logprobs": 20},
    ],
)
def test_borders_are_accepted(options):
    [(name, value)] = options.items()
    assert getattr(SamplingParams(**options), name) == value


def test_values_become_plain():
    params = SamplingParams(
        max_tokens=np.int64(3),
        temperature=np.float32(0.5),
        top_p=1,
        stop=["a", "b"],
        stop_token_ids=np.array([1, 2]),
        seed=np.uint32(7),
    )
    assert params == SamplingParams(
        max_tokens=3, temperature=0.5, top_p=1.0, stop=("a", "b"), stop_token_ids=(1, 2), seed=7
    )
    assert hash(params) == hash(dataclasses.replace(params))
    assert json.loads(json.dumps(dataclasses.asdict(params)))["stop_token_ids"] == [1, 2]
    assert type(params.top_p) is float
    assert SamplingParams(stop="abc").stop == ("abc",)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().n = 2


@pytest.mark.parametrize("nothing", [None, SimpleNamespace(), defaults(temperature=None, eos_token_ids=None)])
def test_nothing_said_is_greedy(nothing):
    assert resolve(SamplingParams(), nothing) == GREEDY
    assert GREEDY.greedy


def test_defaults_fill_what_is_open():
    file = defaults(
        do_sample=True,
        temperature=0.6,
        top_p=0.95,
        top_k=50,
        min_p=0.1,
        max_new_tokens=9,
        eos_token_ids=[1, 2],
    )
    assert resolve(SamplingParams(), file) == dataclasses.replace(
        GREEDY, max_tokens=9, temperature=0.6, top_p=0.95, top_k=50, min_p=0.1, eos_token_ids=(1, 2)
    )
    request = SamplingParams(
        max_tokens=3,
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        seed=5,
        stop="x",
        stop_token_ids=[7],
        logprobs=0,
        n=2,
    )
    assert resolve(request, file) == dataclasses.replace(
        GREEDY, max_tokens=3, eos_token_ids=(1, 2), seed=5, stop=("x",), stop_token_ids=(7,), logprobs=0, n=2
    )


@pytest.mark.parametrize(
    ("do_sample", "temperature", "expected"),
    [
        (False, 0.6, 0.0),
        (True, 0.6, 0.6),
        (None, 0.6, 0.6),
        (True, None, 1.0),
        (None, None, 0.0),
        (False, None, 0.0),
    ],
)
def test_do_sample(do_sample, temperature, expected):
    file = defaults(do_sample=do_sample, temperature=temperature)
    assert resolve(SamplingParams(), file).temperature == expected
    assert resolve(SamplingParams(temperature=0.7), file).temperature == 0.7


def test_limits_alone_do_not_switch_sampling_on():
    assert resolve(SamplingParams(top_p=0.9, top_k=5)).greedy


def test_tiny_temperature_is_greedy():
    assert resolve(SamplingParams(temperature=1e-6)).temperature == 0.0
    assert resolve(SamplingParams(temperature=1e-5)).temperature == 1e-5


def test_ignored_eos():
    resolved = resolve(SamplingParams(ignore_eos=True, stop_token_ids=[3]), defaults(eos_token_ids=(1,)))
    assert resolved.eos_token_ids == ()
    assert resolved.stop_token_ids == (3,)


def test_bad_defaults_are_refused():
    with pytest.raises(RequestError, match="top_p: expected"):
        resolve(SamplingParams(), defaults(top_p=3.0))
    assert resolve(SamplingParams(top_p=0.5), defaults(top_p=3.0)).top_p == 0.5


@settings(deadline=None)
@given(
    st.builds(
        SamplingParams,
        max_tokens=st.none() | st.integers(1, 99),
        temperature=st.none() | st.floats(0, 2),
        top_p=st.none() | st.floats(0, 1, exclude_min=True),
        top_k=st.none() | st.integers(0, 99),
        min_p=st.none() | st.floats(0, 1),
    )
)
def test_what_a_request_says_is_what_it_gets(params):
    resolved = resolve(
        params, defaults(do_sample=True, temperature=0.3, top_p=0.2, top_k=4, min_p=0.1, max_new_tokens=7)
    )
    for name in ("max_tokens", "top_p", "top_k", "min_p"):
        if getattr(params, name) is not None:
            assert getattr(resolved, name) == getattr(params, name)
    if params.temperature is not None and params.temperature >= 1e-5:
        assert resolved.temperature == params.temperature
