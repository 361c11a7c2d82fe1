"""Everything in a config.json that has to be refused, each with one sentence that names the key."""

import copy
import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from published_configs import CASES, GOLDENS, K2, K25, V2, V2_LITE, V3, V32, YOUTU, changed, refused, without

from mla_jax.checkpoints.hf_config import FAMILIES
from mla_jax.config import MAX_LAYERS, MAX_POSITIONS, ModelConfig
from mla_jax.errors import MlaJaxError, UnsupportedModelError
from mla_jax.rope import RopeTable, softmax_scale


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


@pytest.mark.parametrize("values", [None, [], "x", 1, [("model_type", "deepseek_v3")]])
def test_only_objects(values):
    refused(values, "config: expected a JSON object")


def test_hostile_sizes_are_refused_before_they_cost_anything():
    tracemalloc.start()
    refused(changed(V3, num_hidden_layers=2**31 - 1, first_k_dense_replace=2**31 - 1), "num_hidden_layers")
    refused(changed(V3, mlp_layer_types=["sparse"] * 1_000_000), "mlp_layer_types")
    refused(changed(V3, hidden_act="x" * 10_000_000), "hidden_act", kind=UnsupportedModelError)
    deep: Any = {}
    for _ in range(50_000):
        deep = {"a": deep}
    refused(changed(V3, quantization_config=deep), "quantization_config")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20  # of which the values above are the most


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
