"""What a checkpoint's quantization_config says, and how each of its weights is really stored.

The tensors decide: one checkpoint may hold attention in bfloat16, experts in MXFP4 and projections in FP8,
whatever its list of exclusions says. The configuration gives what tensors cannot show (block sizes of FP8)
and, for a model without weights, which weights would be quantised.
"""

import fnmatch
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from custom_calls.element_formats import MXFP4_GROUP
from mla_jax.checkpoints.index import TensorIndex
from mla_jax.errors import CheckpointError, UnsupportedModelError, shown
from mla_jax.parameters import ParamInfo
from mla_jax.quant import FP8_BLOCK, MXFP4, Storage

METHODS = ("fp8", "quark", "compressed-tensors", "mxfp4")

SCALE_NAMES = ("weight_scale_inv", "weight_scale", "scale")
"""Names of a module's scales: DeepSeek's (a multiplier, in spite of its name), Quark's, DeepSeek-V4's."""

E8M0_DTYPES = ("U8", "F8_E8M0")
FLOAT_SCALES = ("F32", "BF16", "F16")

_LINEAR_CLASS = "Linear"
_MOST_QUANTIFIERS = 4


@dataclass(frozen=True)
class Quantization:
    """The parts of a quantization_config that matter here.

    Attributes:
      method: quant_method.
      storage: how weights are stored that are neither excluded nor named by `layers`; None: plain.
      block: rows and columns of an FP8 block.
      excluded: module names, globs ("*lm_head") or regular expressions ("re:.*self_attn.*").
      layers: patterns of modules that are stored otherwise, each with its storage, or with Quark's settings
        for its weight. These are read when a module asks for them: they may be about parts that are not run here.
    """

    method: str
    storage: Storage | None
    block: tuple[int, int] = FP8_BLOCK
    excluded: tuple[str, ...] = ()
    layers: tuple[tuple[str, Any], ...] = ()

    def excludes(self, module: str) -> bool:
        """Whether a module (a tensor name without ".weight") is on the list."""
        return any(_matches(pattern, module) for pattern in self.excluded)

    def expected(self, info: ParamInfo) -> Storage | None:
        """What the configuration promises for a parameter; for models without weights."""
        modules = {source.name.removesuffix(".weight") for source in info.sources}
        # No published checkpoint quantises the output head, though DeepSeek's have no list that says so.
        plain = any(module.endswith("lm_head") or self.excludes(module) for module in modules)
        if plain:
            return None
        for pattern, weight in self.layers:
            if any(_matches(pattern, module) for module in modules):
                if isinstance(weight, Storage):
                    return weight
                where = f"quantization_config.layer_quant_config.{shown(pattern)}.weight"
                return _quark_storage(where, weight)
        return self.storage


def parse_quantization(text: str | None) -> Quantization | None:
    """Reads a quantization_config.

    Args:
      text: JSON, as `ModelConfig.quantization` holds it, or None.

    Raises:
      UnsupportedModelError: another method, element format, group or block than can be read here.
    """
    if text is None:
        return None
    settings = json.loads(text)
    method = settings.get("quant_method")
    if method not in METHODS:
        raise UnsupportedModelError(
            f"quantization_config.quant_method: expected one of {', '.join(METHODS)}, got {shown(method)}"
        )
    excluded = _names(settings, "exclude", "ignore", "ignored_layers", "modules_to_not_convert")
    if method == "fp8":
        return _fp8(settings, excluded)
    if method == "quark":
        return _quark(settings, excluded)
    if method == "mxfp4":
        return Quantization(method, MXFP4, excluded=excluded)
    return _compressed_tensors(settings, excluded)


def _fp8(settings: Mapping[str, Any], excluded: tuple[str, ...]) -> Quantization:
    fmt = settings.get("fmt", "e4m3")
    if fmt != "e4m3":
        raise UnsupportedModelError(f"quantization_config.fmt: expected 'e4m3', got {shown(fmt)}")
    size = settings.get("weight_block_size")
    if size is None:
        return Quantization("fp8", Storage("fp8_tensor", (0, 0)), excluded=excluded)
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n >= 1 for n in size)):
        raise UnsupportedModelError(
            f"quantization_config.weight_block_size: expected two positive integers, got {shown(size)}"
        )
    block = (size[0], size[1])
    return Quantization("fp8", Storage("fp8_block", block), block, excluded)


def _quark(settings: Mapping[str, Any], excluded: tuple[str, ...]) -> Quantization:
    weight = _dig(settings, "global_quant_config", "weight")
    storage = _quark_storage("quantization_config.global_quant_config.weight", weight)
    layers = settings.get("layer_quant_config") or {}
    if not isinstance(layers, dict):
        raise UnsupportedModelError(
            f"quantization_config.layer_quant_config: expected an object, got {shown(layers)}"
        )
    own = tuple((pattern, _dig(layer, "weight")) for pattern, layer in layers.items())
    return Quantization("quark", storage, excluded=excluded, layers=own)


def _quark_storage(where: str, weight: Any) -> Storage:
    if isinstance(weight, list) and len(weight) == 1:
        weight = weight[0]
    if not isinstance(weight, dict):
        raise UnsupportedModelError(f"{where}: expected an object, got {shown(weight)}")
    dtype, scheme = weight.get("dtype"), weight.get("qscheme")
    if dtype == "fp4":
        _expect(where, "qscheme", scheme, ("per_group",))
        _expect(where, "group_size", weight.get("group_size"), (MXFP4_GROUP,))
        _expect(where, "scale_format", weight.get("scale_format", "e8m0"), ("e8m0",))
        return MXFP4
    _expect(where, "dtype", dtype, ("fp4", "fp8_e4m3"))
    _expect(where, "qscheme", scheme, ("per_channel", "per_tensor"))
    return Storage("fp8_channel", (1, 0)) if scheme == "per_channel" else Storage("fp8_tensor", (0, 0))


def _compressed_tensors(settings: Mapping[str, Any], excluded: tuple[str, ...]) -> Quantization:
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise UnsupportedModelError(
            f"quantization_config.config_groups: expected an object, got {shown(groups)}"
        )
    kinds = {
        name: _compressed_group(f"quantization_config.config_groups.{name}", group)
        for name, group in groups.items()
    }
    # A group is for a class of modules, which all linear layers are, or for modules by name.
    named = [
        (target, kinds[name][0])
        for name, group in groups.items()
        for target in _names(group, "targets")
        if target != _LINEAR_CLASS
    ]
    everywhere = [
        kinds[name][0]
        for name, group in groups.items()
        if _LINEAR_CLASS in (_names(group, "targets") or (_LINEAR_CLASS,))
    ]
    storage = everywhere[0] if everywhere else None
    blocks = [block for kind, block in kinds.values() if kind.container == "fp8_block"]
    return Quantization(
        "compressed-tensors", storage, blocks[0] if blocks else FP8_BLOCK, excluded, tuple(named)
    )


def _compressed_group(where: str, group: Any) -> tuple[Storage, tuple[int, int]]:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise UnsupportedModelError(f"{where}.weights: expected an object, got {shown(weights)}")
    where = f"{where}.weights"
    bits, kind, strategy = weights.get("num_bits"), weights.get("type"), weights.get("strategy")
    if kind == "int":
        _expect(where, "num_bits", bits, (4,))
        _expect(where, "strategy", strategy, ("group",))
        _expect(where, "symmetric", weights.get("symmetric", True), (True,))
        size = weights.get("group_size")
        if type(size) is not int or size < 2 or size % 2:
            raise UnsupportedModelError(
                f"{where}.group_size: expected a positive even number, got {shown(size)}"
            )
        return Storage("int4_group", (1, size), "bfloat16"), FP8_BLOCK
    _expect(where, "type", kind, ("int", "float"))
    if bits == 4:
        _expect(where, "group_size", weights.get("group_size"), (MXFP4_GROUP,))
        return MXFP4, FP8_BLOCK
    _expect(where, "num_bits", bits, (4, 8))
    if strategy == "block":
        size = weights.get("block_structure")
        if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n >= 1 for n in size)):
            raise UnsupportedModelError(
                f"{where}.block_structure: expected two positive integers, got {shown(size)}"
            )
        return Storage("fp8_block", (size[0], size[1])), (size[0], size[1])
    _expect(where, "strategy", strategy, ("channel", "tensor", "block"))
    return (
        Storage("fp8_channel", (1, 0)) if strategy == "channel" else Storage("fp8_tensor", (0, 0))
    ), FP8_BLOCK


@dataclass(frozen=True)
class Stored:
    """How one checkpoint module holds its weight: names, the storage, and the scales' stored shape."""

    data: str
    scale: str
    storage: Storage


def stored_weight(
    name: str, shape: tuple[int, ...], index: TensorIndex, quantization: Quantization | None
) -> Stored | None:
    """How the weight `name` (".weight" at its end) of values `shape` is stored, by its tensors.

    Returns:
      None for a plain (or missing) tensor.

    Raises:
      CheckpointError: the tensors of a quantised weight contradict each other.
    """
    module = name.removesuffix(".weight")
    packed = f"{module}.weight_packed"
    if packed in index:
        return _packed(module, packed, shape, index)
    if name not in index or index.info(name).dtype not in ("F8_E4M3", "U8", "I8"):
        return None
    info = index.info(name)
    scale = next((f"{module}.{end}" for end in SCALE_NAMES if f"{module}.{end}" in index), None)
    if scale is None:
        raise CheckpointError(
            f"{index.folder}: tensor {shown(name)}: is {info.dtype} but has no scales "
            f"({', '.join(SCALE_NAMES)})"
        )
    found = index.info(scale)
    if info.dtype in ("U8", "I8"):
        _require_scale(index, scale, (shape[0], -(-shape[1] // MXFP4_GROUP)), E8M0_DTYPES)
        return Stored(name, scale, MXFP4)
    if found.shape in ((), (1,)):
        kind = Storage("fp8_tensor", (0, 0))
    elif found.shape in ((shape[0],), (shape[0], 1)) and shape[1] > 1:
        kind = Storage("fp8_channel", (1, 0))
    else:
        block = FP8_BLOCK if quantization is None else quantization.block
        grid = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
        if found.shape != grid:
            raise CheckpointError(
                f"{index.folder}: tensor {shown(scale)}: expected shape {grid} for {shape} in blocks of {block}, "
                f"or one scale a row, or one, got {found.shape}"
            )
        kind = Storage("fp8_block", block)
    _require_scale(index, scale, found.shape, (*FLOAT_SCALES, *E8M0_DTYPES))
    return Stored(name, scale, kind)


def _packed(module: str, packed: str, shape: tuple[int, ...], index: TensorIndex) -> Stored:
    scale, kind = f"{module}.weight_scale", index.info(packed).dtype
    if scale not in index:
        raise CheckpointError(f"{index.folder}: tensor {shown(packed)}: has no {shown(scale)}")
    found = index.info(scale)
    if kind == "U8":
        _require_scale(index, scale, (shape[0], -(-shape[1] // MXFP4_GROUP)), E8M0_DTYPES)
        return Stored(packed, scale, MXFP4)
    groups = found.shape[1] if len(found.shape) == 2 and found.shape[0] == shape[0] else 0
    if groups == 0 or shape[1] % groups or shape[1] // groups % 2:
        raise CheckpointError(
            f"{index.folder}: tensor {shown(scale)}: expected one scale a row and even group of {shape}, got "
            f"{found.shape}"
        )
    _require_scale(index, scale, found.shape, FLOAT_SCALES)
    dtype = "bfloat16" if found.dtype == "BF16" else "float32"
    return Stored(packed, scale, Storage("int4_group", (1, shape[1] // groups), dtype))


def _require_scale(index: TensorIndex, name: str, shape: tuple[int, ...], dtypes: Sequence[str]) -> None:
    info = index.info(name)
    if info.dtype not in dtypes or info.shape != shape:
        raise CheckpointError(
            f"{index.folder}: tensor {shown(name)}: expected {' or '.join(dtypes)} of shape {shape}, "
            f"got {info.dtype} of shape {info.shape}"
        )


def _matches(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        # The pattern comes with the checkpoint: one that could run for years is not started.
        quantifiers = re.findall(r"(?<!\\)[*+?{]", pattern[3:])
        if len(quantifiers) > _MOST_QUANTIFIERS or re.search(r"\)[*+?{]", pattern[3:]):
            raise UnsupportedModelError(
                f"quantization_config: {shown(pattern)}: expected at most {_MOST_QUANTIFIERS} repetitions and none "
                "of a group"
            )
        try:
            return re.match(pattern[3:], module) is not None
        except re.error as error:
            raise UnsupportedModelError(
                f"quantization_config: {shown(pattern)} is no regular expression: {error}"
            ) from error
    return module == pattern or fnmatch.fnmatchcase(module, pattern)


def _names(settings: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
    for key in keys:
        found = settings.get(key)
        if found is None:
            continue
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise UnsupportedModelError(
                f"quantization_config.{key}: expected a list of names, got {shown(found)}"
            )
        return tuple(found)
    return ()


def _dig(settings: Any, *keys: str) -> Any:
    for key in keys:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


def _expect(where: str, key: str, got: Any, allowed: Sequence[Any]) -> None:
    if got not in allowed or type(got) not in {type(value) for value in allowed}:
        wanted = " or ".join(map(repr, allowed))
        raise UnsupportedModelError(f"{where}.{key}: expected {wanted}, got {shown(got)}")
