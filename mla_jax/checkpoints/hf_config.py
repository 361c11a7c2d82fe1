"""Hugging Face configurations: one table of model families, one small function each.

A new model is one function that returns a ModelConfig and one entry in FAMILIES. Defaults of missing
keys are those of the model's configuration class in transformers 5; keys that give a model its shape
have no default here, because a wrong guess would only show as a confusing tensor mismatch.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_jax.checkpoints.fields import REQUIRED, Fields
from mla_jax.checkpoints.hf_rope import rope_from_hf
from mla_jax.checkpoints.json_files import read_json_object
from mla_jax.config import MAX_LAYERS, MlpLayerType, ModelConfig, RopePairing, RouterConfig
from mla_jax.errors import ConfigError, UnsupportedModelError, shown

LATENT_NORM_EPS = 1e-6
"""q_a_layernorm and kv_a_layernorm ignore rms_norm_eps: every supported class leaves them at this default."""

MAX_CONFIG_BYTES = 16_000_000


@dataclass(frozen=True)
class Family:
    """How one `model_type` is read.

    Attributes:
      architectures: accepted entries of `architectures`.
      convert: the file's keys -> ModelConfig.
    """

    architectures: tuple[str, ...]
    convert: Callable[[Fields], ModelConfig]


def model_config_from_hf(config: Mapping[str, Any]) -> ModelConfig:
    """See `ModelConfig.from_hf`."""
    fields = Fields(config)
    model_type = fields.string("model_type", default=None)
    architectures = fields.strings("architectures")
    if model_type is None:
        model_type = _family_of(architectures)
    family = FAMILIES.get(model_type)
    if family is None:
        raise _unsupported(f"model_type {shown(model_type)}")
    if architectures and not set(architectures) & set(family.architectures):
        # Sequence classifiers, bare encoders and relabelled conversions share a model_type.
        raise _unsupported(f"architecture {shown(architectures[0])} of model_type {shown(model_type)}")
    return family.convert(fields)


def model_config_from_file(path: str | os.PathLike[str]) -> ModelConfig:
    """See `ModelConfig.from_file`."""
    path = Path(path)
    if os.path.isdir(path):  # Path.is_dir raises for names that are too long
        path = path / "config.json"
    values = read_json_object(path, ConfigError, MAX_CONFIG_BYTES)
    try:
        return model_config_from_hf(values)
    except ConfigError as error:
        raise type(error)(f"{path}: {error}") from None


def _deepseek_v2(fields: Fields) -> ModelConfig:
    if fields.boolean("norm_topk_prob", default=False):
        raise UnsupportedModelError(
            "norm_topk_prob: expected false in a deepseek_v2 model, got True: the authors' code then drops"
            " routed_scaling_factor while transformers drops the normalisation, and no published model says"
            " which one is meant"
        )
    method = fields.string("topk_method", default="greedy")
    if method not in ("greedy", "group_limited_greedy"):
        fields.fail("topk_method", "'greedy' or 'group_limited_greedy' in a deepseek_v2 model")
    _fixed(fields, "scoring_func", "softmax")
    _refused(fields, "index_topk")
    grouped = method == "group_limited_greedy"
    router = _router(
        fields,
        scoring_func="softmax",
        topk_method=method,
        # Plain greedy choice has no groups, whatever the keys say.
        n_group=_null_is(fields, "n_group", 1, REQUIRED) if grouped else 1,
        topk_group=_null_is(fields, "topk_group", 1, REQUIRED) if grouped else 1,
        norm_topk_prob=False,
        scale=1.0,
    )
    return _model(
        fields,
        router,
        kinds=_layer_types(fields, first_dense=0),
        mlp_bias=fields.boolean("mlp_bias", default=False),
        n_shared_experts=2,
        token_ids=(1, 2),
    )


def _deepseek_v3(fields: Fields) -> ModelConfig:
    _refused(fields, "index_topk")
    return _v3_like(fields, _layer_types(fields, first_dense=3))


def _deepseek_v32(fields: Fields) -> ModelConfig:
    if not fields.has("q_lora_rank"):
        fields.fail("q_lora_rank", "an integer, since V3.2's indexer reads the query latent")
    _fixed(fields, "rope_interleave", True)
    topk = fields.integer("index_topk", low=1, default=2048)
    return _v3_like(fields, _layer_types(fields, first_dense=3, types_win=True), index_topk=topk)


def _kimi_k25(fields: Fields) -> ModelConfig:
    # A vision wrapper: what this library runs is the language model inside it.
    text = fields.object("text_config")
    if text is None:
        fields.fail("text_config", "a JSON object")
    kind = text.string("model_type", default="deepseek_v3")
    if kind not in ("deepseek_v3", "kimi_k2"):
        raise _unsupported(f"text_config.model_type {shown(kind)}")
    values = dict(text.items())
    # The wrapper's own keys are the ones that transformers obeys.
    for key in ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"):
        if fields.has(key):
            values[key] = fields.raw(key)
    for spellings in (("dtype", "torch_dtype"), ("quantization_config", "compression_config")):
        if fields.has(*spellings):
            for key in spellings:
                values.pop(key, None)
            values[spellings[0]] = fields.raw(*spellings)
    values["model_type"] = "kimi_k25"
    inner = Fields(values, text.where)
    _refused(inner, "index_topk")
    kinds = _layer_types(inner, first_dense=3)
    return _v3_like(inner, kinds, tensor_prefix="language_model.", tied=True)


def _glm4_moe_lite(fields: Fields) -> ModelConfig:
    _refused(fields, "index_topk")
    return _v3_like(
        fields,
        _layer_types(fields, first_dense=1, types_win=True),
        groups=(1, 1),
        scale=1.8,
        top_k=4,
        norm_eps=1e-5,
    )


def _youtu(fields: Fields) -> ModelConfig:
    _refused(fields, "index_topk")
    one: tuple[MlpLayerType, ...] = ("dense",)
    dense = one * _layer_count(fields)
    return _model(
        fields,
        None,
        kinds=dense,
        layout=_layout(fields),
        tied=True,
        token_ids=(128000, 128001),
    )


FAMILIES: dict[str, Family] = {
    "deepseek_v2": Family(("DeepseekV2ForCausalLM",), _deepseek_v2),
    "deepseek_v3": Family(("DeepseekV3ForCausalLM",), _deepseek_v3),
    "deepseek_v32": Family(("DeepseekV32ForCausalLM",), _deepseek_v32),
    "glm4_moe_lite": Family(("Glm4MoeLiteForCausalLM",), _glm4_moe_lite),
    "kimi_k2": Family(("DeepseekV3ForCausalLM", "KimiK2ForCausalLM"), _deepseek_v3),
    "kimi_k25": Family(("KimiK25ForConditionalGeneration", "Kimi_K25ForConditionalGeneration"), _kimi_k25),
    "youtu": Family(("YoutuForCausalLM",), _youtu),
    # The name that some conversions give the same model.
    "youtu_llm": Family(("YoutuForCausalLM",), _youtu),
}
"""Supported model types. In a file without model_type, the first entry with its architecture is taken."""


def _v3_like(
    fields: Fields,
    kinds: tuple[MlpLayerType, ...],
    *,
    groups: tuple[int, int] = (8, 4),
    scale: float = 2.5,
    top_k: int = 8,
    **rest: Any,
) -> ModelConfig:
    # transformers hard-codes both; a file that says otherwise describes a model that it would get wrong.
    _fixed(fields, "scoring_func", "sigmoid")
    _fixed(fields, "topk_method", "noaux_tc")
    # Parameters that transformers accepts in these classes and then does not create.
    _fixed(fields, "mlp_bias", False)
    router = _router(
        fields,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        n_group=_null_is(fields, "n_group", 1, groups[0]),
        topk_group=_null_is(fields, "topk_group", 1, groups[1]),
        norm_topk_prob=fields.boolean("norm_topk_prob", default=True),
        scale=scale,
    )
    return _model(fields, router, kinds=kinds, layout=_layout(fields), top_k=top_k, **rest)


def _model(
    fields: Fields,
    router: Callable[[], RouterConfig] | None,
    *,
    kinds: tuple[MlpLayerType, ...],
    layout: RopePairing = "interleaved",
    top_k: Any = REQUIRED,
    n_shared_experts: int = 1,
    mlp_bias: bool = False,
    tied: bool = False,
    norm_eps: float = 1e-6,
    token_ids: tuple[int, int] = (0, 1),
    index_topk: int | None = None,
    tensor_prefix: str = "",
) -> ModelConfig:
    activation = fields.string("hidden_act", default="silu")
    if activation != "silu":
        raise UnsupportedModelError(f"{fields.where}hidden_act: expected 'silu', got {shown(activation)}")
    if not fields.present("q_lora_rank"):
        # null and missing are different models: transformers' default is a latent of 1536.
        fields.fail("q_lora_rank", "an integer, or null for models without a query latent")
    positions = fields.integer("max_position_embeddings", low=1)
    rope_dim = fields.integer("qk_rope_head_dim", low=2)
    sparse = router is not None and "sparse" in kinds
    bos, eos = token_ids
    return ModelConfig(
        model_type=fields.string("model_type", default="deepseek_v3"),
        vocab_size=fields.integer("vocab_size", low=1),
        hidden_size=fields.integer("hidden_size", low=1),
        num_hidden_layers=_layer_count(fields),
        num_attention_heads=fields.integer("num_attention_heads", low=1),
        q_lora_rank=fields.integer("q_lora_rank", low=1, default=None),
        kv_lora_rank=fields.integer("kv_lora_rank", low=1),
        qk_nope_head_dim=fields.integer("qk_nope_head_dim", low=1),
        qk_rope_head_dim=rope_dim,
        v_head_dim=fields.integer("v_head_dim", low=1),
        intermediate_size=fields.integer("intermediate_size", low=1),
        moe_intermediate_size=fields.integer("moe_intermediate_size", low=1) if sparse else 0,
        n_routed_experts=fields.integer(*EXPERTS, low=1) if sparse else 0,
        num_experts_per_tok=fields.integer("num_experts_per_tok", low=1, default=top_k) if sparse else 0,
        n_shared_experts=_null_is(fields, "n_shared_experts", 0, n_shared_experts) if sparse else 0,
        mlp_layer_types=kinds,
        router=router() if router is not None and sparse else None,
        rope=rope_from_hf(fields, rope_dim, layout, positions),
        rms_norm_eps=fields.number("rms_norm_eps", default=norm_eps),
        latent_norm_eps=LATENT_NORM_EPS,
        max_position_embeddings=positions,
        attention_bias=fields.boolean("attention_bias", default=False),
        mlp_bias=mlp_bias,
        tie_word_embeddings=fields.boolean("tie_word_embeddings", default=tied),
        index_topk=index_topk,
        num_nextn_predict_layers=fields.integer(
            "num_nextn_predict_layers", "num_mtp_layers", low=0, default=0
        ),
        bos_token_id=_null_is(fields, "bos_token_id", None, bos),
        eos_token_ids=fields.integers("eos_token_id", low=0) if fields.present("eos_token_id") else (eos,),
        pad_token_id=fields.integer("pad_token_id", low=0, default=None),
        # float32 holds the weights of every other dtype exactly, so it is the safe reading of silence.
        dtype=fields.string("dtype", "torch_dtype", default="float32"),
        tensor_prefix=tensor_prefix,
        quantization=_quantization(fields),
    )


EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")


def _router(
    fields: Fields,
    *,
    scoring_func: Any,
    topk_method: Any,
    n_group: int,
    topk_group: int,
    norm_topk_prob: bool,
    scale: float,
) -> Callable[[], RouterConfig]:
    # Deferred: a dense model's router keys may be leftovers that fit nothing.
    def build() -> RouterConfig:
        return RouterConfig(
            scoring_func=scoring_func,
            topk_method=topk_method,
            n_group=n_group,
            topk_group=topk_group,
            norm_topk_prob=norm_topk_prob,
            routed_scaling_factor=fields.number("routed_scaling_factor", default=scale),
        )

    return build


def _layer_types(fields: Fields, first_dense: int, types_win: bool = False) -> tuple[MlpLayerType, ...]:
    """mlp_layer_types, or what first_k_dense_replace and moe_layer_freq make of the layers.

    `types_win`: the class obeys mlp_layer_types alone and saves a first_k_dense_replace that may be stale.
    """
    layers = _layer_count(fields)
    named = fields.strings("mlp_layer_types")
    for kind in named:
        if kind not in ("dense", "sparse"):
            fields.fail("mlp_layer_types", "'dense' or 'sparse' for every layer")
    if named and len(named) != layers:
        fields.fail("mlp_layer_types", f"num_hidden_layers = {layers} entries")
    dense = fields.integer("first_k_dense_replace", low=0, default=first_dense)
    every = fields.integer("moe_layer_freq", low=1, default=1)
    has_experts = fields.has(*EXPERTS) and fields.integer(*EXPERTS, low=0) > 0
    if not has_experts and not fields.present(*EXPERTS) and dense < layers:
        fields.fail(EXPERTS[0], "an integer, or null for a dense model")
    counted: tuple[MlpLayerType, ...] = tuple(
        "sparse" if has_experts and i >= dense and i % every == 0 else "dense" for i in range(layers)
    )
    if not named:
        return counted
    given = fields.has("first_k_dense_replace") or fields.has("moe_layer_freq")
    if given and not types_win and named != counted:
        fields.fail("mlp_layer_types", "the layers that first_k_dense_replace and moe_layer_freq give")
    if "sparse" in named and not has_experts:
        fields.fail(EXPERTS[0], "a positive integer, since mlp_layer_types has sparse layers")
    return named  # type: ignore[return-value]


def _layer_count(fields: Fields) -> int:
    layers: int = fields.integer("num_hidden_layers", low=1)
    if layers > MAX_LAYERS:
        fields.fail("num_hidden_layers", f"at most {MAX_LAYERS}")
    return layers


def _layout(fields: Fields) -> RopePairing:
    return "interleaved" if fields.boolean("rope_interleave", default=True) else "half"


def _null_is(fields: Fields, key: str, null: Any, missing: Any) -> Any:
    if fields.present(key) and not fields.has(key):
        return null
    return fields.integer(key, low=0, default=missing)


def _fixed(fields: Fields, key: str, expected: object) -> None:
    if fields.has(key) and (fields.raw(key) != expected or type(fields.raw(key)) is not type(expected)):
        fields.fail(key, f"{shown(expected)}, the only value that this model_type supports")


def _refused(fields: Fields, key: str) -> None:
    if fields.has(key):
        fields.fail(key, "no such key in this model_type (sparse attention is model_type deepseek_v32)")


def _quantization(fields: Fields) -> str | None:
    settings = fields.object("quantization_config", "compression_config")
    if settings is None:
        return None
    try:
        return json.dumps(dict(settings.items()), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{settings.where[:-1]}: expected plain JSON, got {error}") from None


def _family_of(architectures: tuple[str, ...]) -> str:
    for name, family in FAMILIES.items():
        if set(architectures) & set(family.architectures):
            return name
    if architectures:
        raise _unsupported(f"architecture {shown(architectures[0])}")
    raise ConfigError("model_type: expected a string, got no such key and no architectures either")


def _unsupported(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{what} is not supported; supported are the model types {', '.join(sorted(FAMILIES))}"
    )
