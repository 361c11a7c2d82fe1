"""One table of a model's parameters: names, shapes, logical axes, initialisers, checkpoint sources.

Abstract weights, random weights, the import plan and (later) shardings all read this table, so that a
weight cannot exist in one of them and be missing in another.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from custom_calls.quantized_tensor import QuantizedTensor
from mla_jax.config import ModelConfig
from mla_jax.quant import Storage, abstract_tensor, random_tensor

Tree = dict[str, Any]
"""Nested parameters: dicts by name, lists by layer number, leaves at the end."""


@dataclass(frozen=True)
class Source:
    """A checkpoint tensor and the leading index range of the parameter that it fills.

    index: the parameter's leading coordinates (expert number), or ().
    rows: (start, stop) of the first remaining axis, or None for all of it.
    """

    name: str
    index: tuple[int, ...] = ()
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class ParamInfo:
    """What is to be known of one parameter before it has data.

    Attributes:
      shape: as in the checkpoint, (out, in); experts are stacked in front.
      axes: logical axis names, one a dimension, for sharding rules.
      sources: the checkpoint tensors that fill it.
      init: initialiser of random weights.
      dtype: the dtype's name, or None for the model's compute dtype.
      quantizable: a weight of `linear`, `absorb` or `expert_mlp`, which may be a `QuantizedTensor`.
      absorbed: kv_b_proj, which `absorb_weights` may store otherwise.
      storage: how it is quantised, or None for a plain array.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    sources: tuple[Source, ...]
    init: Literal["normal", "ones", "zeros"] = "normal"
    dtype: str | None = None
    quantizable: bool = False
    absorbed: bool = False
    storage: Storage | None = None

    def source_shape(self, source: Source) -> tuple[int, ...]:
        """Shape of the values that a checkpoint tensor contributes."""
        rest = self.shape[len(source.index) :]
        return rest if source.rows is None else (source.rows[1] - source.rows[0], *rest[1:])


def parameter_table(config: ModelConfig) -> Tree:
    """The parameters of `config`'s model, nested as the modules and the checkpoint names are."""
    vocab, hidden = config.vocab_size, config.hidden_size
    prefix = f"{config.tensor_prefix}model."
    table: Tree = {
        "model": {
            "embed_tokens": {
                "weight": _leaf(f"{prefix}embed_tokens.weight", (vocab, hidden), ("vocab", "embed"))
            },
            "layers": [
                _decoder_layer(config, f"{prefix}layers.{i}.", i) for i in range(config.num_hidden_layers)
            ],
            "norm": _norm(f"{prefix}norm", hidden),
        }
    }
    if not config.tie_word_embeddings:
        table["lm_head"] = _linear(f"{config.tensor_prefix}lm_head", vocab, hidden, ("vocab", "embed"))
    return table


def map_table(function: Callable[[ParamInfo], Any], table: Tree) -> Tree:
    """The same nesting with `function(info)` for every leaf."""
    return jax.tree.map(function, table, is_leaf=lambda node: isinstance(node, ParamInfo))


def with_storage(table: Tree, choose: Callable[[ParamInfo], Storage | None]) -> Tree:
    """The table with `choose(info)` as the storage of every quantisable parameter."""
    return map_table(
        lambda info: replace(info, storage=choose(info)) if info.quantizable else info,
        table,
    )


def abstract_parameters(table: Tree, dtype: str) -> Tree:
    """`jax.ShapeDtypeStruct`s of the parameters, to plan and compile without data."""
    return map_table(lambda info: abstract_parameter(info, dtype), table)


def abstract_parameter(info: ParamInfo, dtype: str) -> jax.ShapeDtypeStruct | QuantizedTensor:
    """The same for one parameter."""
    if info.storage is not None:
        return abstract_tensor(info.storage, info.shape)
    return jax.ShapeDtypeStruct(info.shape, info.dtype or dtype)


def random_parameters(table: Tree, key: jax.Array, dtype: str, scale: float = 1.0) -> Tree:
    """Random weights: normal with standard deviation scale / sqrt(fan in), ones for norms.

    Quantised parameters get random codes and one scale that gives them the same deviation, without ever
    being floating-point numbers.

    Args:
      table: of `parameter_table`, or a part of it.
      key: a `jax.random.key`.
      dtype: compute dtype.
      scale: multiplies every standard deviation.
    """
    infos, structure = jax.tree.flatten(table, is_leaf=lambda node: isinstance(node, ParamInfo))

    def draw(info: ParamInfo, one: jax.Array) -> jax.Array | QuantizedTensor:
        kind = jnp.dtype(info.dtype or dtype)
        if info.storage is not None:
            return random_tensor(info.storage, info.shape, one, scale / math.sqrt(info.shape[-1]))
        if info.init == "ones":
            return jnp.ones(info.shape, kind)
        if info.init == "zeros":
            return jnp.zeros(info.shape, kind)
        deviation = scale / math.sqrt(info.shape[-1])
        return (jax.random.normal(one, info.shape, jnp.float32) * jnp.float32(deviation)).astype(kind)

    keys = list(jax.random.split(key, len(infos))) if infos else []
    return jax.tree.unflatten(structure, [draw(i, k) for i, k in zip(infos, keys, strict=True)])


def attention_table(config: ModelConfig, prefix: str = "") -> Tree:
    """Parameters of one attention block; `prefix` is the checkpoint's, with its final dot."""
    heads, hidden, rank = config.num_attention_heads, config.hidden_size, config.kv_lora_rank
    qk_width = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
    bias = config.attention_bias
    table: Tree = {}
    if config.q_lora_rank is None:
        table["q_proj"] = _linear(f"{prefix}q_proj", qk_width, hidden, ("heads", "embed"))
    else:
        lora = config.q_lora_rank
        table["q_a_proj"] = _linear(f"{prefix}q_a_proj", lora, hidden, ("q_lora", "embed"), bias)
        table["q_a_layernorm"] = _norm(f"{prefix}q_a_layernorm", lora)
        table["q_b_proj"] = _linear(f"{prefix}q_b_proj", qk_width, lora, ("heads", "q_lora"))
    table["kv_a_proj_with_mqa"] = _linear(
        f"{prefix}kv_a_proj_with_mqa", rank + config.qk_rope_head_dim, hidden, ("kv_lora", "embed"), bias
    )
    table["kv_a_layernorm"] = _norm(f"{prefix}kv_a_layernorm", rank)
    kv_width = heads * (config.qk_nope_head_dim + config.v_head_dim)
    kv_b_proj = _linear(f"{prefix}kv_b_proj", kv_width, rank, ("heads", "kv_lora"))
    table["kv_b_proj"] = {"weight": replace(kv_b_proj["weight"], absorbed=True)}
    out_width = heads * config.v_head_dim
    table["o_proj"] = _linear(f"{prefix}o_proj", hidden, out_width, ("embed", "heads"), bias)
    return table


def _decoder_layer(config: ModelConfig, prefix: str, index: int) -> Tree:
    hidden = config.hidden_size
    sparse = config.mlp_layer_types[index] == "sparse"
    return {
        "input_layernorm": _norm(f"{prefix}input_layernorm", hidden),
        "self_attn": attention_table(config, f"{prefix}self_attn."),
        "post_attention_layernorm": _norm(f"{prefix}post_attention_layernorm", hidden),
        "mlp": _moe(config, f"{prefix}mlp.")
        if sparse
        else _mlp(config, f"{prefix}mlp.", config.intermediate_size),
    }


def _mlp(config: ModelConfig, prefix: str, width: int) -> Tree:
    hidden, bias = config.hidden_size, config.mlp_bias
    return {
        "gate_proj": _linear(f"{prefix}gate_proj", width, hidden, ("mlp", "embed"), bias),
        "up_proj": _linear(f"{prefix}up_proj", width, hidden, ("mlp", "embed"), bias),
        "down_proj": _linear(f"{prefix}down_proj", hidden, width, ("embed", "mlp"), bias),
    }


def _moe(config: ModelConfig, prefix: str) -> Tree:
    assert config.router is not None, "a sparse layer has a router: ModelConfig checks it"
    hidden, experts, width = config.hidden_size, config.n_routed_experts, config.moe_intermediate_size
    gate: Tree = {"weight": _leaf(f"{prefix}gate.weight", (experts, hidden), ("expert", "embed"))}
    if config.router.topk_method == "noaux_tc":
        name = f"{prefix}gate.e_score_correction_bias"
        gate["e_score_correction_bias"] = ParamInfo(
            (experts,), ("expert",), (Source(name),), "zeros", "float32"
        )
    gate_up, down = [], []
    for expert in range(experts):
        of = f"{prefix}experts.{expert}."
        gate_up.append(Source(f"{of}gate_proj.weight", (expert,), (0, width)))
        gate_up.append(Source(f"{of}up_proj.weight", (expert,), (width, 2 * width)))
        down.append(Source(f"{of}down_proj.weight", (expert,)))
    table: Tree = {
        "gate": gate,
        "experts": {
            "gate_up_proj": ParamInfo(
                (experts, 2 * width, hidden),
                ("expert", "mlp", "embed"),
                tuple(gate_up),
                quantizable=True,
            ),
            "down_proj": ParamInfo(
                (experts, hidden, width), ("expert", "embed", "mlp"), tuple(down), quantizable=True
            ),
        },
    }
    if config.n_shared_experts:
        # All shared experts are one MLP of their joint width.
        table["shared_experts"] = _mlp(config, f"{prefix}shared_experts.", width * config.n_shared_experts)
    return table


def _leaf(name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> ParamInfo:
    return ParamInfo(shape, axes, (Source(name),))


def _norm(name: str, width: int) -> Tree:
    return {"weight": ParamInfo((width,), ("norm",), (Source(f"{name}.weight"),), "ones")}


def _linear(name: str, out: int, into: int, axes: tuple[str, str], bias: bool = False) -> Tree:
    table: Tree = {"weight": replace(_leaf(f"{name}.weight", (out, into), axes), quantizable=True)}
    if bias:
        table["bias"] = ParamInfo((out,), (axes[0],), (Source(f"{name}.bias"),), "zeros")
    return table
