"""RoPE tables: where rotation angles, YaRN and its mscale come from, in one place.

There is no function that rotates here: rotation happens inside `rope_append_latent` and nowhere else.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from custom_calls.rope_contract import LAYOUT_CODE, RopeLayout
from mla_jax.config import ModelConfig, RopeConfig, YarnConfig
from mla_jax.errors import LayoutError, ShapeError
from mla_jax.pytree import pytree

_BLOCK_ROWS = 512


@pytree(data=("cos", "sin"), static=("layout",))
@dataclass(frozen=True)
class RopeTable:
    """cos and sin of every position's angles, float32, and the pairing that they are meant for.

    layout "interleaved" rotates the pairs (2i, 2i+1), "half" the pairs (i, i + dim/2). The same weights
    are valid for exactly one of the two; a cache records which one it was written with.
    """

    cos: Float[Array, "max_positions half_dim"]
    sin: Float[Array, "max_positions half_dim"]
    layout: RopeLayout

    @staticmethod
    def from_config(rope: RopeConfig, max_positions: int) -> "RopeTable":
        """The table of a config's RoPE: plain, or YaRN with its cos/sin multiplier."""
        frequencies = inverse_frequencies(rope)
        # transformers multiplies float32 positions by float32 frequencies; the product's rounding at
        # large positions is part of the answer that a checkpoint was trained and tested with.
        multiplier = attention_multiplier(rope.scaling)
        cos = np.empty((max_positions, frequencies.size), np.float32)
        sin = np.empty_like(cos)
        # In blocks that stay in a cache: the float64 numbers in between would be four times the table.
        for start in range(0, max_positions, _BLOCK_ROWS):
            rows = slice(start, min(start + _BLOCK_ROWS, max_positions))
            positions = np.arange(rows.start, rows.stop, dtype=np.float32)
            angles = (positions[:, None] * frequencies[None, :]).astype(np.float64)
            np.multiply(np.cos(angles), multiplier, out=cos[rows], casting="same_kind")
            np.multiply(np.sin(angles), multiplier, out=sin[rows], casting="same_kind")
        return RopeTable(jnp.asarray(cos), jnp.asarray(sin), rope.layout)

    @staticmethod
    def identity(dim: int, max_positions: int = 1, layout: RopeLayout = "interleaved") -> "RopeTable":
        """A table that rotates by zero: layers without RoPE use the same op, exactly once like the rest."""
        if dim < 2 or dim % 2:
            raise ShapeError(f"RopeTable.identity: argument 'dim': expected an even number >= 2, got {dim}")
        shape = (max_positions, dim // 2)
        return RopeTable(jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32), layout)

    @staticmethod
    def abstract(rope: RopeConfig, max_positions: int) -> "RopeTable":
        """The same table as `jax.ShapeDtypeStruct`s, to plan and compile without data."""
        leaf = jax.ShapeDtypeStruct((max_positions, rope.dim // 2), jnp.float32)
        return RopeTable(leaf, leaf, rope.layout)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if self.layout not in LAYOUT_CODE:
            raise LayoutError(f"RopeTable.layout: expected 'interleaved' or 'half', got {self.layout!r}")


def inverse_frequencies(rope: RopeConfig) -> np.ndarray:
    """(dim / 2,) float32 angles per position: theta^(-2i/dim), with YaRN's ramp where it is configured.

    YaRN (Peng et al. 2023, section 3.2) divides low frequencies by `factor` and leaves high ones; the
    ramp runs between the dimensions that turn beta_fast and beta_slow times over the original context.
    """
    exponents = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
    plain = (np.float32(1) / np.power(np.float32(rope.theta), exponents)).astype(np.float32)
    yarn = rope.scaling
    if yarn is None:
        return plain

    def dimension_of(turns: float) -> float:
        wavelength = yarn.original_max_position_embeddings / (turns * 2 * math.pi)
        return rope.dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low = max(math.floor(dimension_of(yarn.beta_fast)), 0)
    high = float(min(math.ceil(dimension_of(yarn.beta_slow)), rope.dim - 1))
    if high == low:
        high += 0.001
    steps = np.arange(rope.dim // 2, dtype=np.float32)
    ramp = np.clip((steps - np.float32(low)) / np.float32(high - low), 0, 1).astype(np.float32)
    return (plain / np.float32(yarn.factor) * ramp + plain * (np.float32(1) - ramp)).astype(np.float32)


def mscale(factor: float, weight: float) -> float:
    """YaRN's temperature 0.1 * weight * ln(factor) + 1; 1 where the context is not stretched."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def attention_multiplier(yarn: YarnConfig | None) -> float:
    """What cos and sin are multiplied by."""
    if yarn is None:
        return 1.0
    if yarn.attention_factor is not None:
        return yarn.attention_factor
    if yarn.mscale and yarn.mscale_all_dim:
        return mscale(yarn.factor, yarn.mscale) / mscale(yarn.factor, yarn.mscale_all_dim)
    return mscale(yarn.factor, 1.0)


def softmax_scale(config: ModelConfig) -> float:
    """qk_head_dim^-0.5, times mscale(factor, mscale_all_dim)^2 under YaRN with mscale_all_dim.

    DeepSeek-V3: 192^-0.5 * 1.3688879^2 = 0.1352338.
    """
    scale = (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5
    yarn = config.rope.scaling
    if yarn is not None and yarn.mscale_all_dim:
        scale *= mscale(yarn.factor, yarn.mscale_all_dim) ** 2
    return scale
