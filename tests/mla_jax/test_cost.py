"""Bytes and FLOP of a step, against counts made by hand."""

from dataclasses import replace

import pytest

from mla_jax.config import ModelConfig
from mla_jax.cost import decode_cost, prefill_cost, weight_bytes
from mla_jax.parameters import parameter_table, with_storage
from mla_jax.presets import PRESETS, preset_file
from mla_jax.quant import MXFP4

LITE = ModelConfig.from_file(preset_file("deepseek-v2-lite"))


def hand_counted(config):
    """(parameters of all tensors, of them experts, active a token without embedding) of DeepSeek-V2-Lite."""
    h, layers = 2048, config.num_hidden_layers
    attention = 3072 * h + 576 * h + 4096 * 512 + h * 2048
    norms = layers * (2 * h + 512) + h
    dense = 3 * h * 10944
    shared, routed = 3 * h * 2816, 3 * h * 1408
    sparse = layers - 1
    linear = layers * attention + dense + sparse * (shared + 64 * h) + config.vocab_size * h
    experts = sparse * 64 * routed
    embedding = config.vocab_size * h
    return linear + norms + experts + embedding, experts, linear + sparse * 6 * routed


def test_weights_of_v2_lite():
    total, _, active = hand_counted(LITE)
    assert total == 15_706_484_224  # as published: 15.7 B, of which 2.4 B are active
    assert weight_bytes(parameter_table(LITE), "bfloat16") == 2 * total
    assert 2.2e9 < active < 2.7e9


@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_of_v2_lite(batch):
    total, experts, active = hand_counted(LITE)
    depth = 100
    cost = decode_cost(LITE, parameter_table(LITE), batch, depth, "bfloat16")
    others = total - experts - LITE.vocab_size * 2048
    read = 2 * (others + experts * (1 - (58 / 64) ** batch) + batch * 2048)
    assert cost.weight_bytes == pytest.approx(read, rel=1e-9)
    assert cost.cache_bytes == batch * 101 * 27 * 576 * 2
    attention = 2 * batch * 101 * 27 * 16 * (576 + 512)
    assert cost.flop == pytest.approx(2 * active * batch + attention, rel=1e-9)
    assert cost.bytes == cost.weight_bytes + cost.cache_bytes


def test_mxfp4_is_seventeen_bytes_a_group():
    table = with_storage(parameter_table(LITE), lambda info: MXFP4)
    plain = 2 * (LITE.vocab_size * 2048 + 27 * (2 * 2048 + 512) + 2048 + 26 * 64 * 2048)
    total, _, _ = hand_counted(LITE)
    assert weight_bytes(table, "bfloat16") == plain + (total - plain // 2) // 32 * 17


def test_tied_embeddings_are_read_once_and_multiplied():
    config = ModelConfig.from_file(preset_file("youtu-2b"))
    tied = decode_cost(config, parameter_table(config), 1, 0, "bfloat16")
    untied = replace(config, tie_word_embeddings=False)
    apart = decode_cost(untied, parameter_table(untied), 1, 0, "bfloat16")
    assert apart.flop == tied.flop
    assert apart.weight_bytes - tied.weight_bytes == 2 * config.hidden_size


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_models(name):
    config = ModelConfig.from_file(preset_file(name))
    billions = weight_bytes(parameter_table(config), "bfloat16") / 2e9
    published = {
        "deepseek-v2-lite": (15.7, 15.8),
        "deepseek-v3": (670, 672),
        "kimi-k2": (1020, 1030),
        "glm-4.7-flash": (29, 31),
        "youtu-2b": (1.9, 2.1),
    }
    low, high = published[name]
    assert low < billions < high
    assert set(published) == set(PRESETS)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 300)])
def test_a_prefill_of_v2_lite(batch, length):
    total, experts, active = hand_counted(LITE)
    cost = prefill_cost(LITE, parameter_table(LITE), batch, length)
    tokens, head = batch * length, LITE.vocab_size * 2048
    others = total - experts - head
    read = 2 * (others + experts * (1 - (58 / 64) ** tokens) + tokens * 2048)
    assert cost.weight_bytes == pytest.approx(read, rel=1e-9) and cost.cache_bytes == 0
    attention = 2 * 27 * 16 * (192 + 128) * batch * length * (length + 1) // 2
    assert cost.flop == pytest.approx(2 * (active - head) * tokens + 2 * head * batch + attention, rel=1e-9)
