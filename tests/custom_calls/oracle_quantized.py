"""Float64 oracles of the quantised ops, and random weights of every container for them.

Every value of a container is exact in float64: an e2m1 code times a power of two, or a code of four bits
times a float32. Nothing here is shared with the package: codes are looked up, scales are powers of two by
`ldexp`, and a value is quantised by its distance to each of the eight magnitudes.

What quantisation adds to the errors that `oracle` derives: a value or a block's sum is rounded once when it
meets its scale (u of the result), and a scale below 2^-126 may be flushed to zero like any other operand.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import oracle
from oracle import FLUSHED, Bounded, U, f64, relative, round_to

Array = np.ndarray
Rng = np.random.Generator
BF16 = ml_dtypes.bfloat16
FP8 = ml_dtypes.float8_e4m3fn

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
GROUP = 32
NAN_SCALE = 255
NAN_FP8 = 0x7F


def unpack(packed: Array) -> Array:
    """(..., K/2) bytes -> (..., K) codes; the even index is in the low nibble."""
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    codes[..., 0::2], codes[..., 1::2] = packed % 16, packed // 16
    return codes


def pack(codes: Array) -> Array:
    return (codes[..., 0::2] + 16 * codes[..., 1::2]).astype(np.uint8)


def e8m0(scale: Array) -> Array:
    value = np.ldexp(1.0, scale.astype(np.int64) - 127)
    return np.where(scale == NAN_SCALE, np.nan, value)


def codes_of(data: Array, container: str) -> Array:
    """(..., N, K) float64: the codes as numbers."""
    if container == "mxfp4":
        return E2M1[unpack(data)]
    if container == "int4_group":
        return unpack(data).astype(np.float64) - 8
    return f64(data)


def scales_of(scale: Array, shape: tuple[int, ...], container: str, block: tuple[int, int]) -> Array:
    """The scale of each value, (..., N, K) float64."""
    wide = e8m0(scale) if container == "mxfp4" else f64(scale)
    if container == "fp8_tensor":
        wide = wide[..., None, None]
    elif container == "fp8_channel":
        wide = wide[..., None]
    n, k = (np.arange(size) // (high or size or 1) for size, high in zip(shape[-2:], block, strict=True))
    return np.broadcast_to(wide[..., n[:, None], k[None, :]], shape)


def values(data: Array, scale: Array, container: str, block: tuple[int, int]) -> Array:
    """Exact values, (..., N, K) float64."""
    codes = codes_of(data, container)
    if codes.ndim == 1:
        return values(data[None], scale[None], container, block)[0]
    with np.errstate(invalid="ignore"):
        return codes * scales_of(scale, codes.shape, container, block)


def quantize(x: Array, rounding: str) -> tuple[Array, Array]:
    """Packed codes (..., K/2) and scale bytes (..., ceil(K/32)) by the definition of the rules."""
    width = x.shape[-1]
    wide = f64(x)
    wide = np.concatenate([wide, np.zeros((*x.shape[:-1], -width % GROUP))], axis=-1)
    groups = wide.reshape(*x.shape[:-1], wide.shape[-1] // GROUP, GROUP)
    scale = np.zeros(groups.shape[:-1], np.uint8)
    codes = np.zeros(groups.shape, np.uint8)
    for at in np.ndindex(*groups.shape[:-1]):
        scale[at] = scale_byte(float(np.abs(groups[at]).max()), rounding)
        if scale[at] != NAN_SCALE:
            codes[at] = nearest_codes(np.ldexp(groups[at], 127 - int(scale[at])))
    return pack(codes.reshape(wide.shape)[..., :width]), scale


def scale_byte(largest: float, rounding: str) -> int:
    """e8m0 byte for a group's largest magnitude; an infinity counts as 2^128, for rceil as above 1.5 * 2^128."""
    if np.isnan(largest):
        return NAN_SCALE
    if largest == 0:
        return 0
    if np.isinf(largest):
        fraction, exponent = (1.75 if rounding == "rceil" else 1.0), 128
    else:
        fraction, exponent = np.frexp(largest)
        fraction, exponent = 2 * fraction, int(exponent) - 1  # in [1, 2)
    # rceil: A / 6 = fraction / 1.5 * 2^(exponent - 2).
    up = {"floor": False, "even": fraction >= 1.75, "ceil": fraction > 1, "rceil": fraction > 1.5}[rounding]
    return max(exponent - 2 + up, -127) + 127


def nearest_codes(y: Array) -> Array:
    """Nearest e2m1 codes; of two at the same distance the even one."""
    distance = np.abs(np.minimum(np.abs(y), 8)[:, None] - E2M1[None, :8])
    equal = distance == distance.min(axis=1, keepdims=True)
    even = equal & (np.arange(8) % 2 == 0)
    code = np.where(even.any(axis=1), even.argmax(axis=1), equal.argmax(axis=1))
    return (code + 8 * np.signbit(y)).astype(np.uint8)


# ---- products ----


@dataclass
class Weight:
    """A matrix as `_product` wants it: exact values, and codes for the bound on flushed scales."""

    values: Array
    codes: Array

    @classmethod
    def of(cls, data: Array, scale: Array, container: str, block: tuple[int, int]) -> "Weight":
        return cls(values(data, scale, container, block), codes_of(data, container))

    def __getitem__(self, index: Any) -> "Weight":
        return Weight(self.values[index], self.codes[index])

    @property
    def T(self) -> "Weight":
        return Weight(self.values.T, self.codes.T)


def _product(rows: Array, weight: Weight) -> tuple[Array, Array, Array]:
    """rows (M, K) . weight (N, K): value, sum of |terms|, float32 error; each (M, N)."""
    matrix, width = weight.values, rows.shape[1]
    with np.errstate(invalid="ignore"):
        value = rows @ matrix.T
        magnitude = np.abs(rows) @ np.abs(matrix).T
        lost = np.abs(matrix).sum(axis=1) + np.abs(rows).sum(axis=1)[:, None] + width
        lost = lost + np.abs(rows) @ np.abs(weight.codes).T
        # The rounding of a value, or of a block's sum, at its scale.
        error = (relative(width) + U) * magnitude + FLUSHED * lost
    # A NaN is a NaN whatever BLAS does with it.
    broken = np.isnan(rows).any(axis=1)[:, None] | np.isnan(matrix).any(axis=1)
    value[broken] = np.nan
    magnitude[broken] = error[broken] = 0
    return value, magnitude, error


def linear(
    x: Array,
    data: Array,
    scale: Array,
    bias: Array | None = None,
    *,
    container: str,
    block: tuple[int, int],
    out_dtype: str | None = None,
    activations: str = "bf16",
) -> tuple[Bounded]:
    del out_dtype
    if activations == "mxfp4":
        x = values(*quantize(x, "even"), "mxfp4", (1, GROUP))
    value, magnitude, error = _product(f64(x), Weight.of(data, scale, container, block))
    if bias is not None:
        value, magnitude = value + f64(bias), magnitude + np.abs(f64(bias))
        error = error + 2 * U * magnitude
    return (Bounded(value, error, oracle._scale(magnitude)),)


def absorb(
    x: Array,
    data: Array,
    scale: Array,
    *,
    container: str,
    block: tuple[int, int],
    contract: str,
    row_offset: int,
    rows: int,
    x_offset: int = 0,
) -> tuple[Bounded]:
    tokens, heads, _ = x.shape
    weight = Weight.of(data, scale, container, block)
    of_head = weight.values.shape[0] // heads
    width = weight.values.shape[1] if contract == "rows" else rows
    value, error, magnitude = (np.zeros((tokens, heads, width)) for _ in range(3))
    for h in range(heads):
        first = h * of_head + row_offset
        used = weight[first : first + rows]
        matrix = used.T if contract == "rows" else used
        part = f64(x[:, h, x_offset : x_offset + matrix.values.shape[1]])
        value[:, h], magnitude[:, h], error[:, h] = _product(part, matrix)
    return (Bounded(value, error, oracle._scale(magnitude)),)


def expert_mlp(
    x: Array,
    gate_up: Array,
    gate_up_scale: Array,
    down: Array,
    down_scale: Array,
    topk_ids: Array,
    topk_weights: Array,
    *,
    gate_up_layout: tuple[str, tuple[int, int]],
    down_layout: tuple[str, tuple[int, int]],
) -> tuple[Bounded]:
    """As `oracle.expert_mlp`, whose comments explain the errors; here by expert, for many tokens."""
    dtype = x.dtype
    wide = f64(x)
    experts = gate_up.shape[0]
    value, error, magnitude = (np.zeros(x.shape) for _ in range(3))
    for e in range(experts):
        at, slot = np.nonzero(topk_ids == e)
        if not len(at):
            continue
        into = Weight.of(gate_up[e], gate_up_scale[e], *gate_up_layout)
        out = Weight.of(down[e], down_scale[e], *down_layout)
        inner = out.values.shape[1]
        both, _, both_error = _product(wide[at], into)
        gate, up = both[:, :inner], both[:, inner:]
        gate_error, up_error = both_error[:, :inner], both_error[:, inner:]
        with np.errstate(invalid="ignore"):
            silu = gate / (1.0 + np.exp(np.clip(-gate, -700, 700)))
            exact = silu * up
            exact_error = (
                1.1 * gate_error * np.abs(up) + np.abs(silu) * up_error + 1.1 * gate_error * up_error
            )
            exact_error += 8 * U * np.abs(exact) + 2 * FLUSHED
            hidden = round_to(exact, dtype)
            reach = [np.abs(round_to(exact + side * exact_error, dtype) - hidden) for side in (-1, 1)]
        hidden_error = np.maximum(*reach)
        part, part_magnitude, part_error = _product(hidden, out)
        weight = f64(topk_weights[at, slot])[:, None]
        np.add.at(value, at, weight * part)
        np.add.at(magnitude, at, np.abs(weight) * part_magnitude)
        moved = part_error + hidden_error @ np.abs(out.values).T
        np.add.at(error, at, np.abs(weight) * moved + FLUSHED)
    error += relative(topk_ids.shape[1]) * magnitude
    return (Bounded(value, error, oracle._scale(magnitude)),)


# ---- random weights ----

LAYOUTS: dict[str, tuple[str, tuple[int, int]]] = {
    "mxfp4": ("mxfp4", (1, 32)),
    "fp8_block128": ("fp8_block", (128, 128)),
    "fp8_block24x40": ("fp8_block", (24, 40)),
    "fp8_channel": ("fp8_channel", (1, 0)),
    "fp8_tensor": ("fp8_tensor", (0, 0)),
    "int4_group32": ("int4_group", (1, 32)),
    "int4_group20_bfloat16": ("int4_group", (1, 20)),
}
"""Every container, with blocks that whole vectors can take and blocks that they cannot."""


def scale_shape(shape: tuple[int, ...], container: str, block: tuple[int, int]) -> tuple[int, ...]:
    if container == "fp8_tensor":
        return shape[:-2]
    if container == "fp8_channel":
        return shape[:-1]
    rows = shape[:-1] if block[0] == 1 else (*shape[:-2], -(-shape[-2] // block[0]))
    return (*rows, -(-shape[-1] // block[1]))


def random_weight(rng: Rng, shape: tuple[int, ...], layout: str) -> tuple[Array, Array]:
    """Data and scale with every code in use and scales over a few powers of two; no NaN, results near 1."""
    container, block = LAYOUTS[layout]
    size = scale_shape(shape, container, block)
    if container == "mxfp4":
        return rng.integers(0, 256, (*shape[:-1], shape[-1] // 2), np.uint8), rng.integers(
            120, 126, size
        ).astype(np.uint8)
    factor = rng.uniform(0.5, 4.0, size) * rng.choice([1.0, 2.0**-3], size)
    if container == "int4_group":
        dtype = BF16 if layout.endswith("bfloat16") else np.float32
        data = rng.integers(0, 256, (*shape[:-1], shape[-1] // 2), np.uint8)
        return data, np.asarray(factor / 32, np.float32).astype(dtype)
    codes = rng.integers(0, 256, shape).astype(np.uint8)
    codes[codes % 128 == NAN_FP8] = 0
    return codes.view(FP8), np.asarray(factor / 512, np.float32)
