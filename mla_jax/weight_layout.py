"""How the codes of MXFP4 weights lie in memory: the load step from the checkpoint's rows to what kernels read.

GPUs read a shuffled weight a tile at a time; matrix units of CPUs, and their products of bytes, multiply a vnni one as
it lies (`QuantizedTensor.data_layout`); every other kernel reads rows. Of the ops, `linear` takes weights in tiles, for
activations as they are, and `expert_mlp` vnni ones; kv_b_proj stays as it is.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import jax
import numpy as np

from custom_calls.element_formats import MXFP4_GROUP
from custom_calls.expert_mlp import WHOLE_ROWS
from custom_calls.linear_vnni import LINEAR_VNNI
from custom_calls.quantized_tensor import (
    NO_SCALE,
    TILE_ROWS,
    VNNI_SWAPS,
    QuantizedTensor,
    check_weight,
    shuffle,
    to_vnni,
)
from custom_calls.registry import library
from mla_jax.checkpoints.streaming import aligned_array
from mla_jax.errors import ConfigError, shown
from mla_jax.parameters import ParamInfo

WeightLayout = Literal["auto", "row_major", "shuffled", "vnni"]
WEIGHT_LAYOUTS: tuple[WeightLayout, ...] = get_args(WeightLayout)

LEAST_SHUFFLED = 1 << 26
"""Values from which "auto" shuffles a weight. On an H200 those of 2**27 gain a quarter to two fifths of a product's
time, while a whole DeepSeek-V2-Lite, whose weights have up to 2**24.5, gains nothing (docs/h200.md)."""

_VNNI_LEVELS = ("avx512vnni", "amx")  # With products of bf16, but not on matrix units, rows are faster.
_CHUNK_BYTES = 1 << 20  # What a thread rearranges at a time, in its core's cache.

# Compiled, so that one new array is made and not one an operation.
_shuffled = jax.jit(shuffle)
_vnni = jax.jit(to_vnni)


def resolve_weight_layout(choice: Any, dtype: str, device: Any = None) -> WeightLayout:
    """`choice`, or for "auto" what it means where that is one layout for every weight.

    Args:
      choice: one of `WEIGHT_LAYOUTS`; "auto" shuffles weights of at least `LEAST_SHUFFLED` values on a GPU that
        computes in bfloat16, which its kernels multiply; a CPU that computes in it and whose library runs code for
        AMX, or for AVX-512 VNNI, gets "vnni", everything else "row_major".
      dtype: compute dtype.
      device: a `jax.Device`; default: the first one.

    Raises:
      ConfigError: another choice.
    """
    if not isinstance(choice, str) or choice not in WEIGHT_LAYOUTS:
        raise ConfigError(f"weight_layout: expected one of {', '.join(WEIGHT_LAYOUTS)}, got {shown(choice)}")
    if choice != "auto":
        return cast(WeightLayout, choice)
    device = jax.devices()[0] if device is None else device
    if dtype == "bfloat16" and device.platform == "gpu":
        return "auto"
    return "vnni" if dtype == "bfloat16" and device.platform == "cpu" and _has_vnni() else "row_major"


def _has_vnni() -> bool:
    """Whether the CPU's library has a kernel for vnni weights, and multiplies them as they lie."""
    found = library("cpu")
    return found.abi.get("isa") in _VNNI_LEVELS and found.targets.issuperset(LINEAR_VNNI.targets)


def in_weight_layout(weight: Any, info: ParamInfo, layout: WeightLayout) -> Any:
    """A parameter as it was loaded, or if it is an MXFP4 weight that `layout` wants otherwise: so.

    Those are weights of `linear`, and for "vnni" also stacks of experts of whole tiles.
    """
    is_mxfp4 = isinstance(weight, QuantizedTensor) and weight.container == "mxfp4"
    if layout == "row_major" or not is_mxfp4 or info.absorbed:
        return weight
    if weight.ndim != 2 and (layout != "vnni" or weight.shape[-2] % WHOLE_ROWS):
        return weight
    if layout == "auto" and math.prod(weight.shape) < LEAST_SHUFFLED:
        return weight
    if layout != "vnni":
        return _shuffled(weight)
    if weight.data_layout != "row_major" or isinstance(weight.data, jax.core.Tracer):
        return _vnni(weight)
    (device, *others) = weight.data.devices()
    return _vnni(weight) if others or device.platform != "cpu" else _vnni_on_host(weight, device)


def _vnni_on_host(weight: QuantizedTensor, device: Any) -> QuantizedTensor:
    """`to_vnni` in a CPU's memory, of a matrix or of a stack of matrices in whole tiles.

    Nothing is compiled, which would take longer than most weights do, and the result is in memory as that of other
    weights is, which the system backs by large pages where it can.
    """
    check_weight("to_vnni", "tensor", weight)
    *lead, rows, columns = weight.shape
    tiles = -(-rows // TILE_ROWS) * math.prod(lead)
    every = math.prod(lead) * rows
    words = np.asarray(weight.data).reshape(every, columns // 2).view(np.uint32)
    scales = np.asarray(weight.scale).reshape(every, columns // MXFP4_GROUP)
    data = aligned_array((tiles, words.shape[1], TILE_ROWS), np.dtype(np.uint32))
    scale = aligned_array((tiles, scales.shape[1], TILE_ROWS), np.dtype(np.uint8))
    step = max(_CHUNK_BYTES // max(TILE_ROWS * columns // 2, 1), 1)

    def fill(first: int) -> None:
        here, taken = slice(first, first + step), slice(TILE_ROWS * first, TILE_ROWS * (first + step))
        _side_by_side(_swapped(words[taken]), data[here], 0)
        _side_by_side(scales[taken], scale[here], NO_SCALE)

    with ThreadPoolExecutor(os.cpu_count()) as workers:
        list(workers.map(fill, range(0, tiles, step)))
    shape = (*lead, -(-rows // TILE_ROWS), scales.shape[1])
    return replace(
        weight,
        data=jax.device_put(data.view(np.uint8).reshape(*shape, 4, 4 * TILE_ROWS), device),
        scale=jax.device_put(scale.reshape(*shape, TILE_ROWS), device),
        data_layout="vnni",
        padding_rows=-rows % TILE_ROWS,
    )


def _swapped(words: np.ndarray) -> np.ndarray:
    """The words of the layout, computed with one new array a swap."""
    for mask, distance in VNNI_SWAPS:
        moved = words >> np.uint32(distance)
        moved ^= words
        moved &= np.uint32(mask)
        moved *= np.uint32(1 + (1 << distance))
        moved ^= words
        words = moved
    return words


def _side_by_side(rows: np.ndarray, tiles: np.ndarray, fill: int) -> None:
    """Rows (n, W) into tiles (ceil(n/16), W, 16)."""
    whole, left = divmod(len(rows), TILE_ROWS)
    split = rows[: whole * TILE_ROWS].reshape(whole, TILE_ROWS, rows.shape[1])
    tiles[:whole] = split.swapaxes(1, 2)
    if left:
        tiles[whole] = fill
        tiles[whole, :, :left] = rows[whole * TILE_ROWS :].T
