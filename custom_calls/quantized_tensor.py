"""`QuantizedTensor`: codes, scales and everything that is needed to read them, as one pytree."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.checks import check_choice, check_dtype
from custom_calls.element_formats import (
    MXFP4_GROUP,
    ROUNDINGS,
    Rounding,
    decode_mxfp4,
    unpack_nibbles,
)
from custom_calls.errors import LayoutError, ShapeError

Container = Literal["mxfp4", "fp8_block", "fp8_channel", "fp8_tensor", "int4_group"]
CONTAINERS: tuple[Container, ...] = get_args(Container)

CODES = {"e2m1": 0, "e4m3": 1, "int4": 2, "e4m3fnuz": 3, "e2m1_vnni": 4}
"""The native kernels' attribute `code`: the element format of the data, and e2m1's layout."""

ScaleLayout = Literal["row_major", "column_major"]
DataLayout = Literal["row_major", "shuffled", "vnni"]
Packing = Literal["low_nibble_first", "none"]

_SCALE_DTYPES: dict[str, tuple[str, ...]] = {
    "mxfp4": ("uint8",),
    "fp8_block": ("float32",),
    "fp8_channel": ("float32",),
    "fp8_tensor": ("float32",),
    "int4_group": ("float32", "bfloat16"),
}

TILE_ROWS = 16
"""Rows of a tile of the layouts in tiles: what a matrix instruction takes."""

CHUNK_BYTES = 16
"""Bytes of a row that stay together in the shuffled layout: what a lane loads at once."""

WORD_CODES = 8
"""Codes of a row that stay together in the vnni layout, as a 32-bit word."""

VNNI_SWAPS = ((0x00F000F0, 4), (0x0000FF00, 8))
"""Mask and distance, in bits, of the two swaps that turn words of codes in order into words of the vnni layout; they
undo themselves, in the opposite order."""

NO_SCALE = 127
"""e8m0's 1: what pads scales."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["data", "scale"],
    meta_fields=["container", "block", "rounding", "scale_layout", "data_layout", "padding_rows"],
)
@dataclass(frozen=True)
class QuantizedTensor:
    """A matrix (N, K), or a stack (..., N, K) of them, in the checkpoint's own bytes or those in another order.

    | container   | data                            | scale, row_major                   | block    |
    |-------------|---------------------------------|------------------------------------|----------|
    | mxfp4       | uint8 (..., N, K/2), e2m1       | uint8 (..., N, ceil(K/32)), e8m0   | (1, 32)  |
    | fp8_block   | float8_e4m3fn (..., N, K)       | float32 (..., ceil(N/b), ceil(K/c))| (b, c)   |
    | fp8_channel | float8_e4m3fn (..., N, K)       | float32 (..., N)                   | (1, 0)   |
    | fp8_tensor  | float8_e4m3fn (..., N, K)       | float32 (...)                      | (0, 0)   |
    | int4_group  | uint8 (..., N, K/2), value + 8  | float32 or bfloat16 (..., N, K/g)  | (1, g)   |

    FP8 data are OCP e4m3fn, or e4m3fnuz after `to_fnuz`: the dtype says which.

    value[n, k] = code[n, k] * scale[n // b, k // c]; last blocks may be ragged. Two codes a byte: the even
    index is in the low nibble (`packing`).

    data_layout "shuffled" is for MXFP4 weights that GPUs read a tile of 16 rows at a time: the rows are cut into
    chunks of 16 bytes, and chunk i of all 16 rows lies before chunk i + 1 of any. A chunk of codes is one group of
    32 values, a chunk of scales those of 16 groups. data: uint8 (..., ceil(N/16), K/32, 16, 16), scale: uint8
    (..., ceil(N/16), ceil(K/512), 16, 16), where the third of the four axes is the row in its tile. Rows that fill
    up the last tile have codes 0, they and groups that fill up the last chunk have scales 1. `shuffle` makes it,
    `in_rows` undoes it.

    data_layout "vnni" is for MXFP4 weights that CPUs multiply on matrix units, whose operands hold pairs of columns of
    16 rows, or by bytes, four columns of 16 rows at a time: words of the same eight columns of 16 rows lie side by
    side. data: uint8 (..., ceil(N/16), K/32, 4, 64), scale: uint8 (..., ceil(N/16), K/32, 16). scale[t, b, n] is that
    of row 16 t + n and group b. Bytes 4 n to 4 n + 3 of data[t, b, q] are a little-endian word of that row; its nibble
    4 h + j, where 0 is the lowest one, is the code of column 32 b + 8 q + 2 j + h: even columns lie in the lower half,
    odd ones in the upper. Rows that fill up the last tile have codes 0 and scales 1. `to_vnni` makes it, `in_rows`
    undoes it.

    Attributes:
      data, scale: arrays, see the table.
      container: which row of the table.
      block: rows and columns that share a scale; 0 is all of them.
      rounding: rule by which an mxfp4 scale was chosen, or None where a checkpoint does not say.
      scale_layout: "row_major" as in the table; "column_major" is the transposed array (..., ceil(K/c), N) that
        GEMMs on AMD GPUs take for activations. Said here, never inferred from shapes or strides.
      data_layout: "row_major" as in the table, "shuffled" or "vnni"; of codes and scales.
      padding_rows: not row_major: rows of the last tile that the matrix does not have; else 0.

    Raises:
      ShapeError, LayoutError: naming the field, expected and got.
    """

    data: jax.Array
    scale: jax.Array
    container: Container
    block: tuple[int, int] = field(default=(1, MXFP4_GROUP))
    rounding: Rounding | None = None
    scale_layout: ScaleLayout = "row_major"
    data_layout: DataLayout = "row_major"
    padding_rows: int = 0

    def __post_init__(self) -> None:
        # Transformations rebuild pytrees around things that are no arrays (axis numbers, shardings, descriptions).
        if hasattr(self.data, "ndim") and hasattr(self.scale, "ndim"):
            _check(self)

    @property
    def packing(self) -> Packing:
        return "low_nibble_first" if self.container in ("mxfp4", "int4_group") else "none"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values, (..., N, K)."""
        if self.data_layout != "row_major":
            *lead, tiles, groups, _, _ = self.data.shape
            return (*lead, tiles * TILE_ROWS - self.padding_rows, groups * MXFP4_GROUP)
        per_byte = 2 if self.packing == "low_nibble_first" else 1
        return (*self.data.shape[:-1], self.data.shape[-1] * per_byte)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Of data and scale together."""
        return int(self.data.nbytes + self.scale.nbytes)


def dequantize(tensor: QuantizedTensor, dtype: str = "float32") -> jax.Array:
    """The values, (..., N, K): exact products of code and scale, rounded to float32, then to `dtype`."""
    check_dtype("dequantize", "dtype", jax.ShapeDtypeStruct((), dtype), ("float32", "bfloat16"))
    tensor = in_rows(tensor)
    *_, rows, columns = tensor.shape if tensor.ndim > 1 else (1, *tensor.shape)
    scale = tensor.scale
    if tensor.scale_layout == "column_major":
        scale = jnp.swapaxes(scale, -1, -2)
    if tensor.container == "fp8_channel":
        scale = scale[..., None]
    elif tensor.container == "fp8_tensor":
        scale = scale[..., None, None]
    high, wide = tensor.block[0] or rows, tensor.block[1] or columns
    if high > 1:
        scale = jnp.repeat(scale, high, axis=-2)[..., :rows, :]
    scale = jnp.repeat(scale, wide, axis=-1)[..., :columns]
    if tensor.container == "mxfp4":
        return decode_mxfp4(unpack_nibbles(tensor.data), scale).astype(dtype)
    if tensor.container == "int4_group":
        codes = unpack_nibbles(tensor.data).astype(jnp.float32) - np.float32(8)
    else:
        codes = tensor.data.astype(jnp.float32)
    return (codes * scale.astype(jnp.float32)).astype(dtype)


def shuffle(tensor: QuantizedTensor) -> QuantizedTensor:
    """The same values with data_layout "shuffled": the load step for weights that a GPU's kernels read.

    Args:
      tensor: "mxfp4" (..., N, K); K is a multiple of 32. A shuffled one is returned as it is, another layout is first
        brought into rows.

    Raises:
      LayoutError: another container, column-major scales, or one row without a matrix.
      ShapeError: K is no multiple of 32.
    """
    if tensor.data_layout == "shuffled":
        return tensor
    tensor = _matrices_in_rows("shuffle", tensor)
    return replace(
        tensor,
        data=_in_tiles(tensor.data, 0),
        scale=_in_tiles(tensor.scale, NO_SCALE),
        data_layout="shuffled",
        padding_rows=-tensor.shape[-2] % TILE_ROWS,
    )


def to_vnni(tensor: QuantizedTensor) -> QuantizedTensor:
    """The same values with data_layout "vnni": the load step for weights that a CPU multiplies as they lie.

    Args:
      tensor: "mxfp4" (..., N, K); K is a multiple of 32. One of this layout is returned as it is, another layout is
        first brought into rows.

    Raises:
      LayoutError: another container, column-major scales, or one row without a matrix.
      ShapeError: K is no multiple of 32.
    """
    if tensor.data_layout == "vnni":
        return tensor
    tensor = _matrices_in_rows("to_vnni", tensor)
    *lead, rows, width = tensor.data.shape
    words = jax.lax.bitcast_convert_type(tensor.data.reshape(*lead, rows, width // 4, 4), jnp.uint32)
    data = jax.lax.bitcast_convert_type(_side_by_side(_swapped(words, VNNI_SWAPS), 0), jnp.uint8)
    return replace(
        tensor,
        data=data.reshape(*data.shape[: len(lead) + 1], width // 16, 4, 4 * TILE_ROWS),
        scale=_side_by_side(tensor.scale, NO_SCALE),
        data_layout="vnni",
        padding_rows=-rows % TILE_ROWS,
    )


def in_rows(tensor: QuantizedTensor) -> QuantizedTensor:
    """The tensor that `shuffle` or `to_vnni` was given; a row-major one is returned as it is."""
    if tensor.data_layout == "row_major":
        return tensor
    *lead, rows, columns = tensor.shape
    if tensor.data_layout == "shuffled":
        data, scale = (_out_of_tiles(array) for array in (tensor.data, tensor.scale))
    else:
        tiles = tensor.data.shape[-4]
        words = tensor.data.reshape(*lead, tiles, columns // WORD_CODES, TILE_ROWS, 4)
        words = _swapped(jax.lax.bitcast_convert_type(words, jnp.uint32), VNNI_SWAPS[::-1])
        data = jax.lax.bitcast_convert_type(_one_by_one(words), jnp.uint8)
        data, scale = data.reshape(*data.shape[:-2], columns // 2), _one_by_one(tensor.scale)
    return replace(
        tensor,
        data=data[..., :rows, :],
        scale=scale[..., :rows, : columns // MXFP4_GROUP],
        data_layout="row_major",
        padding_rows=0,
    )


def _matrices_in_rows(name: str, tensor: QuantizedTensor) -> QuantizedTensor:
    """What a load step starts from."""
    tensor = in_rows(tensor)
    if tensor.container != "mxfp4" or tensor.ndim < 2:
        raise LayoutError(
            f"{name}: expected an mxfp4 matrix (..., N, K), got {tensor.container} {tensor.shape}"
        )
    check_weight(name, "tensor", tensor)
    return tensor


def _in_tiles(rows: jax.Array, fill: int) -> jax.Array:
    """Bytes (..., N, B) as (..., ceil(N/16), ceil(B/16), 16, 16)."""
    *lead, high, wide = rows.shape
    extra = ((0, -high % TILE_ROWS), (0, -wide % CHUNK_BYTES))
    padded = jnp.pad(rows, (*[(0, 0)] * len(lead), *extra), constant_values=np.uint8(fill))
    tiles, chunks = padded.shape[-2] // TILE_ROWS, padded.shape[-1] // CHUNK_BYTES
    return jnp.swapaxes(padded.reshape(*lead, tiles, TILE_ROWS, chunks, CHUNK_BYTES), -2, -3)


def _out_of_tiles(tiles: jax.Array) -> jax.Array:
    """Back, with the rows and bytes that were filled up."""
    *lead, high, wide, _, _ = tiles.shape
    return jnp.swapaxes(tiles, -2, -3).reshape(*lead, high * TILE_ROWS, wide * CHUNK_BYTES)


def _side_by_side(rows: jax.Array, fill: int) -> jax.Array:
    """Elements (..., N, W) as (..., ceil(N/16), W, 16)."""
    *lead, high, wide = rows.shape
    extra = (*[(0, 0)] * len(lead), (0, -high % TILE_ROWS), (0, 0))
    padded = jnp.pad(rows, extra, constant_values=rows.dtype.type(fill))
    return jnp.swapaxes(padded.reshape(*lead, padded.shape[-2] // TILE_ROWS, TILE_ROWS, wide), -1, -2)


def _one_by_one(tiles: jax.Array) -> jax.Array:
    """Back, with the rows that were filled up."""
    *lead, high, wide, _ = tiles.shape
    return jnp.swapaxes(tiles, -1, -2).reshape(*lead, high * TILE_ROWS, wide)


def _swapped(words: jax.Array, swaps: tuple[tuple[int, int], ...]) -> jax.Array:
    """Words whose bits under each mask have changed places with those at its distance above them."""
    for mask, distance in swaps:
        moved = (words ^ (words >> np.uint32(distance))) & np.uint32(mask)
        words = words ^ (moved * np.uint32(1 + (1 << distance)))
    return words


def to_fnuz(tensor: QuantizedTensor) -> QuantizedTensor:
    """OCP e4m3fn codes as the FNUZ codes of gfx942: the load step for FP8 weights there.

    The same bits mean half as much in e4m3fnuz, so scales double. Minus zero (0x80) is FNUZ's only NaN and
    becomes zero; OCP's NaN (0x7f, 0xff) becomes that NaN.

    Raises:
      LayoutError: the tensor is not FP8.
    """
    if tensor.data.dtype != jnp.float8_e4m3fn:
        raise LayoutError(f"to_fnuz: expected float8_e4m3fn data, got {tensor.data.dtype}")
    bits = jax.lax.bitcast_convert_type(tensor.data, jnp.uint8)
    is_nan = (bits & np.uint8(0x7F)) == np.uint8(0x7F)
    bits = jnp.where(bits == np.uint8(0x80), np.uint8(0), bits)
    bits = jnp.where(is_nan, np.uint8(0x80), bits)
    data = jax.lax.bitcast_convert_type(bits, jnp.float8_e4m3fnuz)
    return replace(tensor, data=data, scale=tensor.scale * np.float32(2))


def native_attributes(
    data: jax.Array,
    container: Container,
    block: tuple[int, int],
    data_layout: DataLayout = "row_major",
    prefix: str = "",
) -> dict[str, np.int64]:
    """What the native kernels are told about a weight. Which FP8 codes it holds, the dtype says."""
    if container == "mxfp4":
        code = "e2m1_vnni" if data_layout == "vnni" else "e2m1"
    elif container == "int4_group":
        code = "int4"
    else:
        code = "e4m3fnuz" if data.dtype == jnp.float8_e4m3fnuz else "e4m3"
    values = {"code": CODES[code], "block_n": block[0], "block_k": block[1]}
    return {prefix + name: np.int64(value) for name, value in values.items()}


def scale_shape(container: Container, shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """Shape of the row-major scales of values (..., N, K)."""
    if container == "fp8_tensor":
        return shape[:-2]
    if container == "fp8_channel":
        return shape[:-1]
    lead = shape[:-1] if block[0] == 1 else (*shape[:-2], -(-shape[-2] // block[0]))
    return (*lead, -(-shape[-1] // block[1]))


def check_weight(
    op: str, name: str, weight: QuantizedTensor, data_layouts: tuple[DataLayout, ...] = ("row_major",)
) -> None:
    """A quantised weight that an op can read: row-major scales, K a multiple of an MXFP4 group, a layout of its."""
    if weight.data_layout not in data_layouts:
        raise LayoutError(
            f"{op}: argument '{name}': expected data_layout {' or '.join(map(repr, data_layouts))}, got "
            f"{weight.data_layout!r}: see custom_calls.quantized_tensor.in_rows"
        )
    if weight.scale_layout != "row_major":
        raise LayoutError(
            f"{op}: argument '{name}': expected row_major scales, got {weight.scale_layout}: only activations "
            "may have column_major ones"
        )
    if weight.container == "mxfp4" and weight.shape[-1] % MXFP4_GROUP:
        raise ShapeError(
            f"{op}: argument '{name}': expected K to be a multiple of {MXFP4_GROUP} for MXFP4, got {weight.shape[-1]}"
        )


def _check(tensor: QuantizedTensor) -> None:
    name, block = "QuantizedTensor", tensor.block
    check_choice(name, "container", tensor.container, CONTAINERS)
    check_choice(name, "scale_layout", tensor.scale_layout, get_args(ScaleLayout))
    if tensor.rounding is not None:
        check_choice(name, "rounding", tensor.rounding, ROUNDINGS)
    check_choice(name, "data_layout", tensor.data_layout, get_args(DataLayout))
    packed = tensor.packing == "low_nibble_first"
    check_dtype(name, "data", tensor.data, ("uint8",) if packed else ("float8_e4m3fn", "float8_e4m3fnuz"))
    check_dtype(name, "scale", tensor.scale, _SCALE_DTYPES[tensor.container])
    allowed = {
        "mxfp4": block == (1, MXFP4_GROUP),
        "fp8_block": block[0] >= 1 and block[1] >= 1,
        "fp8_channel": block == (1, 0),
        "fp8_tensor": block == (0, 0),
        "int4_group": block[0] == 1 and block[1] >= 2,
    }
    if not allowed[tensor.container]:
        raise LayoutError(f"{name}: field 'block': {block} is not one of container {tensor.container!r}")
    if tensor.data_layout != "row_major":
        return _check_tiles(tensor)
    if tensor.padding_rows:
        raise LayoutError(
            f"{name}: field 'padding_rows': expected 0 for row_major data, got {tensor.padding_rows}"
        )
    least = 1 if block[0] == 1 else 2
    if tensor.data.ndim < least:
        raise ShapeError(
            f"{name}: field 'data': expected at least {least} dimensions, got shape {tensor.data.shape}"
        )
    expected = scale_shape(tensor.container, tensor.shape, block)
    if tensor.scale_layout == "column_major":
        if len(expected) < 2 or tensor.container in ("fp8_channel", "fp8_tensor"):
            raise LayoutError(
                f"{name}: field 'scale_layout': {tensor.container!r} has no column-major scales"
            )
        expected = (*expected[:-2], expected[-1], expected[-2])
    if tuple(tensor.scale.shape) != expected:
        raise ShapeError(
            f"{name}: field 'scale': expected shape {expected} for values {tensor.shape} in blocks of {block}, "
            f"got {tuple(tensor.scale.shape)}"
        )


def _check_tiles(tensor: QuantizedTensor) -> None:
    name, layout = "QuantizedTensor", tensor.data_layout
    tile = (TILE_ROWS, CHUNK_BYTES) if layout == "shuffled" else (4, 4 * TILE_ROWS)
    if tensor.container != "mxfp4" or tensor.scale_layout != "row_major":
        raise LayoutError(
            f"{name}: field 'data_layout': only 'mxfp4' with row_major scales can be {layout}, got "
            f"{tensor.container!r} with {tensor.scale_layout} scales"
        )
    if tensor.data.ndim < 4 or tuple(tensor.data.shape[-2:]) != tile:
        raise ShapeError(
            f"{name}: field 'data': expected shape (..., ceil(N/16), K/32, {tile[0]}, {tile[1]}) for {layout} data, "
            f"got {tuple(tensor.data.shape)}"
        )
    *lead, tiles, groups, _, _ = tensor.data.shape
    if not 0 <= tensor.padding_rows < min(TILE_ROWS, tiles * TILE_ROWS + 1):
        raise ShapeError(
            f"{name}: field 'padding_rows': expected 0 to 15, and 0 without tiles, got {tensor.padding_rows}"
        )
    scales = (-(-groups // CHUNK_BYTES), *tile) if layout == "shuffled" else (groups, TILE_ROWS)
    expected = (*lead, tiles, *scales)
    if tuple(tensor.scale.shape) != expected:
        raise ShapeError(
            f"{name}: field 'scale': expected shape {expected} for {layout} values {tensor.shape}, got "
            f"{tuple(tensor.scale.shape)}"
        )
