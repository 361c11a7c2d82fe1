"""`load`: a Hugging Face checkpoint becomes a Flax model."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax

from custom_calls.registry import KERNELS, Kernels, check_environment
from mla_jax.absorbed import AbsorbWeights, absorbed_weight, check_absorb_weights
from mla_jax.arguments import dtype_name
from mla_jax.checkpoints.hub import Source, locate
from mla_jax.checkpoints.index import TensorIndex
from mla_jax.checkpoints.plan import expected_storage, plan
from mla_jax.checkpoints.quantization import parse_quantization
from mla_jax.checkpoints.streaming import stream
from mla_jax.config import ModelConfig
from mla_jax.errors import ConfigError, KernelUnavailableError, shown
from mla_jax.fp8_format import Fp8Format, in_fp8_format, resolve_fp8_format
from mla_jax.models import MLAForCausalLM
from mla_jax.parameters import ParamInfo, abstract_parameter, map_table, parameter_table, with_storage
from mla_jax.rope import RopeTable
from mla_jax.weight_layout import WeightLayout, in_weight_layout, resolve_weight_layout

COMPUTE_DTYPES = ("auto", "float32", "bfloat16")

# Bounded: int() refuses thousands of digits with an error of its own.
_ACTIVATION_SCALES = (".input_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale")
_LAYER = re.compile("[1-9][0-9]{0,9}")


def load(
    path_or_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: Any = "auto",
    kernels: Kernels = "auto",
    absorb_weights: AbsorbWeights = "auto",
    fp8_format: Fp8Format = "auto",
    weight_layout: WeightLayout = "auto",
    abstract: bool = False,
    progress: bool = True,
) -> tuple[MLAForCausalLM, ModelConfig]:
    """Reads a checkpoint folder, or a hub id's local or downloaded copy.

    Weights are streamed: beyond the model itself at most one more tensor is held.

    Args:
      path_or_id: a folder with config.json and safetensors, or a hub id.
      revision: branch, tag or commit of a hub id. It is looked up once: settings and weights are of one
        commit, even if a branch moves meanwhile.
      dtype: compute dtype: "auto" is the checkpoint's own ("float16" is computed in float32, which holds
        every float16 value), "float32" or "bfloat16"; or one of these as a dtype, such as `jnp.bfloat16`.
      kernels: "auto", "native" or "reference", for every op of the model.
      absorb_weights: how kv_b_proj is held, which every step's absorbed products read; "auto": in the
        checkpoint's own bytes. See `mla_jax.absorbed`.
      fp8_format: the codes of FP8 weights: "e4m3fn", as checkpoints hold them, "e4m3fnuz", gfx942's own
        (recoded while loading, scales doubled), or "auto": the default device's own. Every kernel reads both.
      weight_layout: how the codes of MXFP4 weights of `linear` lie: "row_major", as checkpoints hold them,
        "shuffled", which a GPU's kernels read faster if they are large, "vnni", which a CPU's kernels for AMX and
        AVX-512 VNNI multiply without turning it (both made while loading), or "auto": large ones are shuffled on a GPU
        and all are vnni on a CPU with AMX, or with AVX-512 VNNI and no products of bf16, see `mla_jax.weight_layout`.
        kv_b_proj stays row-major, and experts but for vnni.
      abstract: shapes only; no weight is read, nor need any be there.
      progress: a bar on a terminal's standard error.

    Returns:
      (model, config); `config.dtype` is the compute dtype.

    Raises:
      CheckpointError, ConfigError, UnsupportedModelError: one sentence; missing, unknown and misshapen
        tensors are listed together.
    """
    asked = compute_dtype(dtype)
    check_kernels(kernels)
    check_absorb_weights(absorb_weights)
    codes = resolve_fp8_format(fp8_format)
    source = locate(path_or_id, revision)
    config = read_config(source.folder, asked)
    layout = resolve_weight_layout(weight_layout, config.dtype)
    if abstract:
        quantization = parse_quantization(config.quantization)
        table = parameter_table(config)
        if quantization is not None:
            table = with_storage(table, lambda info: expected_storage(info, quantization))
        params = map_table(lambda info: _abstract(info, config, absorb_weights, codes, layout), table)
        rope = RopeTable.abstract(config.rope, config.max_position_embeddings)
        return MLAForCausalLM(config, params, rope, kernels=kernels), config
    return read_model(source, config, kernels, absorb_weights, codes, layout, progress=progress), config


def compute_dtype(asked: Any) -> str:
    """The name of a compute dtype that a caller asks for: one of `COMPUTE_DTYPES`. Raises `ConfigError`."""
    name = dtype_name(asked)
    if name not in COMPUTE_DTYPES:
        raise ConfigError(f"dtype: expected one of {', '.join(COMPUTE_DTYPES)}, got {shown(asked)}")
    return name


def check_kernels(kernels: Any) -> None:
    """Raises `KernelUnavailableError` for an unknown choice, or where the environment forbids the choice."""
    if not isinstance(kernels, str) or kernels not in KERNELS:
        raise KernelUnavailableError(f"kernels: expected one of {', '.join(KERNELS)}, got {shown(kernels)}")
    if kernels != "reference":
        check_environment()


def read_config(folder: Path, dtype: str) -> ModelConfig:
    """The configuration of a checkpoint that can be run, with its compute dtype; no weight is looked at."""
    stored = ModelConfig.from_file(folder / "config.json")
    parse_quantization(stored.quantization)
    if dtype == "auto":
        dtype = "float32" if stored.dtype == "float16" else stored.dtype
    return replace(stored, dtype=dtype)


def read_model(
    source: Source,
    config: ModelConfig,
    kernels: Kernels,
    absorb_weights: AbsorbWeights = "auto",
    fp8_format: Fp8Format = "auto",
    weight_layout: WeightLayout = "auto",
    *,
    progress: bool = True,
) -> MLAForCausalLM:
    """The model that `config` (of `read_config`) describes, with the checkpoint's weights."""
    codes = resolve_fp8_format(fp8_format)
    layout = resolve_weight_layout(weight_layout, config.dtype)
    params = _read_parameters(source.with_weights(), config, absorb_weights, codes, layout, progress)
    table = RopeTable.from_config(config.rope, config.max_position_embeddings)
    return MLAForCausalLM(config, params, table, kernels=kernels)


def _read_parameters(
    folder: Path,
    config: ModelConfig,
    absorb_weights: AbsorbWeights,
    fp8_format: Literal["e4m3fn", "e4m3fnuz"],
    layout: WeightLayout,
    progress: bool,
) -> dict[str, object]:
    is_info = lambda node: isinstance(node, ParamInfo)  # noqa: E731
    infos, structure = jax.tree.flatten(parameter_table(config), is_leaf=is_info)
    with TensorIndex(folder) as index:
        planned = plan(infos, config.dtype, index, parse_quantization(config.quantization))
        arrays = stream(
            index,
            [target for one in planned for target in one.targets],
            ignore=lambda name: ignored_because(name, config),
            progress=progress,
        )
        params = []
        for one in planned:
            param = one.assemble(arrays)
            if one.info.absorbed:
                param = absorbed_weight(param, absorb_weights, config.dtype)
            params.append(in_weight_layout(in_fp8_format(param, fp8_format), one.info, layout))
        return jax.tree.unflatten(structure, params)


def _abstract(
    info: ParamInfo, config: ModelConfig, absorb_weights: AbsorbWeights, fp8_format: Any, layout: WeightLayout
) -> Any:
    """A parameter's description, after the same steps as its data."""
    described = abstract_parameter(info, config.dtype)

    def held(weight: Any) -> Any:
        if info.absorbed:
            weight = absorbed_weight(weight, absorb_weights, config.dtype)
        return in_weight_layout(in_fp8_format(weight, fp8_format), info, layout)

    return jax.eval_shape(held, described)


def ignored_because(name: str, config: ModelConfig) -> str | None:
    """Why a checkpoint tensor that the model has no parameter for may be there, or None if it may not."""
    if not name.startswith(config.tensor_prefix):
        return "not part of the language model"
    own = name[len(config.tensor_prefix) :]
    if own.endswith(_ACTIVATION_SCALES):
        return "scales of activations or of a cache: only weights are quantised here"
    if own.endswith(".weight_shape"):
        return "repeats the shape of a packed weight"
    if own.endswith(".rotary_emb.inv_freq"):
        return "RoPE frequencies are computed from the config"
    if config.index_topk is not None and ".self_attn.indexer." in own:
        return "attention is dense up to index_topk tokens"
    if config.tie_word_embeddings and own == "lm_head.weight":
        return "the output head is tied to the embedding"
    parts = own.split(".")
    if parts[:2] == ["model", "layers"] and len(parts) > 3 and _LAYER.fullmatch(parts[2]):
        layer = int(parts[2])
        extra = config.num_nextn_predict_layers
        if config.num_hidden_layers <= layer < config.num_hidden_layers + extra:
            return "multi-token-prediction layer"
    return None
