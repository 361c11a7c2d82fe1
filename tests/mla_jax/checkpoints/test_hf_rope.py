"""RoPE in both dialects: the same model either way, and no silent fallback."""

import math
from typing import Any

import pytest

from mla_jax.checkpoints.fields import Fields
from mla_jax.checkpoints.hf_rope import rope_from_hf
from mla_jax.config import RopeConfig, YarnConfig
from mla_jax.errors import ConfigError, UnsupportedModelError

YARN = {
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
V3 = RopeConfig(1e4, 64, "interleaved", YarnConfig(40.0, 4096, 32.0, 1.0, 1.0, 1.0))


def read(values: dict[str, Any], positions: int = 163_840) -> RopeConfig:
    return rope_from_hf(Fields(values, "text_config."), 64, "interleaved", positions)


def refused(values: dict[str, Any], *parts: str, kind: type[ConfigError] = ConfigError) -> None:
    with pytest.raises(kind) as caught:
        read(values)
    assert type(caught.value) is kind
    for part in parts:
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 10000, "rope_scaling": {"type": "yarn", **YARN}},
        {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "yarn", **YARN}},
        {
            "rope_scaling": {"type": "yarn", "rope_type": "yarn", **YARN}
        },  # theta is 10000 where nothing is said
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, **YARN}},
        {"rope_theta": 10000, "rope_parameters": {"rope_type": "yarn", **YARN}},
        {
            "rope_theta": 10000,
            "rope_scaling": {"type": "yarn", **YARN},
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000, **YARN},
        },
        {"rope_scaling": None, "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000, **YARN}},
        {"original_max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", **YARN}},
    ],
)
def test_yarn_in_every_spelling(values):
    assert read(values) == V3


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 50000},
        {"rope_theta": 50000.0, "rope_scaling": None},
        {"rope_theta": 50000.0, "rope_scaling": {}, "rope_parameters": {}},
        {"rope_theta": 50000.0, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}},
        {"rope_parameters": {"rope_theta": 50000.0, "partial_rotary_factor": 1.0}},
        {"rope_theta": 50000, "rope_parameters": {"rope_type": None, "rope_theta": None}},
    ],
)
def test_plain_in_every_spelling(values):
    assert read(values) == RopeConfig(50000.0, 64, "interleaved")


def test_default_theta():
    assert read({}).theta == 10000.0
    assert rope_from_hf(Fields({}), 8, "half", 16) == RopeConfig(10000.0, 8, "half")


def test_defaults_of_yarn():
    got = read({"rope_scaling": {"type": "yarn", "factor": 4}}, positions=4096).scaling
    assert got == YarnConfig(4.0, 4096, 32.0, 1.0, 0.0, 0.0, None)
    got = read({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 1024}}, 4096).scaling
    assert got == YarnConfig(4.0, 1024)
    got = read({"original_max_position_embeddings": 1024, "rope_scaling": {"type": "yarn"}}, 4096).scaling
    assert got == YarnConfig(4.0, 1024)
    zero = {"type": "yarn", "factor": 2, "beta_fast": 0, "beta_slow": 0, "attention_factor": 1.5}
    assert read({"rope_scaling": zero}, 64).scaling == YarnConfig(2.0, 64, 32.0, 1.0, attention_factor=1.5)


@pytest.mark.parametrize(
    "kind", ["linear", "dynamic", "longrope", "llama3", "proportional", "su", "YARN", ""]
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_unsupported_types(key, kind):
    refused(
        {key: {"rope_type": kind, "factor": 2}},
        f"text_config.{key}.rope_type: RoPE type {kind!r} is not supported (supported: default, yarn)",
        kind=UnsupportedModelError,
    )


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"partial_rotary_factor": 0.5}, "text_config.partial_rotary_factor: expected 1.0"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": False}}, "rope_scaling.truncate"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differs by layer type"),
    ],
)
def test_unsupported_variants(values, part):
    refused(values, part, kind=UnsupportedModelError)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e4}},
            ["rope_parameters.rope_theta", "10000"],
        ),
        (
            {"rope_scaling": {"type": "yarn", **YARN}, "rope_parameters": {"rope_type": "default"}},
            ["rope_parameters: expected the same RoPE as rope_scaling"],
        ),
        ({"rope_scaling": {"type": "yarn", "rope_type": "linear"}}, ["rope_scaling.type", "same", "linear"]),
        ({"rope_scaling": {"factor": 40}}, ["rope_scaling.rope_type: expected a type"]),
        (
            {"original_max_position_embeddings": 8192, "rope_scaling": {"type": "yarn", **YARN}},
            ["original_max_position_embeddings", "8192", "got 4096"],
        ),
        ({"rope_scaling": []}, ["text_config.rope_scaling: expected a JSON object, got []"]),
        ({"rope_parameters": "yarn"}, ["text_config.rope_parameters: expected a JSON object"]),
        ({"rope_theta": "10000"}, ["text_config.rope_theta: expected a finite number, got '10000'"]),
        ({"rope_theta": True}, ["rope_theta"]),
        ({"rope_theta": math.nan}, ["rope_theta"]),
        ({"rope_theta": 1.0}, ["rope_theta: expected a finite number above 1"]),
        ({"rope_theta": -5.0}, ["rope_theta"]),
        ({"rope_theta": 0, "rope_scaling": {"type": "yarn", **YARN}}, ["rope_theta", "above 1", "got 0.0"]),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}},
            ["rope_theta", "above 1", "got 0.0"],
        ),
        (
            {"rope_parameters": {"rope_theta": 1e16}},
            ["rope_theta: expected a finite number above 1, at most 1e+15"],
        ),
    ],
)
def test_contradictions_and_malformed_values(values, parts):
    refused(values, *parts)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("factor", [0.5, -1, 0, True, "40", math.inf, math.nan, [40], 1e300, 2**40]),
        ("original_max_position_embeddings", [0, -1, 4096.0, True, "4096", 2**31]),
        ("beta_fast", [0.5, -1, True, "32", math.nan, 1e300]),
        ("beta_slow", [-1, 33, True, "1", math.inf, 1e-300]),
        ("mscale", [-0.1, True, "1", math.nan, 1e300]),
        ("mscale_all_dim", [-0.1, True, "1", math.nan, 1e300]),
        ("attention_factor", [0, -1.0, True, "1", math.nan, 1e300]),
        ("truncate", [None, 0, "true"]),
        ("type", [1, True, ["yarn"]]),
    ],
)
def test_bad_numbers_name_their_key(key, values):
    for value in values:
        with pytest.raises(ConfigError) as caught:
            read({"rope_scaling": {"type": "yarn", **YARN, key: value}})
        named = ("beta_fast", "beta_slow") if key.startswith("beta") else (key,)
        assert any(name in str(caught.value) for name in named), (value, str(caught.value))
        assert "expected" in str(caught.value)
        assert "got" in str(caught.value)
