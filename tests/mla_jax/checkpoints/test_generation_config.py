"""generation_config.json: published files, silence, and values that make no sense."""

import json
import math

import pytest

from mla_jax.checkpoints.generation_config import MAX_GENERATION_CONFIG_BYTES, GenerationDefaults
from mla_jax.errors import ConfigError, MlaJaxError

from_hf = GenerationDefaults.from_hf


def test_silence_is_greedy():
    assert from_hf({}) == GenerationDefaults()
    assert from_hf({}).greedy


def test_deepseek_r1():
    got = from_hf(
        {
            "_from_model_config": True,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.95,
            "transformers_version": "4.39.3",
        }
    )
    assert got == GenerationDefaults(
        do_sample=True, temperature=0.6, top_p=0.95, eos_token_ids=(1,), bos_token_id=0
    )
    assert not got.greedy
    assert hash(got) == hash(got)


def test_list_of_end_tokens_and_everything_else():
    got = from_hf(
        {
            "do_sample": True,
            "temperature": 1,
            "top_k": 20,
            "min_p": 0.05,
            "repetition_penalty": 1.05,
            "eos_token_id": [151329, 151336, 151338],
            "pad_token_id": 151329,
            "max_new_tokens": 2048,
        }
    )
    assert got.eos_token_ids == (151329, 151336, 151338)
    assert got.temperature == 1.0
    assert type(got.temperature) is float
    assert (got.top_k, got.min_p, got.repetition_penalty) == (20, 0.05, 1.05)
    assert (got.pad_token_id, got.max_new_tokens) == (151329, 2048)


def test_temperature_without_sampling_is_greedy():
    for values in ({"temperature": 0.6}, {"do_sample": False, "temperature": 0.6}, {"do_sample": None}):
        got = from_hf({**values, "top_p": 0.9})
        assert got.greedy
        assert got.temperature == 0.0
        assert got.top_p == 0.9
    zero = from_hf({"do_sample": True, "temperature": 0})
    assert zero.greedy
    assert not zero.do_sample


def test_sampling_without_a_temperature():
    assert from_hf({"do_sample": True}).temperature == 1.0


def test_zero_top_k_keeps_all():
    assert from_hf({"top_k": 0}).top_k is from_hf({"top_k": None}).top_k is None


def test_null_is_silence():
    keys = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "eos_token_id")
    keys += ("bos_token_id", "pad_token_id", "max_new_tokens")
    assert from_hf(dict.fromkeys(keys)) == GenerationDefaults()


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("do_sample", [1, "true", [], 0.0]),
        ("temperature", [-0.1, 100.5, math.nan, math.inf, True, "1", [1]]),
        ("top_p", [0, 0.0, -0.5, 1.0001, math.nan, True, "0.9"]),
        ("top_k", [-1, 1.5, 20.0, True, "20", 2**31, 10**400]),
        ("min_p", [-0.1, 1.1, math.nan, False]),
        ("repetition_penalty", [0, -1.0, math.inf, True]),
        ("eos_token_id", [-1, True, 1.0, "1", [1, -1], [[1]], [None], {}, 2**31]),
        ("bos_token_id", [-1, [0], 0.0, True]),
        ("pad_token_id", [-1, [0], 0.0, True]),
        ("max_new_tokens", [0, -1, 10.0, True]),
    ],
)
def test_bad_values_name_their_key(key, values):
    for value in values:
        with pytest.raises(ConfigError, match=f"^{key}: expected .*, got "):
            from_hf({"do_sample": True, key: value})


def test_from_folder(tmp_path):
    assert GenerationDefaults.from_folder(tmp_path) == GenerationDefaults()
    assert GenerationDefaults.from_folder(tmp_path / "none") == GenerationDefaults()
    assert GenerationDefaults.from_folder(tmp_path / ("x" * 300)) == GenerationDefaults()
    path = tmp_path / "generation_config.json"
    path.write_text('{"do_sample": true, "top_p": 0.5}')
    assert GenerationDefaults.from_folder(str(tmp_path)).top_p == 0.5
    for text in ('{"top_p": 2}', "[]", "{", "", '{"top_p": 1, "top_p": 1}', '{"top_p": NaN}'):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            GenerationDefaults.from_folder(tmp_path)
        assert str(caught.value).startswith(f"{path}: ")
    path.write_bytes(b" " * (MAX_GENERATION_CONFIG_BYTES + 1))
    with pytest.raises(ConfigError, match="expected at most 16000000 bytes"):
        GenerationDefaults.from_folder(tmp_path)


HOSTILE = (
    None, True, False, 0, 1, -1, 0.0, -0.0, 0.5, 1e-320, 1e308, 2**31, 10**30, "", "0.5", "\0", [], [1], [True],
    [[]], {}, {"a": 1},
)  # fmt: skip


def test_fuzzed_files_load_or_are_refused(tmp_path, rng):
    path = tmp_path / "generation_config.json"
    keys = ["do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "eos_token_id"]
    keys += ["bos_token_id", "pad_token_id", "max_new_tokens", "unknown"]
    loaded = 0
    with path.open("wb", buffering=0) as writer:
        for i in range(2000):
            values = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [1, 2]}
            for _ in range(int(rng.integers(0, 3))):
                values[str(rng.choice(keys))] = HOSTILE[int(rng.integers(len(HOSTILE)))]
            text = bytearray(json.dumps(values).encode())
            if rng.random() < 0.3:
                text[int(rng.integers(len(text)))] = int(rng.integers(256))
            if rng.random() < 0.1:
                text = text[: int(rng.integers(len(text)))]
            writer.seek(0)
            writer.write(text)
            writer.truncate()
            try:
                got = GenerationDefaults.from_folder(tmp_path)
            except MlaJaxError:
                continue
            except BaseException as error:
                raise AssertionError(f"case {i}: {bytes(text)!r}") from error
            assert 0 <= got.temperature <= 100
            assert 0 < got.top_p <= 1
            assert got.greedy != got.do_sample
            loaded += 1
    assert 300 < loaded < 1900
