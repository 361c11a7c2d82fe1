"""`mla-jax convert`: a checkpoint with its weights in another container, one tensor in memory at a time."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from custom_calls.mxfp4_quantize import mxfp4_quantize
from custom_calls.quantized_tensor import QuantizedTensor, dequantize
from mla_jax.checkpoints.hub import SETTINGS, locate
from mla_jax.checkpoints.index import INDEX_FILE, SINGLE_FILE, TensorIndex
from mla_jax.checkpoints.json_files import read_json_object
from mla_jax.checkpoints.quantization import Quantization, Stored, parse_quantization, stored_weight
from mla_jax.checkpoints.safetensors_writer import LazyTensor, write_safetensors
from mla_jax.config import ModelConfig
from mla_jax.errors import CheckpointError
from mla_jax.numerics import Numerics
from mla_jax.parameters import ParamInfo, parameter_table
from mla_jax.progress import ByteProgress
from mla_jax.quant import FP8_BLOCK, fp8_block

WEIGHTS = ("mxfp4", "fp8", "bf16")

BF16 = np.dtype(ml_dtypes.bfloat16)

# What AMD's own recipe leaves plain: attention, output head, router.
_MXFP4_EXCLUDED = ("lm_head", "*self_attn*", "*mlp.gate")


def convert(
    path_or_id: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    weights: str,
    revision: str | None = None,
    progress: bool = True,
) -> Numerics:
    """Writes a copy of a checkpoint whose linear weights are stored as `weights`.

    Args:
      path_or_id: folder or hub id; plain or in any container that `load` reads.
      out: a folder that does not exist or is empty.
      weights: "mxfp4": AMD Quark's layout (uint8 codes and e8m0 scales; attention, router and output head stay
        plain, as in AMD's releases); "fp8": DeepSeek's (e4m3fn in blocks of 128 x 128 with float32 scales;
        router and output head stay plain); "bf16": everything plain.
      revision: of a hub id.
      progress: a bar on a terminal's standard error.

    Returns:
      The errors that quantising made, tensor by tensor, and the price of each `absorb_weights` for the result.

    Raises:
      CheckpointError, ConfigError: one sentence; nothing under `out` looks like a whole checkpoint then, because
        config.json is written last.
    """
    if weights not in WEIGHTS:
        raise CheckpointError(f"weights: expected one of {', '.join(WEIGHTS)}, got {weights!r}")
    source = locate(path_or_id, revision)
    config = ModelConfig.from_file(source.folder / "config.json")
    target = _new_folder(Path(out))
    folder = source.with_weights()
    numerics = Numerics()
    with TensorIndex(folder) as index:
        job = _Job(index, config, parse_quantization(config.quantization), weights, numerics)
        _write_shards(job, target, progress)
    _copy_settings(folder, target)
    settings = read_json_object(folder / "config.json", CheckpointError)
    _write_json(target / "config.json", _with_quantization(settings, job))
    return numerics


@dataclass
class _Job:
    index: TensorIndex
    config: ModelConfig
    quantization: Quantization | None
    weights: str
    numerics: Numerics
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        infos = jax.tree.leaves(
            parameter_table(self.config), is_leaf=lambda node: isinstance(node, ParamInfo)
        )
        self.linear = {
            source.name
            for info in infos
            if info.quantizable
            for source in info.sources
            if not source.name.endswith("lm_head.weight")
        }
        self.absorbed = {source.name for info in infos if info.absorbed for source in info.sources}
        config = self.config
        if self.weights == "mxfp4" and (config.hidden_size % 32 or (config.moe_intermediate_size or 0) % 32):
            # The experts of a layer are quantised together or not at all.
            experts = {name for name in self.linear if ".experts." in name}
            self.skipped += ["*.experts.*"] if experts else []
            self.linear -= experts

    def outputs(self, file: str) -> Iterator[tuple[str, np.ndarray | LazyTensor]]:
        """What becomes of the tensors of one shard, by name."""
        names = [name for name in self.index.names() if self.index.file(name).path.name == file]
        for name in names:
            weight = _weight_of(name, self.index)
            if weight is None:
                yield name, _lazy(self.index, name)
            elif weight.endswith(".weight") and (name == weight or name.endswith(".weight_packed")):
                yield from self._weight(weight)

    def _weight(self, name: str) -> Iterator[tuple[str, LazyTensor]]:
        shape = _shape_of(name, self.index)
        stored = stored_weight(name, shape, self.index, self.quantization)
        module = name.removesuffix(".weight")
        wanted = self.weights != "bf16" and name in self.linear
        if self.weights == "mxfp4" and (".self_attn." in name or shape[-1] % 32):
            if wanted and ".self_attn." not in name:
                self.skipped.append(module)
            wanted = False
        if not wanted:
            if stored is None and name not in self.absorbed:
                yield name, _lazy(self.index, name)
                return

            def plain() -> np.ndarray:
                values = self._values(name, shape, stored)
                kind = BF16 if stored is not None else self.index.info(name).numpy_dtype
                array = values.astype(kind)
                if name in self.absorbed:
                    self.numerics.absorb(name, values, jnp.asarray(array))
                return array

            yield name, LazyTensor(shape, BF16 if stored else self.index.info(name).numpy_dtype, plain)
            return

        # Made once for the codes and once for the scales: the file's order keeps them far apart, and holding
        # one of them meanwhile would hold it for every tensor of the shard.
        def codes() -> np.ndarray:
            values = self._values(name, shape, stored)
            tensor = _quantize(values, self.weights)
            self.numerics.add(name, values, np.asarray(dequantize(tensor)))
            if name in self.absorbed:
                self.numerics.absorb(name, values, tensor)
            return np.asarray(tensor.data)

        def scales() -> np.ndarray:
            return np.asarray(_quantize(self._values(name, shape, stored), self.weights).scale)

        if self.weights == "mxfp4":
            yield name, LazyTensor((shape[0], shape[1] // 2), np.dtype(np.uint8), codes)
            yield f"{module}.weight_scale", LazyTensor((shape[0], shape[1] // 32), np.dtype(np.uint8), scales)
        else:
            grid = (-(-shape[0] // FP8_BLOCK[0]), -(-shape[1] // FP8_BLOCK[1]))
            yield name, LazyTensor(shape, np.dtype(ml_dtypes.float8_e4m3fn), codes)
            yield f"{module}.weight_scale_inv", LazyTensor(grid, np.dtype(np.float32), scales)

    def _values(self, name: str, shape: tuple[int, ...], stored: Stored | None) -> np.ndarray:
        if stored is None:
            return self.index.file(name).read(name).astype(np.float32)
        storage = stored.storage
        raw = np.empty(self.index.info(stored.data).nbytes, np.uint8)
        self.index.file(stored.data).read_into(stored.data, raw)
        data = raw.view(jnp.dtype(storage.data_dtype)).reshape(storage.data_shape(shape))
        scale = self.index.file(stored.scale).read(stored.scale)
        if storage.scale_dtype == "uint8":
            scale = scale.view(np.uint8)
        elif scale.dtype == np.uint8:
            scale = scale.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
        else:
            scale = scale.astype(jnp.dtype(storage.scale_dtype))
        scale = scale.reshape(storage.scale_shape(shape))
        return np.asarray(dequantize(storage.tensor(jnp.asarray(data), jnp.asarray(scale))))


def _quantize(values: np.ndarray, weights: str) -> QuantizedTensor:
    array = jnp.asarray(values)
    return mxfp4_quantize(array, rounding="even") if weights == "mxfp4" else fp8_block(array)


def _weight_of(name: str, index: TensorIndex) -> str | None:
    """The weight that a tensor is a part of (itself, its codes or its scales), or None for another tensor."""
    module, _, last = name.rpartition(".")
    if last in ("weight", "weight_packed"):
        return f"{module}.weight" if len(_shape_of(f"{module}.weight", index)) == 2 else None
    if last in ("weight_scale_inv", "weight_scale", "weight_shape", "scale"):
        has_weight = f"{module}.weight" in index or f"{module}.weight_packed" in index
        return f"{module}.weight" if has_weight else None
    return None


def _shape_of(name: str, index: TensorIndex) -> tuple[int, ...]:
    """Of a weight's values."""
    packed = name + "_packed"
    info = index.info(packed if packed in index else name)
    per_element = {"I32": 8, "U8": 2, "I8": 2}.get(info.dtype, 1)
    return (*info.shape[:-1], info.shape[-1] * per_element) if info.shape else info.shape


def _lazy(index: TensorIndex, name: str) -> LazyTensor:
    info = index.info(name)
    if info.numpy_dtype is None:
        raise CheckpointError(f"{index.folder}: tensor {name}: dtype {info.dtype} cannot be copied")
    return LazyTensor(info.shape, info.numpy_dtype, lambda: index.file(name).read(name))


def _write_shards(job: _Job, target: Path, progress: bool) -> None:
    files = sorted({job.index.file(name).path.name for name in job.index.names()})
    total = sum(job.index.info(name).nbytes for name in job.index.names())
    where: dict[str, str] = {}
    size = 0
    with ByteProgress("converting", total, enabled=progress) as bar:
        for number, file in enumerate(files):
            name = (
                SINGLE_FILE if len(files) == 1 else f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
            )
            outputs = dict(job.outputs(file))
            size += sum(_nbytes(tensor) for tensor in outputs.values())
            write_safetensors(target / name, outputs, {"format": "pt"})
            where.update(dict.fromkeys(outputs, name))
            bar.advance(
                sum(
                    job.index.info(t).nbytes for t in job.index.names() if job.index.file(t).path.name == file
                )
            )
    if len(files) > 1:
        _write_json(target / INDEX_FILE, {"metadata": {"total_size": size}, "weight_map": where})


def _nbytes(tensor: np.ndarray | LazyTensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize


def _with_quantization(settings: dict[str, Any], job: _Job) -> dict[str, Any]:
    settings = dict(settings)
    text = settings.get("text_config")
    if isinstance(text, dict):
        settings["text_config"] = {
            key: value
            for key, value in text.items()
            if key not in ("quantization_config", "compression_config")
        }
    for key in ("quantization_config", "compression_config"):
        settings.pop(key, None)
    if job.weights == "fp8":
        settings["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": list(FP8_BLOCK),
        }
    elif job.weights == "mxfp4":
        settings["quantization_config"] = _quark_config(job)
    return settings


def _quark_config(job: _Job) -> dict[str, Any]:
    """As AMD Quark 0.11 exports it (checkpoints' own quantization_config)."""
    config, prefix = job.config, job.config.tensor_prefix
    extra = range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)
    excluded = [*_MXFP4_EXCLUDED, *(f"{prefix}model.layers.{layer}.*" for layer in extra), *job.skipped]
    if prefix:
        excluded += ["*vision_tower*", "*mm_projector*"]
    tensor = {
        "ch_axis": -1,
        "dtype": "fp4",
        "group_size": 32,
        "is_dynamic": False,
        "observer_cls": "PerBlockMXObserver",
        "qscheme": "per_group",
        "round_method": "half_even",
        "scale_calculation_mode": "even",
        "scale_format": "e8m0",
        "scale_type": "float",
        "symmetric": None,
    }
    return {
        "exclude": excluded,
        "export": {"kv_cache_group": [], "pack_method": "reorder", "weight_format": "real_quantized"},
        "global_quant_config": {
            "bias": None,
            "input_tensors": {**tensor, "is_dynamic": True},
            "output_tensors": None,
            "weight": tensor,
        },
        "layer_quant_config": {},
        "layer_type_quant_config": {},
        "quant_method": "quark",
        "quant_mode": "eager_mode",
    }


def _new_folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise CheckpointError(f"{out}: expected a new or empty folder")
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be made: {error}") from error
    return out


def _copy_settings(folder: Path, target: Path) -> None:
    for pattern in SETTINGS:
        for file in folder.glob(pattern):
            if file.name not in ("config.json", INDEX_FILE):
                shutil.copyfile(file, target / file.name)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
