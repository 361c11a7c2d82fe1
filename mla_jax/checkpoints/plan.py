"""From the parameter table to the arrays that are to be read: one target a plain parameter, two a quantised one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.quantized_tensor import QuantizedTensor
from mla_jax.checkpoints.index import TensorIndex
from mla_jax.checkpoints.quantization import (
    E8M0_DTYPES,
    FLOAT_SCALES,
    Quantization,
    Stored,
    stored_weight,
)
from mla_jax.checkpoints.streaming import Piece, Target
from mla_jax.errors import CheckpointError, shown
from mla_jax.parameters import ParamInfo
from mla_jax.quant import Storage

_DATA_DTYPES = {"mxfp4": ("U8", "I8"), "int4_group": ("I32",)}


@dataclass(frozen=True)
class Planned:
    """A parameter, with the storage that its tensors show, and what has to be read for it."""

    info: ParamInfo
    targets: tuple[Target, ...]

    def assemble(self, arrays: Iterator[np.ndarray]) -> jax.Array | QuantizedTensor:
        """Takes the arrays of `targets` and makes the parameter."""
        taken = [jax.device_put(next(arrays)) for _ in self.targets]
        return taken[0] if self.info.storage is None else self.info.storage.tensor(*taken)


def plan(
    infos: Sequence[ParamInfo], dtype: str, index: TensorIndex, quantization: Quantization | None
) -> list[Planned]:
    """Decides for every parameter, by the tensors that are there, how it is stored.

    Args:
      infos: the parameters.
      dtype: compute dtype, of plain parameters.
      index: the checkpoint.
      quantization: its configuration, or None.

    Raises:
      CheckpointError: parts of one parameter are stored differently; a parameter that has to be plain is
        quantised; tensors contradict each other.
    """
    planned = [_plan_one(info, dtype, index, quantization) for info in infos]
    _check_experts(planned, index)
    return planned


def _check_experts(planned: Sequence[Planned], index: TensorIndex) -> None:
    """`expert_mlp` takes the two weights of a layer's experts quantised both or neither."""
    by_layer: dict[str, ParamInfo] = {}
    for one in planned:
        name = one.info.sources[0].name
        if len(one.info.shape) == 3:
            other = by_layer.setdefault(name.partition(".experts.")[0], one.info)
            if (other.storage is None) != (one.info.storage is None):
                raise CheckpointError(
                    f"{index.folder}: one of {shown(other.sources[0].name)} and {shown(name)} is quantised and the "
                    "other is plain; experts have to be one or the other"
                )


def _plan_one(info: ParamInfo, dtype: str, index: TensorIndex, quantization: Quantization | None) -> Planned:
    plain = Target(
        info.shape,
        jnp.dtype(info.dtype or dtype).name,
        tuple(Piece(source.name, source.index, source.rows) for source in info.sources),
    )
    if len(info.shape) < 2 or not info.sources[0].name.endswith(".weight"):
        return Planned(info, (plain,))
    parts = [
        stored_weight(source.name, info.source_shape(source), index, quantization) for source in info.sources
    ]
    first = parts[0]
    for source, part in zip(info.sources, parts, strict=True):
        if (part and part.storage) != (first and first.storage):
            raise CheckpointError(
                f"{index.folder}: {shown(info.sources[0].name)} is stored as {_named(first)} and "
                f"{shown(source.name)} as {_named(part)}; they are one parameter and have to be alike"
            )
    if first is None:
        return Planned(info, (plain,))
    if not info.quantizable:
        raise CheckpointError(
            f"{index.folder}: tensor {shown(info.sources[0].name)}: is stored as {_named(first)}, but this weight "
            "is only read as plain numbers"
        )
    stored = [part for part in parts if part is not None]
    return _quantized(info, stored, index)


def _quantized(info: ParamInfo, stored: list[Stored], index: TensorIndex) -> Planned:
    found = stored[0].storage
    storage = common_storage(info, found)
    data, scale = [], []
    per_row = storage.container == "fp8_channel"
    for source, part in zip(info.sources, stored, strict=True):
        values = info.source_shape(source)
        _check_declared_shape(part, values, index)
        # Eight nibbles a 32-bit word, lowest first: on a little-endian machine, two a byte.
        packed = (
            (values[0], values[1] // 8) if found.container == "int4_group" else storage.data_shape(values)
        )
        data.append(Piece(part.data, source.index, source.rows, (packed,)))
        rows, repeat = source.rows, 1
        if found.container == "fp8_tensor":
            # One number; a row each where several of them meet in one parameter.
            repeat = values[0] if per_row else 1
        elif found.block[0] > 1:
            if storage.block[0] == 1:
                repeat = found.block[0]
            elif rows is not None:
                rows = (rows[0] // found.block[0], -(-rows[1] // found.block[0]))
        scale.append(Piece(part.scale, source.index, rows, (index.info(part.scale).shape,), repeat))
    dtypes = E8M0_DTYPES if storage.scale_dtype == "uint8" else (*FLOAT_SCALES, *E8M0_DTYPES)
    targets = (
        Target(
            storage.data_shape(info.shape),
            storage.data_dtype,
            tuple(data),
            _DATA_DTYPES.get(storage.container, ("F8_E4M3",)),
            raw=True,
        ),
        Target(
            storage.scale_shape(info.shape),
            storage.scale_dtype,
            tuple(scale),
            dtypes,
            raw=storage.scale_dtype == "uint8",
        ),
    )
    return Planned(replace(info, storage=storage), targets)


def expected_storage(info: ParamInfo, quantization: Quantization) -> Storage | None:
    """What the configuration alone promises for a parameter; the tensors may say otherwise."""
    storage = quantization.expected(info)
    return None if storage is None else common_storage(info, storage)


def common_storage(info: ParamInfo, found: Storage) -> Storage:
    """The storage of the whole parameter where several tensors meet in its rows."""
    ranges = [source.rows for source in info.sources if source.rows is not None]
    if not ranges:
        return found
    if found.container == "fp8_tensor":
        return replace(found, container="fp8_channel", block=(1, 0))
    if any(start % found.block[0] for start, _ in ranges):
        # Blocks that begin inside another's: every row gets its scales written out.
        return replace(found, block=(1, found.block[1]))
    return found


def _check_declared_shape(part: Stored, values: tuple[int, ...], index: TensorIndex) -> None:
    name = part.data.removesuffix("_packed") + "_shape"
    if not part.data.endswith("_packed") or name not in index:
        return
    info = index.info(name)
    if info.dtype not in ("I32", "I64") or info.shape != (2,):
        raise CheckpointError(
            f"{index.folder}: tensor {shown(name)}: expected two I32 or I64, got {info.dtype} of shape {info.shape}"
        )
    declared = tuple(int(n) for n in index.file(name).read(name))
    if declared != values:
        raise CheckpointError(
            f"{index.folder}: tensor {shown(name)}: expected {values} as the configuration says, got {declared}"
        )


def _named(part: Stored | None) -> str:
    return "plain numbers" if part is None else f"{part.storage.container} in blocks of {part.storage.block}"
