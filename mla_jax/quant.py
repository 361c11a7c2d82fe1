"""How a parameter is quantised, and tensors of that kind without data or with random data."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.element_formats import MXFP4_GROUP, Rounding
from custom_calls.quantized_tensor import Container, QuantizedTensor, scale_shape

FP8_BLOCK = (128, 128)
"""Block of DeepSeek's FP8 checkpoints."""

FP8_MAX = 448.0
"""Largest e4m3fn magnitude."""

_SMALLEST_FP8_MAXIMUM = np.float32(FP8_MAX * 2.0**-126)

_BYTE_CODES = ("mxfp4", "int4_group")

# Root mean square of uniformly drawn codes, as `random_tensor` draws them.
_CODES_RMS = {"mxfp4": math.sqrt((0.25 + 1 + 2.25 + 4 + 9 + 16 + 36) / 8), "int4_group": math.sqrt(21.5)}


@dataclass(frozen=True)
class Storage:
    """Container, block and scale dtype of a quantised parameter; see `QuantizedTensor`.

    Attributes:
      container: which container.
      block: rows and columns that share a scale; 0 is all of them.
      scale_dtype: the scales' dtype name.
      rounding: rule of MXFP4 scales, where it is known.
    """

    container: Container
    block: tuple[int, int]
    scale_dtype: str = "float32"
    rounding: Rounding | None = None

    def data_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the codes of values `shape`."""
        return (*shape[:-1], shape[-1] // 2) if self.container in _BYTE_CODES else shape

    @property
    def data_dtype(self) -> str:
        return "uint8" if self.container in _BYTE_CODES else "float8_e4m3fn"

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the row-major scales of values `shape`."""
        return scale_shape(self.container, shape, self.block)

    def tensor(self, data: jax.Array, scale: jax.Array) -> QuantizedTensor:
        return QuantizedTensor(data, scale, self.container, self.block, self.rounding)


MXFP4 = Storage("mxfp4", (1, MXFP4_GROUP), "uint8", "even")
FP8 = Storage("fp8_block", FP8_BLOCK)


def abstract_tensor(storage: Storage, shape: tuple[int, ...]) -> QuantizedTensor:
    """A `QuantizedTensor` of `jax.ShapeDtypeStruct`s."""
    data = jax.ShapeDtypeStruct(storage.data_shape(shape), jnp.dtype(storage.data_dtype))
    scale = jax.ShapeDtypeStruct(storage.scale_shape(shape), jnp.dtype(storage.scale_dtype))
    return storage.tensor(data, scale)  # type: ignore[arg-type]


def random_tensor(
    storage: Storage, shape: tuple[int, ...], key: jax.Array, deviation: float
) -> QuantizedTensor:
    """Random codes, and one scale everywhere that gives the values about this standard deviation.

    An e8m0 scale is a power of two: the deviation is then met within a factor of the square root of two.
    """
    raw = jax.random.bits(key, storage.data_shape(shape), jnp.uint8)
    if storage.data_dtype == "float8_e4m3fn":
        # Exponents up to 7: magnitudes below 2, no NaN.
        raw = jax.lax.bitcast_convert_type(raw & np.uint8(0xBF), jnp.float8_e4m3fn)
    return storage.tensor(raw, random_scale(storage, shape, deviation))


def random_scale(storage: Storage, shape: tuple[int, ...], deviation: float) -> jax.Array:
    """The scales that give random codes of values `shape` about this standard deviation, all alike."""
    rms = _CODES_RMS.get(storage.container, _SMALL_FP8_RMS)
    scales = storage.scale_shape(shape)
    if storage.scale_dtype == "uint8":
        return jnp.full(scales, np.uint8(round(127 + math.log2(deviation / rms))), jnp.uint8)
    return jnp.full(scales, deviation / rms, storage.scale_dtype)


def fp8_block(values: jax.Array, block: tuple[int, int] = FP8_BLOCK) -> QuantizedTensor:
    """Values (N, K) as e4m3fn in blocks, last ones ragged: scale = largest magnitude / 448, 1 for zeros.

    XLA multiplies by 1 / 448, so that a scale may differ by one unit in the last place from a division.
    """
    rows, columns = values.shape
    high, wide = block
    fill = ((0, -rows % high), (0, -columns % wide))
    padded = jnp.pad(values.astype(jnp.float32), fill)
    tiles = padded.reshape(padded.shape[0] // high, high, padded.shape[1] // wide, wide)
    largest = jnp.max(jnp.abs(tiles), axis=(1, 3))
    # A block whose scale XLA would flush to zero counts as one of zeros.
    scale = jnp.where(largest >= _SMALLEST_FP8_MAXIMUM, largest / np.float32(FP8_MAX), np.float32(1))
    scaled = tiles / scale[:, None, :, None]
    data = scaled.astype(jnp.float8_e4m3fn).reshape(padded.shape)[:rows, :columns]
    return QuantizedTensor(data, scale, "fp8_block", block)


def fp8_channel(values: jax.Array) -> QuantizedTensor:
    """Values (N, K) as e4m3fn with one scale a row, chosen as in `fp8_block`."""
    tensor = fp8_block(values, (1, values.shape[1]))
    return QuantizedTensor(tensor.data, tensor.scale[:, 0], "fp8_channel", (1, 0))


def _small_fp8_rms() -> float:
    codes = np.arange(0x40, dtype=np.uint8).view(jnp.float8_e4m3fn).astype(np.float64)
    return float(np.sqrt(np.mean(codes**2)))


_SMALL_FP8_RMS = _small_fp8_rms()
