"""Random weights for measurements, made as fast as memory allows: what they are does not matter, their bytes do."""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mla_jax.checkpoints.streaming import aligned_array
from mla_jax.parameters import ParamInfo, Tree
from mla_jax.quant import random_scale

_CHUNK_WORDS = 1 << 17

# Sign and mantissa at random under one exponent: magnitudes uniform in [1, 2) times a power of two.
_UNIFORM_RMS = math.sqrt(7 / 3)


def random_weights(table: Tree, dtype: str) -> Tree:
    """Arrays for a parameter table, without ever being other numbers than those that are stored.

    Quantised parameters get random codes under one scale, plain ones random signs and mantissas under one
    exponent; the deviation is that of `random_parameters` within a factor of two. Norms are ones.

    Args:
      table: of `parameter_table`.
      dtype: compute dtype, "float32" or "bfloat16".
    """
    infos, structure = jax.tree.flatten(table, is_leaf=lambda node: isinstance(node, ParamInfo))
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        made = list(workers.map(partial(_weight, dtype), range(len(infos)), infos))
    return jax.tree.unflatten(structure, made)


def _weight(dtype: str, seed: int, info: ParamInfo) -> Any:
    kind = jnp.dtype(info.dtype or dtype)
    deviation = 1 / math.sqrt(info.shape[-1])
    if info.storage is not None:
        # FP8: exponents up to 7, which leaves out NaN.
        keep = 0xBF if info.storage.data_dtype == "float8_e4m3fn" else 0xFF
        shape = info.storage.data_shape(info.shape)
        data = _bits(seed, shape, np.uint8, keep, 0).view(jnp.dtype(info.storage.data_dtype))
        return info.storage.tensor(jax.device_put(data), random_scale(info.storage, info.shape, deviation))
    if info.init != "normal":
        return jnp.full(info.shape, 1 if info.init == "ones" else 0, kind)
    mantissa, word = (23, np.uint32) if kind.itemsize == 4 else (7, np.uint16)
    exponent = 127 + round(math.log2(deviation / _UNIFORM_RMS))
    sign = 1 << (8 * kind.itemsize - 1)
    bits = _bits(seed, info.shape, word, sign | (1 << mantissa) - 1, exponent << mantissa)
    return jax.device_put(bits.view(kind))


def _bits(seed: int, shape: tuple[int, ...], word: Any, keep: int, fixed: int) -> np.ndarray:
    """Random words of which `keep` masks the random bits, and `fixed` are set in each."""
    out = aligned_array(shape, np.dtype(word))
    flat = out.reshape(-1).view(np.uint8)
    generator = np.random.Generator(np.random.SFC64(seed))
    for start in range(0, flat.size, 8 * _CHUNK_WORDS):
        part = flat[start : start + 8 * _CHUNK_WORDS]
        raw = generator.integers(0, 1 << 64, -(-part.size // 8), np.uint64)
        part[:] = raw.view(np.uint8)[: part.size]
        words = part.view(word)
        words &= word(keep)
        words |= word(fixed)
    return out
