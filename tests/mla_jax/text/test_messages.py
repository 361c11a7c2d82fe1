import math
from types import MappingProxyType

import numpy as np
import pytest

from mla_jax.errors import RequestError
from mla_jax.text.messages import checked_messages, checked_tools, plain_json


def test_messages_become_plain():
    given = (
        MappingProxyType({"role": "user", "content": ({"type": "text", "text": "a"},), "n": (1, 2.5, None)}),
    )
    assert checked_messages(given, 10) == [{"role": "user", "content": "a", "n": [1, 2.5, None]}]


def test_the_caller_s_messages_stay_as_they_were():
    message = {"role": "user", "content": [{"type": "text", "text": "a"}], "deep": {"x": [1]}}
    [plain] = checked_messages([message], 10)
    plain["deep"]["x"].append(2)
    assert message == {"role": "user", "content": [{"type": "text", "text": "a"}], "deep": {"x": [1]}}


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ("hi", "messages: expected a list of messages"),
        ({"role": "user", "content": "hi"}, "messages: expected a list of messages"),
        (None, "messages: expected a list of messages"),
        (iter([]), "messages: expected a list of messages"),
        ([], "messages: expected at least one message"),
        (["hi"], r"messages\[0\]: expected an object"),
        ([{"content": "hi"}], r"messages\[0\]\.role: expected a non-empty string, got None"),
        ([{"role": "", "content": "hi"}], r"messages\[0\]\.role: expected a non-empty string, got ''"),
        ([{"role": 1, "content": "hi"}], r"messages\[0\]\.role: expected"),
        ([{"role": "user"}], r"messages\[0\]\.content: expected a string or a list"),
        ([{"role": "user", "content": None}], r"messages\[0\]\.content: expected a string or a list"),
        ([{"role": "user", "content": None, "tool_calls": []}], r"messages\[0\]\.content: expected"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content: expected"),
        ([{"role": "user", "content": b"hi"}], r"messages\[0\]\.content: expected"),
        ([{"role": "user", "content": ["hi"]}], r"messages\[0\]\.content\[0\]: expected a part of type"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            r"content\[0\]: expected a part of type \"text\"",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            r"content\[0\]\.text: expected a string, got None",
        ),
        (
            [{"role": "u", "content": ""}, {"role": "u", "content": "", "x": {1}}],
            r"messages\[1\]\.x: expected a JSON",
        ),
        ([{"role": "u", "content": "", "x": {1: 2}}], r"messages\[0\]\.x: expected strings as keys, got 1"),
    ],
)
def test_malformed_messages(messages, complaint):
    with pytest.raises(RequestError, match=complaint):
        checked_messages(messages, 10)


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), b"a", {1}, np.zeros(2), lambda: 1, 1j])
def test_what_json_cannot_say(value):
    with pytest.raises(RequestError, match=r"x\.a\[0\]: expected a JSON value"):
        plain_json({"a": [value]}, "x")


def test_subclasses_do_not_reach_the_template():
    class Evil(str):
        def __str__(self):
            return "evil"

    with pytest.raises(RequestError, match="expected a JSON value"):
        plain_json(Evil("a"), "x")


def test_depth():
    value = "a"
    for _ in range(64):
        value = [value]
    assert plain_json(value, "x") == value
    with pytest.raises(RequestError, match="at most 64 levels"):
        plain_json([value], "x")
    circular = []
    circular.append(circular)
    with pytest.raises(RequestError, match="at most 64 levels"):
        plain_json(circular, "x")


def test_tools():
    assert checked_tools(None) is None
    assert checked_tools([]) == []
    assert checked_tools(({"a": 1},)) == [{"a": 1}]


@pytest.mark.parametrize("tools", ["a", {"a": 1}, [print], ["a"], 3])
def test_malformed_tools(tools):
    with pytest.raises(RequestError, match=r"^tools"):
        checked_tools(tools)
