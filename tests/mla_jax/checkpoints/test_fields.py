"""Typed access to JSON values: JSON's types are not Python's."""

import math

import pytest

from mla_jax.checkpoints.fields import Fields
from mla_jax.config import MAX_INT
from mla_jax.errors import ConfigError


def refused(call, *parts: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [True, False, 1.0, "1", [], {}, -1, MAX_INT + 1, 2**63, 10**400, math.nan])
def test_integer_refuses(value):
    fields = Fields({"k": value}, "text_config.")
    refused(
        lambda: fields.integer("k", low=0), "text_config.k: expected an integer from 0 to 2147483647, got "
    )
    refused(lambda: fields.integer("k", low=0, default=3), "text_config.k")


def test_integer():
    assert Fields({"k": MAX_INT}).integer("k", low=0) == MAX_INT
    assert Fields({"k": 2}).integer("k", low=2) == 2
    refused(lambda: Fields({"k": 2}).integer("k", low=3), "from 3 to")


@pytest.mark.parametrize("value", [True, "1.0", [], {}, math.nan, math.inf, -math.inf, MAX_INT + 1, 10**400])
def test_number_refuses(value):
    refused(lambda: Fields({"k": value}).number("k"), "k: expected a finite number, got ")


def test_number():
    got = Fields({"k": 3}).number("k")
    assert got == 3.0
    assert type(got) is float
    assert Fields({"k": -2.5}).number("k") == -2.5


@pytest.mark.parametrize("value", [None, 0, 1, "true", 1.0, [], {}])
def test_boolean_refuses(value):
    refused(lambda: Fields({"k": value}).boolean("k", default=True), "k: expected true or false, got ")


@pytest.mark.parametrize("value", [1, True, [], {}, 1.5])
def test_string_and_object_refuse(value):
    refused(lambda: Fields({"k": value}).string("k"), "k: expected a string")
    refused(
        lambda: Fields({"k": value}).strings("k") if value != [] else Fields({"k": [1]}).strings("k"),
        "k: expected",
    )
    if not isinstance(value, dict):
        refused(lambda: Fields({"k": value}).object("k"), "k: expected a JSON object")


@pytest.mark.parametrize("method", ["integer", "number", "string"])
def test_missing_and_null_take_the_default(method):
    extra = {"low": 0} if method == "integer" else {}
    for values in ({}, {"k": None}):
        assert getattr(Fields(values), method)("k", default=None, **extra) is None
        refused(lambda v=values: getattr(Fields(v), method)("k", **extra), "k: expected a value, got ")
    refused(lambda: getattr(Fields({}), method)("k", **extra), "got no such key")
    assert Fields({}).boolean("k", default=True) is True


def test_lists():
    assert Fields({}).strings("k") == Fields({"k": None}).strings("k") == ()
    assert Fields({"k": ["a", "b"]}).strings("k") == ("a", "b")
    refused(lambda: Fields({"k": ["a", 1]}).strings("k"), "k: expected a list of strings")
    assert Fields({}).integers("k", low=0) == ()
    assert Fields({"k": 0}).integers("k", low=0) == (0,)
    assert Fields({"k": [1, 3]}).integers("k", low=0) == (1, 3)
    for value in (True, [True], -1, [1, -1], [1, None], "1", [[1]], 1.0, {}, MAX_INT + 1):
        refused(lambda v=value: Fields({"k": v}).integers("k", low=0), "k: expected an integer from 0")


def test_spellings_must_agree():
    fields = Fields({"new": 3, "old": 4})
    refused(lambda: fields.integer("new", "old", low=0), "old: expected the same", "new = 3", "got 4")
    assert Fields({"new": 3, "old": 3}).integer("new", "old", low=0) == 3
    assert Fields({"new": None, "old": 4}).integer("new", "old", low=0) == 4
    refused(lambda: Fields({"old": "x"}).integer("new", "old", low=0), "old: expected an integer")


def test_presence():
    fields = Fields({"null": None, "one": 1})
    assert (fields.has("null"), fields.has("one"), fields.has("none"), fields.has("null", "one")) == (
        0,
        1,
        0,
        1,
    )
    assert (fields.present("null"), fields.present("none"), fields.present("none", "null")) == (1, 0, 1)
    assert fields.raw("null") is fields.raw("none") is None


def test_nested_objects_name_their_path():
    inner = Fields({"a": {"b": {"c": 1.5}}}).object("a")
    assert inner is not None
    deeper = inner.object("b")
    assert deeper is not None
    refused(lambda: deeper.integer("c", low=0), "a.b.c: expected an integer", "got 1.5")
    assert Fields({"a": None}).object("a") is None
    assert inner.items() == [("b", {"c": 1.5})]


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_only_objects_have_fields(value):
    refused(lambda: Fields(value), "config: expected a JSON object")
