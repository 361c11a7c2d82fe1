"""The parameter table: exactly the checkpoints' tensors, sensible random weights, one axis name a dimension."""

import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mla_jax.config import ModelConfig
from mla_jax.parameters import (
    ParamInfo,
    abstract_parameters,
    attention_table,
    map_table,
    parameter_table,
    random_parameters,
)

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
CASES = sorted(path.name for path in GOLDENS.iterdir() if path.is_dir())

# What a published checkpoint may hold beside the language model's weights: per case, how names begin or end.
BESIDE = {
    "deepseek_v3": lambda name: name.startswith("model.layers.2."),  # multi-token prediction
    "deepseek_v32": lambda name: ".self_attn.indexer." in name,
    "kimi_k2": lambda name: name.endswith(".rotary_emb.inv_freq"),
    "kimi_k25": lambda name: not name.startswith("language_model."),  # the vision tower
    "deepseek_v3_tf5": lambda name: name == "lm_head.weight",  # tied
    "youtu": lambda name: name == "lm_head.weight",
}


def infos(table):
    return jax.tree.leaves(table, is_leaf=lambda node: isinstance(node, ParamInfo))


def headers(folder):
    """Name to shape of every tensor, read from the files' own headers."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        header.pop("__metadata__", None)
        found |= {name: tuple(entry["shape"]) for name, entry in header.items()}
    return found


def test_there_are_goldens():
    assert len(CASES) == 11


@pytest.mark.parametrize("case", CASES)
def test_sources_are_exactly_the_checkpoints_tensors(case):
    config = ModelConfig.from_file(GOLDENS / case)
    stored = headers(GOLDENS / case)
    beside = {name for name in stored if BESIDE.get(case, lambda _: False)(name)}
    sources = [source for info in infos(parameter_table(config)) for source in info.sources]
    names = [source.name for source in sources]
    assert len(set(names)) == len(names)
    assert set(names) == set(stored) - beside
    if case in ("deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25"):
        assert beside


@pytest.mark.parametrize("case", CASES)
def test_sources_fill_every_element_once(case):
    config = ModelConfig.from_file(GOLDENS / case)
    stored = headers(GOLDENS / case)
    for info in infos(parameter_table(config)):
        filled = np.zeros(info.shape, np.int8)
        for source in info.sources:
            rows = slice(None) if source.rows is None else slice(*source.rows)
            part = filled[source.index][rows]
            assert part.shape == stored[source.name], source
            part += 1
        assert (filled == 1).all(), info.sources[0]


@pytest.mark.parametrize("case", CASES)
def test_every_dimension_has_a_logical_axis(case):
    table = parameter_table(ModelConfig.from_file(GOLDENS / case))
    known = {"vocab", "embed", "heads", "q_lora", "kv_lora", "mlp", "expert", "norm"}
    for info in infos(table):
        assert len(info.axes) == len(info.shape), info
        assert set(info.axes) <= known, info
        assert len(set(info.axes)) == len(info.axes), info


@pytest.mark.parametrize("case", ["deepseek_v3", "deepseek_v3_tf5"])
def test_random_parameters(case):
    # Every kind of parameter in few shapes: each shape is a compilation of its own.
    same = dict.fromkeys(
        (
            "vocab_size",
            "hidden_size",
            "q_lora_rank",
            "kv_lora_rank",
            "intermediate_size",
            "moe_intermediate_size",
        ),
        32,
    )
    heads = {"num_attention_heads": 2, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16}
    given = ModelConfig.from_file(GOLDENS / case)
    rope = replace(given.rope, dim=8)
    table = parameter_table(replace(given, **same, **heads, rope=rope))
    assert len(infos(table)) == len(infos(parameter_table(given)))
    params = random_parameters(table, jax.random.key(0), "bfloat16", scale=3.0)
    abstract = abstract_parameters(table, "bfloat16")
    pooled, drawn = [], set()
    for info, leaf, shape in zip(
        infos(table), jax.tree.leaves(params), jax.tree.leaves(abstract), strict=True
    ):
        assert (
            (leaf.shape, leaf.dtype)
            == (shape.shape, shape.dtype)
            == (info.shape, jnp.dtype(info.dtype or "bfloat16"))
        )
        values = np.asarray(leaf, np.float64)
        if info.init == "ones":
            assert info.axes == ("norm",)
            assert (values == 1).all()
        elif info.init == "zeros":
            assert len(info.axes) == 1
            assert not values.any()
        else:
            assert len(info.axes) >= 2
            pooled.append(values.ravel() * math.sqrt(info.shape[-1]) / 3.0)
            drawn.add(tuple(values.ravel()[:4].tolist()))
    everything = np.concatenate(pooled)
    # Standard normal after undoing the fan-in: 5 sigma of mean and deviation.
    assert abs(everything.mean()) < 5 / math.sqrt(everything.size)
    assert abs(everything.std() - 1) < 5 / math.sqrt(2 * everything.size) + 1e-3
    assert abs(np.mean(everything > 0) - 0.5) < 5 * 0.5 / math.sqrt(everything.size)
    # No two weights share their randomness, and neither do two keys.
    assert len(drawn) == len(pooled)
    part = table["model"]["embed_tokens"]
    a, b = (random_parameters(part, jax.random.key(seed), "float32")["weight"] for seed in (0, 1))
    assert (np.asarray(a) != np.asarray(b)).all()


def test_correction_bias_is_float32_whatever_the_model_computes_in():
    table = parameter_table(ModelConfig.from_file(GOLDENS / "deepseek_v3"))
    gate = abstract_parameters(table, "bfloat16")["model"]["layers"][1]["mlp"]["gate"]
    assert gate["e_score_correction_bias"].dtype == jnp.float32
    assert gate["weight"].dtype == jnp.bfloat16


def test_an_attention_block_alone_has_the_names_of_the_models():
    config = ModelConfig.from_file(GOLDENS / "deepseek_v3")
    prefix = "model.layers.1.self_attn."
    assert attention_table(config, prefix) == parameter_table(config)["model"]["layers"][1]["self_attn"]
    assert attention_table(config)["o_proj"]["weight"].sources[0].name == "o_proj.weight"


def test_map_table_keeps_the_nesting():
    table = parameter_table(ModelConfig.from_file(GOLDENS / "youtu"))
    names = map_table(lambda info: info.sources[0].name, table)
    assert names["model"]["layers"][1]["mlp"]["up_proj"]["weight"] == "model.layers.1.mlp.up_proj.weight"
    assert "lm_head" not in names
    assert random_parameters({}, jax.random.key(0), "float32") == {}
