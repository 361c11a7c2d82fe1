"""What config.json means, in every supported family, in both dialects and where it is silent."""

import copy
import json

import pytest
from published_configs import (
    CASES,
    GLM,
    GOLDENS,
    K2,
    K25,
    MLA,
    MOONLIGHT,
    PUBLISHED,
    R1,
    V2,
    V2_LITE,
    V3,
    V32,
    YOUTU,
    changed,
    from_hf,
    refused,
    transformers_dialect,
    without,
)

from mla_jax.checkpoints.hf_config import FAMILIES, MAX_CONFIG_BYTES
from mla_jax.config import ModelConfig, RopeConfig, RouterConfig, YarnConfig
from mla_jax.errors import ConfigError, UnsupportedModelError
from mla_jax.rope import softmax_scale


def test_v2_lite():
    assert from_hf(V2_LITE) == ModelConfig(
        model_type="deepseek_v2",
        vocab_size=102400,
        hidden_size=2048,
        num_hidden_layers=27,
        num_attention_heads=16,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        intermediate_size=10944,
        moe_intermediate_size=1408,
        n_routed_experts=64,
        num_experts_per_tok=6,
        n_shared_experts=2,
        mlp_layer_types=("dense", *["sparse"] * 26),
        router=RouterConfig("softmax", "greedy", 1, 1, False, 1.0),
        rope=RopeConfig(1e4, 64, "interleaved", YarnConfig(40, 4096, 32, 1, 0.707, 0.707)),
        rms_norm_eps=1e-6,
        latent_norm_eps=1e-6,
        max_position_embeddings=163840,
        bos_token_id=100000,
        eos_token_ids=(100001,),
        dtype="bfloat16",
    )


def test_v2():
    got = from_hf(V2)
    assert got.router == RouterConfig("softmax", "group_limited_greedy", 8, 3, False, 16.0)
    assert (got.q_lora_rank, got.n_routed_experts, got.num_attention_heads) == (1536, 160, 128)
    assert got.mlp_layer_types.count("sparse") == 59


def test_v3_and_r1():
    got = from_hf(V3)
    assert got.router == RouterConfig("sigmoid", "noaux_tc", 8, 4, True, 2.5)
    assert got.rope == RopeConfig(1e4, 64, "interleaved", YarnConfig(40, 4096, 32, 1, 1.0, 1.0))
    assert got.mlp_layer_types == ("dense",) * 3 + ("sparse",) * 58
    assert (got.bos_token_id, got.eos_token_ids, got.num_nextn_predict_layers) == (0, (1,), 1)
    assert got.quantization is not None
    assert json.loads(got.quantization)["weight_block_size"] == [128, 128]
    assert softmax_scale(got) == pytest.approx(0.1352337788608801)
    assert got.qk_head_dim == 192
    assert got.max_context == 163840
    assert got.context_reason == "max_position_embeddings in config.json"
    assert from_hf(R1) == got


def test_kimi_k2():
    got = from_hf(K2)
    assert got.model_type == "kimi_k2"
    assert got.router == RouterConfig("sigmoid", "noaux_tc", 1, 1, True, 2.827)
    assert got.rope == RopeConfig(5e4, 64, "interleaved", YarnConfig(32, 4096, 1, 1, 1.0, 1.0))
    assert got.mlp_layer_types == ("dense",) + ("sparse",) * 60
    assert (got.n_routed_experts, got.num_attention_heads, got.vocab_size) == (384, 64, 163840)


def test_kimi_k25():
    got = from_hf(K25)
    assert got.model_type == "kimi_k25"
    assert got.tensor_prefix == "language_model."
    assert got.rope.scaling == YarnConfig(64, 4096, 1, 1, 1.0, 1.0)
    assert got.max_position_embeddings == 262144
    assert (got.dtype, got.pad_token_id, got.eos_token_ids) == ("bfloat16", 163839, (163585,))
    assert json.loads(got.quantization or "")["format"] == "pack-quantized"


def test_kimi_k25_wrapper_wins():
    """transformers obeys the wrapper for these keys, whatever the text configuration repeats."""
    text = changed(K25["text_config"], tie_word_embeddings=True, eos_token_id=7, torch_dtype="float16")
    got = from_hf(changed(K25, text_config=text, quantization_config={"quant_method": "fp8"}))
    assert not got.tie_word_embeddings
    assert got.eos_token_ids == (163585,)
    assert got.dtype == "bfloat16"
    assert got.quantization == '{"quant_method": "fp8"}'
    inner = from_hf(changed(without(K25, "dtype", "tie_word_embeddings", "eos_token_id"), text_config=text))
    assert inner.tie_word_embeddings
    assert inner.eos_token_ids == (7,)
    assert inner.dtype == "float16"


def test_moonlight():
    got = from_hf(MOONLIGHT)
    assert got.q_lora_rank is None
    assert got.rope == RopeConfig(5e4, 64, "interleaved")
    assert got.router == RouterConfig("sigmoid", "noaux_tc", 1, 1, True, 2.446)
    assert (got.rms_norm_eps, got.latent_norm_eps) == (1e-5, 1e-6)
    assert got.quantization is None


@pytest.mark.parametrize("model_type", ["youtu", "youtu_llm"])
def test_youtu(model_type):
    got = from_hf(changed(YOUTU, model_type=model_type))
    assert got.mlp_layer_types == ("dense",) * 32
    assert got.router is None
    assert got.n_routed_experts == got.moe_intermediate_size == got.n_shared_experts == 0
    assert got.tie_word_embeddings
    assert got.rope == RopeConfig(1.6e6, 64, "interleaved")
    assert (got.bos_token_id, got.eos_token_ids) == (128000, (128001,))


def test_glm():
    got = from_hf(GLM)
    assert got.router == RouterConfig("sigmoid", "noaux_tc", 1, 1, True, 1.8)
    assert (got.rms_norm_eps, got.latent_norm_eps) == (1e-5, 1e-6)
    assert got.mlp_layer_types == ("dense",) + ("sparse",) * 46
    assert got.eos_token_ids == (154820, 154827, 154829)
    assert got.bos_token_id == 0
    assert (got.qk_head_dim, got.v_head_dim) == (256, 256)
    named = changed(without(GLM, "first_k_dense_replace"), mlp_layer_types=["dense"] * 2 + ["sparse"] * 45)
    assert from_hf(named).mlp_layer_types == ("dense",) * 2 + ("sparse",) * 45


def test_v32():
    got = from_hf(V32)
    assert got.index_topk == 2048
    assert got.max_context == 2048
    assert got.max_position_embeddings == 163840
    assert "index_topk = 2048" in got.context_reason
    assert from_hf(without(V32, "index_topk")).index_topk == 2048
    long = from_hf(changed(V32, index_topk=200_000))
    assert long.max_context == 163840
    assert long.context_reason == "max_position_embeddings in config.json"


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_dialects_are_the_same_model(name):
    hub = PUBLISHED[name]
    assert from_hf(transformers_dialect(hub)) == from_hf(hub)


@pytest.mark.parametrize("name", PUBLISHED)
def test_hashable_and_unchanged_input(name):
    values = copy.deepcopy(PUBLISHED[name])
    first, second = from_hf(values), from_hf(copy.deepcopy(values))
    assert values == PUBLISHED[name]
    assert first == second
    assert hash(first) == hash(second)
    assert len({first, second}) == 1


def test_all_families_are_covered():
    assert {values["model_type"] for values in PUBLISHED.values()} | {"youtu_llm"} == set(FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_goldens(case):
    path = GOLDENS / case
    values = json.loads((path / "config.json").read_text())
    got = ModelConfig.from_file(path)
    assert got == ModelConfig.from_file(path / "config.json") == from_hf(values)
    text = values.get("text_config", values)
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "q_lora_rank"):
        assert getattr(got, key) == text[key]
    for key in (*MLA, "max_position_embeddings", "rms_norm_eps", "intermediate_size"):
        assert getattr(got, key) == text[key]
    assert got.latent_norm_eps == 1e-6
    assert got.dtype == ("bfloat16" if case.endswith("bf16") else "float32")
    assert got.rope.layout == ("half" if case == "deepseek_v3_tf5" else "interleaved")
    assert got.tensor_prefix == ("language_model." if case == "kimi_k25" else "")
    assert got.max_context == (128 if case == "deepseek_v32" else text["max_position_embeddings"])


def test_eleven_goldens():
    assert len(CASES) == 11


def test_architecture_alone_is_enough():
    assert from_hf(without(V3, "model_type")).model_type == "deepseek_v3"
    assert from_hf(without(V3, "architectures")) == from_hf(V3)
    assert from_hf(changed(V3, architectures=[])) == from_hf(V3)
    refused(without(V3, "model_type", "architectures"), "model_type: expected a string, got no such key")
    refused({}, "model_type")


def test_null_and_missing_are_different():
    """transformers reads a missing key as its default, a null as "none of it"."""
    assert from_hf(without(V3, "n_group", "topk_group")).router == from_hf(V3).router
    nulls = from_hf(changed(V3, n_group=None, topk_group=None)).router
    assert nulls is not None
    assert (nulls.n_group, nulls.topk_group) == (1, 1)
    assert from_hf(without(V3, "n_shared_experts")).n_shared_experts == 1
    assert from_hf(changed(V3, n_shared_experts=None)).n_shared_experts == 0
    assert from_hf(changed(V3, bos_token_id=None, eos_token_id=None)).eos_token_ids == ()
    assert from_hf(changed(V3, bos_token_id=None)).bos_token_id is None
    assert from_hf(without(V3, "bos_token_id", "eos_token_id")).eos_token_ids == (1,)
    assert from_hf(without(V2_LITE, "bos_token_id", "eos_token_id")).eos_token_ids == (2,)
    assert from_hf(without(V2_LITE, "n_shared_experts")).n_shared_experts == 2
    assert from_hf(changed(V3, n_routed_experts=None)).mlp_layer_types == ("dense",) * 61


def test_defaults_of_silence():
    silent = without(
        V3, "norm_topk_prob", "routed_scaling_factor", "num_experts_per_tok", "first_k_dense_replace",
        "moe_layer_freq", "scoring_func", "topk_method", "rms_norm_eps", "attention_bias", "hidden_act",
        "tie_word_embeddings",
    )  # fmt: skip
    assert from_hf(silent) == from_hf(V3)
    assert from_hf(without(V3, "torch_dtype")).dtype == "float32"
    silent = without(GLM, "norm_topk_prob", "routed_scaling_factor", "num_experts_per_tok", "rms_norm_eps")
    assert from_hf(without(silent, "first_k_dense_replace", "n_group", "topk_group")) == from_hf(GLM)


def test_sparse_layers_by_frequency():
    got = from_hf(changed(V3, num_hidden_layers=8, moe_layer_freq=3, first_k_dense_replace=2))
    assert [i for i, kind in enumerate(got.mlp_layer_types) if kind == "sparse"] == [3, 6]


def test_half_split_rope():
    assert from_hf(changed(V3, rope_interleave=False)).rope.layout == "half"
    assert from_hf(changed(V3, rope_interleave=True)).rope.layout == "interleaved"


def test_from_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(V3))
    assert ModelConfig.from_file(tmp_path) == ModelConfig.from_file(str(path)) == from_hf(V3)
    for text in ("", "[]", "{", '{"model_type": NaN}', json.dumps(changed(V3, vocab_size=0))):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            ModelConfig.from_file(tmp_path)
        assert str(caught.value).startswith(f"{path}: ")
    path.write_text(json.dumps(changed(V3, model_type="llama")))
    with pytest.raises(UnsupportedModelError, match="model_type 'llama' is not supported"):
        ModelConfig.from_file(tmp_path)
    path.write_bytes(b" " * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(ConfigError, match="expected at most 16000000 bytes of JSON"):
        ModelConfig.from_file(tmp_path)
    path.unlink()
    for missing in (tmp_path, path, tmp_path / ("x" * 300), f"{tmp_path}/a\0b"):
        with pytest.raises(ConfigError, match=r"there is no such file$"):
            ModelConfig.from_file(missing)
