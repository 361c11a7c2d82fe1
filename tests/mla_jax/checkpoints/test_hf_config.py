"""config.json of every supported family, with published values, and everything that has to be refused."""

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mla_jax.checkpoints.hf_config import FAMILIES, MAX_CONFIG_BYTES
from mla_jax.config import MAX_LAYERS, MAX_POSITIONS, ModelConfig, RopeConfig, RouterConfig, YarnConfig
from mla_jax.errors import ConfigError, MlaJaxError, UnsupportedModelError
from mla_jax.rope import RopeTable, softmax_scale

GOLDENS = Path(__file__).resolve().parents[2] / "goldens"
CASES = sorted(path.parent.name for path in GOLDENS.glob("*/config.json"))

MLA = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
YARN_V2 = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096}

V2_LITE: dict[str, Any] = {
    **MLA,
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {**YARN_V2, "mscale": 0.707, "mscale_all_dim": 0.707, "type": "yarn"},
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
    "torch_dtype": "bfloat16",
    "vocab_size": 102400,
}
V2 = {
    **V2_LITE,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_group": 8,
    "n_routed_experts": 160,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "q_lora_rank": 1536,
    "routed_scaling_factor": 16.0,
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
}
V3 = {
    **MLA,
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {**YARN_V2, "mscale": 1.0, "mscale_all_dim": 1.0, "type": "yarn"},
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "vocab_size": 129280,
}
R1 = {**V3, "pretraining_tp": 1, "transformers_version": "4.46.3"}
K2 = {
    **V3,
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "model_type": "kimi_k2",
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_nextn_predict_layers": 0,
    "rope_scaling": {
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
    "vocab_size": 163840,
}
K25 = {
    "architectures": ["KimiK25ForConditionalGeneration"],
    "bos_token_id": 163584,
    "dtype": "bfloat16",
    "eos_token_id": 163585,
    "ignore_index": -100,
    "media_placeholder_token_id": 163605,
    "model_type": "kimi_k25",
    "pad_token_id": 163839,
    "text_config": {
        **K2,
        "max_position_embeddings": 262144,
        "rope_scaling": {**K2["rope_scaling"], "factor": 64.0},
        "quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    },
    "tie_word_embeddings": False,
    "vision_config": {"patch_size": 14, "hidden_act": "gelu"},
}
MOONLIGHT = {
    **V3,
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 11264,
    "max_position_embeddings": 8192,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": None,
    "quantization_config": None,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.446,
    "topk_group": 1,
    "vocab_size": 163840,
}
YOUTU = {
    **MLA,
    "architectures": ["YoutuForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "dtype": "bfloat16",
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "youtu",
    "num_attention_heads": 16,
    "num_hidden_layers": 32,
    "q_lora_rank": 1536,
    "rms_norm_eps": 1e-06,
    "rope_interleave": True,
    "rope_scaling": None,
    "rope_theta": 1600000,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
GLM = {
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "attention_bias": False,
    "dtype": "bfloat16",
    "eos_token_id": [154820, 154827, 154829],
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "kv_lora_rank": 512,
    "max_position_embeddings": 202752,
    "model_type": "glm4_moe_lite",
    "moe_intermediate_size": 1536,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 20,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 47,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 154820,
    "partial_rotary_factor": 1.0,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.8,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "v_head_dim": 256,
    "vocab_size": 154880,
}
V32 = {
    **V3,
    "architectures": ["DeepseekV32ForCausalLM"],
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 2048,
    "model_type": "deepseek_v32",
}
PUBLISHED = {
    "V2-Lite": V2_LITE,
    "V2": V2,
    "V3": V3,
    "R1": R1,
    "Kimi-K2": K2,
    "Kimi-K2.5": K25,
    "Moonlight": MOONLIGHT,
    "Youtu": YOUTU,
    "GLM-4.7-Flash": GLM,
    "V3.2": V32,
}

from_hf = ModelConfig.from_hf


def changed(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(base), **changes}


def without(base: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in base.items() if key not in keys}


def transformers_dialect(hub: dict[str, Any]) -> dict[str, Any]:
    """What transformers 5 saves for the same model."""
    values = without(hub, "rope_scaling", "rope_theta", "topk_method", "scoring_func", "torch_dtype")
    if "text_config" in hub:
        return {**values, "text_config": transformers_dialect(hub["text_config"])}
    if hub["model_type"] == "deepseek_v2":
        values |= {"topk_method": hub["topk_method"]}
    yarn = dict(hub.get("rope_scaling") or {"type": "default"})
    values["rope_parameters"] = {
        "rope_type": yarn.pop("type"),
        "rope_theta": float(hub["rope_theta"]),
        **yarn,
    }
    values["dtype"] = hub.get("torch_dtype") or hub.get("dtype")
    return values


def refused(values: Any, *parts: str, kind: type[ConfigError] = ConfigError) -> None:
    with pytest.raises(ConfigError) as caught:
        from_hf(values)
    assert type(caught.value) is kind, repr(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


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


@pytest.mark.parametrize(
    "values",
    [
        changed(V3, model_type="llama", architectures=["LlamaForCausalLM"]),
        changed(V3, model_type="deepseek_v4"),
        changed(V3, architectures=["DeepseekV3ForSequenceClassification"]),
        changed(V3, architectures=["DeepseekV2ForCausalLM"]),
        changed(without(V3, "model_type"), architectures=["Qwen3ForCausalLM"]),
        changed(V3, model_type="../../etc/passwd"),
        changed(K25, text_config=changed(K25["text_config"], model_type="llama")),
    ],
)
def test_unsupported_architectures_list_the_supported_ones(values):
    refused(values, "is not supported; supported are the model types", kind=UnsupportedModelError)
    refused(values, *FAMILIES, kind=UnsupportedModelError)


def test_architecture_alone_is_enough():
    assert from_hf(without(V3, "model_type")).model_type == "deepseek_v3"
    assert from_hf(without(V3, "architectures")) == from_hf(V3)
    assert from_hf(changed(V3, architectures=[])) == from_hf(V3)
    refused(without(V3, "model_type", "architectures"), "model_type: expected a string, got no such key")
    refused({}, "model_type")


@pytest.mark.parametrize(
    ("base", "changes", "part"),
    [
        (V3, {"hidden_act": "gelu"}, "hidden_act: expected 'silu', got 'gelu'"),
        (K25, {"text_config": changed(K25["text_config"], hidden_act="relu")}, "text_config.hidden_act"),
        (V2, {"norm_topk_prob": True}, "norm_topk_prob: expected false"),
        (V3, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE type 'linear' is not supported"),
        (V3, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "RoPE type 'dynamic'"),
    ],
)
def test_unsupported_variants(base, changes, part):
    refused(changed(base, **changes), part, kind=UnsupportedModelError)


@pytest.mark.parametrize(
    ("base", "changes", "parts"),
    [
        (V3, {"scoring_func": "softmax"}, ["scoring_func: expected 'sigmoid'", "got 'softmax'"]),
        (V3, {"topk_method": "greedy"}, ["topk_method: expected 'noaux_tc'"]),
        (V3, {"mlp_bias": True}, ["mlp_bias: expected False"]),
        (V3, {"mlp_bias": 0}, ["mlp_bias: expected False"]),
        (V3, {"index_topk": 2048}, ["index_topk", "deepseek_v32"]),
        (V2, {"scoring_func": "sigmoid"}, ["scoring_func: expected 'softmax'"]),
        (V2, {"topk_method": "noaux_tc"}, ["topk_method: expected 'greedy' or 'group_limited_greedy'"]),
        (V32, {"q_lora_rank": None}, ["q_lora_rank: expected an integer", "got None"]),
        (V32, {"rope_interleave": False}, ["rope_interleave"]),
        (V3, {"topk_group": 9}, ["topk_group: expected at most n_group = 8, got 9"]),
        (V3, {"n_group": 7}, ["n_group: expected a divisor of n_routed_experts = 256, got 7"]),
        (V3, {"n_group": 256, "topk_group": 8}, ["n_group: expected at least two experts a group"]),
        (V3, {"num_experts_per_tok": 129}, ["num_experts_per_tok: expected at most 128", "got 129"]),
        (V2_LITE, {"num_experts_per_tok": 65}, ["num_experts_per_tok: expected at most 64", "got 65"]),
        (V3, {"num_experts": 255}, ["num_experts: expected the same", "n_routed_experts = 256"]),
        (V3, {"n_routed_experts": 0, "mlp_layer_types": ["sparse"] * 61}, ["mlp_layer_types"]),
        (
            V3,
            {"mlp_layer_types": ["dense"] * 60},
            ["mlp_layer_types: expected num_hidden_layers = 61 entries"],
        ),
        (
            V3,
            {"mlp_layer_types": ["dense"] * 61},
            ["mlp_layer_types: expected the layers that first_k_dense"],
        ),
        (V3, {"mlp_layer_types": ["moe"] * 61}, ["mlp_layer_types: expected 'dense' or 'sparse'"]),
        (V3, {"moe_layer_freq": 0}, ["moe_layer_freq: expected an integer from 1"]),
        (V3, {"num_hidden_layers": MAX_LAYERS + 1}, [f"num_hidden_layers: expected at most {MAX_LAYERS}"]),
        (
            V3,
            {"max_position_embeddings": MAX_POSITIONS + 1, "rope_scaling": None},
            [f"max_position_embeddings: expected at most {MAX_POSITIONS}"],
        ),
        (V3, {"qk_rope_head_dim": 63}, ["qk_rope_head_dim: expected an even number", "got 63"]),
        (V3, {"dtype": "float64", "torch_dtype": None}, ["dtype: expected one of", "got 'float64'"]),
        (V3, {"dtype": "float16"}, ["torch_dtype: expected the same", "dtype = 'float16'", "got 'bfloat16'"]),
        (V3, {"num_mtp_layers": 2}, ["num_mtp_layers", "num_nextn_predict_layers = 1"]),
        (V3, {"rms_norm_eps": 1.0}, ["rms_norm_eps: expected a number below 1, got 1.0"]),
        (V3, {"rms_norm_eps": 0.0}, ["rms_norm_eps"]),
        (V3, {"routed_scaling_factor": -2.5}, ["routed_scaling_factor"]),
        (V3, {"quantization_config": []}, ["quantization_config: expected a JSON object, got []"]),
        (V3, {"quantization_config": {"a": math.inf}}, ["quantization_config: expected plain JSON"]),
        (V3, {"quantization_config": {"a": {1, 2}}}, ["quantization_config: expected plain JSON"]),
        (V3, {"architectures": "DeepseekV3ForCausalLM"}, ["architectures: expected a list of strings"]),
        (V3, {"eos_token_id": -1}, ["eos_token_id"]),
        (V3, {"eos_token_id": [1, "2"]}, ["eos_token_id"]),
        (K25, {"text_config": None}, ["text_config: expected a JSON object, got None"]),
        (K25, {"text_config": []}, ["text_config: expected a JSON object, got []"]),
        (K25, {"text_config": without(K2, "hidden_size")}, ["text_config.hidden_size: expected a value"]),
    ],
)
def test_refused_values(base, changes, parts):
    refused(changed(base, **changes), *parts)


REQUIRED = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim",
    "qk_rope_head_dim", "v_head_dim", "intermediate_size", "vocab_size", "max_position_embeddings",
)  # fmt: skip


@pytest.mark.parametrize("key", [*REQUIRED, "moe_intermediate_size", "n_routed_experts"])
def test_required_keys(key):
    refused(without(V3, key), f"{key}: expected ", "got no such key")
    if key in REQUIRED:
        refused(without(YOUTU, key), f"{key}: expected ", "got no such key")


INTEGERS = (
    *REQUIRED, "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", "n_shared_experts", "n_group",
    "topk_group", "first_k_dense_replace", "moe_layer_freq", "num_nextn_predict_layers", "bos_token_id",
    "pad_token_id", "eos_token_id",
)  # fmt: skip


@pytest.mark.parametrize("key", INTEGERS)
def test_json_types_of_integers(key):
    for value in (True, False, 1.0, 61.5, "61", "", {}, -1, 2**31, 2**63, 10**400, math.nan, math.inf):
        refused(changed(V3, **{key: value}), f"{key}: expected ", "got ")


@pytest.mark.parametrize("key", ["rms_norm_eps", "routed_scaling_factor", "rope_theta"])
def test_json_types_of_numbers(key):
    for value in (True, "1", [], {}, math.nan, math.inf, -math.inf, 0, 0.0, -1, 10**400, 1e300):
        refused(changed(V3, **{key: value}), f"{key}: expected ", "got ")


@pytest.mark.parametrize(
    "key", ["attention_bias", "tie_word_embeddings", "norm_topk_prob", "rope_interleave"]
)
def test_json_types_of_booleans(key):
    for value in (None, 0, 1, "true", "", [], 1.0):
        refused(changed(V3, **{key: value}), f"{key}: expected true or false, got ")


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


@pytest.mark.parametrize("values", [None, [], "x", 1, [("model_type", "deepseek_v3")]])
def test_only_objects(values):
    refused(values, "config: expected a JSON object")


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


def test_hostile_sizes_are_refused_quickly():
    start = time.perf_counter()
    refused(changed(V3, num_hidden_layers=2**31 - 1, first_k_dense_replace=2**31 - 1), "num_hidden_layers")
    refused(changed(V3, mlp_layer_types=["sparse"] * 1_000_000), "mlp_layer_types")
    refused(changed(V3, hidden_act="x" * 10_000_000), "hidden_act", kind=UnsupportedModelError)
    deep: Any = {}
    for _ in range(50_000):
        deep = {"a": deep}
    refused(changed(V3, quantization_config=deep), "quantization_config")
    assert time.perf_counter() - start < 10


HOSTILE = (
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, 2**63, 10**30, 0.0, -0.0, 0.5, 1.0, 1e-320, 1e15, 1e308,
    "", "silu", "yarn", "float16", "\0", "x" * 300, [], [1], ["sparse"], [None], {}, {"type": "yarn"},
    {"rope_type": "default", "rope_theta": 5e4}, {"type": "yarn", "factor": 2}, {"a": {"b": 1}},
)  # fmt: skip
EXTRA_KEYS = (
    "rope_parameters", "rope_interleave", "partial_rotary_factor", "mlp_layer_types", "num_experts", "dtype",
    "num_mtp_layers", "mlp_bias", "index_topk", "original_max_position_embeddings", "text_config", "pad_token_id",
)  # fmt: skip


def mutated(rng: np.random.Generator) -> bytes:
    """One of the golden configurations with a few hostile values, and sometimes damaged bytes."""
    case = CASES[int(rng.integers(len(CASES)))]
    values = json.loads((GOLDENS / case / "config.json").read_text())
    for _ in range(int(rng.integers(0, 4))):
        target, place = values, rng.random()
        if "text_config" in values and isinstance(values["text_config"], dict) and place < 0.7:
            target = values["text_config"]
        scaling = target.get("rope_scaling")
        if isinstance(scaling, dict) and scaling and rng.random() < 0.3:
            target = scaling
        keys = [*target, *EXTRA_KEYS]
        key = keys[int(rng.integers(len(keys)))]
        if rng.random() < 0.2:
            target.pop(key, None)
        else:
            target[key] = copy.deepcopy(HOSTILE[int(rng.integers(len(HOSTILE)))])
    text = bytearray(json.dumps(values).encode())
    if rng.random() < 0.3:
        for at in rng.integers(0, len(text), 2):
            text[int(at)] = int(rng.integers(256))
    if rng.random() < 0.05:
        text = text[: int(rng.integers(len(text)))]
    return bytes(text)


def test_fuzzed_files_load_or_are_refused(tmp_path, rng):
    """Nothing but MlaJaxError; what is accepted has finite RoPE angles, without a warning on the way."""
    path = tmp_path / "config.json"
    loaded = 0
    with path.open("wb", buffering=0) as writer:
        for i in range(4000):
            text = mutated(rng)
            writer.seek(0)
            writer.write(text)
            writer.truncate()
            try:
                config = ModelConfig.from_file(path)
                hash(config)
                table = RopeTable.abstract(config.rope, config.max_position_embeddings)
                assert table.cos.shape[1] == config.qk_rope_head_dim // 2
                if config.qk_rope_head_dim <= 64:
                    assert np.isfinite(RopeTable.from_config(config.rope, 2).cos).all()
                assert math.isfinite(np.float32(softmax_scale(config)))
            except MlaJaxError:
                continue
            except BaseException as error:
                raise AssertionError(f"case {i}: {text!r}") from error
            loaded += 1
    assert 800 < loaded < 3500
