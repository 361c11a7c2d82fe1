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
FP8, FNUZ = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
GROUP = 32
NAN_SCALE = 255
NAN_FP8 = 0x7F
NAN_CODES = {np.dtype(FP8): NAN_FP8, np.dtype(FNUZ): 0x80}
"""A NaN of each type of FP8 codes."""


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
    "fp8_block128_fnuz": ("fp8_block", (128, 128)),
    "int4_group32": ("int4_group", (1, 32)),
    "int4_group20_bfloat16": ("int4_group", (1, 20)),
}
"""Every container, with blocks that whole vectors can take and blocks that they cannot; and gfx942's FP8 codes."""


def fp8_dtype(layout: str) -> np.dtype:
    return np.dtype(FNUZ if layout.endswith("fnuz") else FP8)


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
    codes = codes.view(fp8_dtype(layout))
    codes[np.isnan(codes.astype(np.float32))] = 0
    return codes, np.asarray(factor / 512, np.float32)


# ---- the vnni layout ----


def vnni_tiles(data: Array, scale: Array, spare: int) -> tuple[Array, Array]:
    """Codes and scales of a matrix by the layout's definition, one by one; `spare` is the scale of rows that fill up
    a tile."""
    codes = unpack(data)
    (n, k), tiles = codes.shape, -(-len(codes) // 16)
    nibbles = np.zeros((tiles, k // 32, 4, 16, 8), np.uint8)
    scales = np.full((tiles, k // 32, 16), spare, np.uint8)
    for row in range(n):
        t, r = divmod(row, 16)
        scales[t, :, r] = scale[row]
        for column in range(k):
            b, within = divmod(column, 32)
            q, place = divmod(within, 8)
            j, h = divmod(place, 2)
            nibbles[t, b, q, r, 4 * h + j] = codes[row, column]
    return pack(nibbles).reshape(tiles, k // 32, 4, 64), scales


def vnni_rows(data: Array, scale: Array, n: int) -> tuple[Array, Array]:
    """Back, of a matrix or of a stack of them: its n rows."""
    *lead, tiles, groups, _, _ = data.shape
    row, column = np.arange(n)[:, None], np.arange(32 * groups)[None, :]
    nibbles = unpack(data.reshape(*lead, tiles, groups, 4, 16, 4))
    j, h = column % 8 // 2, column % 2
    codes = nibbles[..., row // 16, column // 32, column % 32 // 8, row % 16, 4 * h + j]
    group = np.arange(groups)[None, :]
    return pack(codes), scale[..., row // 16, group, row % 16]


# ---- activations in groups ----

FP8_MAGNITUDES = np.arange(NAN_FP8, dtype=np.uint8).view(FP8).astype(np.float64)
FP8_FLOOR = np.float32(1e-10)


def nearest_fp8(y: Array) -> Array:
    """Nearest e4m3fn codes, saturating; of two at the same distance the even one. NaN is 0x7f."""
    magnitude = np.minimum(np.abs(y), 448)
    middles = (FP8_MAGNITUDES[1:] + FP8_MAGNITUDES[:-1]) / 2
    below, reached = (np.searchsorted(middles, magnitude, side) for side in ("left", "right"))
    code = np.where(below == reached, below, below + below % 2) + 128 * np.signbit(y)
    return np.where(np.isnan(y), NAN_FP8, code).astype(np.uint8)


def fp8_scales(largest: Array) -> Array:
    """float32 scales by the definition, one IEEE division; an infinity counts as 2^128."""
    finite = np.where(np.isinf(largest), 0, largest).astype(np.float32)
    scale = np.maximum(finite, FP8_FLOOR) / np.float32(448)
    return np.where(np.isinf(largest), np.float32(2.0**128 / 448), scale).astype(np.float32)


def quantize_fp8(x: Array, group: int) -> tuple[Array, Array]:
    """Codes (T, K) as bytes and float32 scales (T, ceil(K/g)) of float32 or bfloat16 rows."""
    codes = np.zeros(x.shape, np.uint8)
    scale = np.zeros((x.shape[0], -(-x.shape[1] // group)), np.float32)
    for g in range(scale.shape[1]):
        with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
            part = x[:, g * group : (g + 1) * group].astype(np.float32)
            counted = np.where(np.isnan(part), 0, np.abs(part))
            scale[:, g] = fp8_scales(counted.max(axis=1))
            scaled = part * (np.float32(1) / scale[:, g])[:, None]
        codes[:, g * group : (g + 1) * group] = nearest_fp8(f64(scaled))
    return codes, scale


def quantize_rows(
    x: Array, *, format: str, group_size: int, scale_layout: str, rounding: str | None = None
) -> tuple[Array, Array]:
    """Bytes of the codes and scales of rows (T, K), in the layout."""
    data, scale = quantize(x, rounding or "even") if format == "mxfp4" else quantize_fp8(x, group_size)
    return data, (scale.T if scale_layout == "column_major" else scale)


def _quantized_mxfp4(y: Array, error: Array, rounding: str) -> tuple[Bounded, Bounded]:
    """Bytes of rows that are known up to `error`, which must leave every scale certain."""
    rows, width = y.shape
    bounds = []
    for side in (-1, 1):
        near = np.copysign(np.maximum(np.abs(y) + side * error, 0), y)
        padded = np.concatenate([near, np.zeros((rows, -width % GROUP))], axis=1)
        groups = padded.reshape(rows, padded.shape[1] // GROUP, GROUP)
        scale = np.zeros(groups.shape[:2], np.uint8)
        for at in np.ndindex(*scale.shape):
            scale[at] = scale_byte(float(np.abs(groups[at]).max()), rounding)
        powers = np.ldexp(1.0, 127 - scale.astype(np.int64))[..., None]
        codes = [nearest_codes(group) for group in (groups * powers).reshape(-1, GROUP)]
        packed = pack(np.array(codes, np.uint8).reshape(padded.shape)[:, :width])
        bounds.append((packed.astype(np.float64), scale))
    (low, scale), (high, same) = bounds
    assert np.array_equal(scale, same), "a group's scale hangs on the last bits of the norm: other values"
    data = Bounded((low + high) / 2, np.abs(high - low) / 2, 255.0)
    return data, Bounded(scale.astype(np.float64), np.zeros(scale.shape), 255.0)


def _quantized_fp8(y: Array, error: Array, group: int) -> tuple[Bounded, Bounded]:
    rows, width = y.shape
    shape = (rows, -(-width // group))
    scale, scale_error, code, code_error = (np.zeros(s) for s in (shape, shape, y.shape, y.shape))
    for g in range(shape[1]):
        at = slice(g * group, (g + 1) * group)
        scale[:, g] = np.maximum(np.abs(y[:, at]).max(axis=1), float(FP8_FLOOR)) / 448
        scale_error[:, g] = error[:, at].max(axis=1) / 448 + 2 * U * scale[:, g]
        s, s_error = scale[:, g, None], scale_error[:, g, None]
        code[:, at] = y[:, at] / s
        # The reciprocal of the scale and the product round once each.
        most = (np.abs(y[:, at]) + error[:, at]) / (s - s_error) * (1 + 3 * U)
        code_error[:, at] = most - np.abs(code[:, at])
    return Bounded(code, code_error, 448.0), Bounded(scale, scale_error, oracle._scale(scale))


def rmsnorm_quantize(
    x: Array,
    weight: Array,
    residual: Array | None = None,
    *,
    eps: float,
    format: str,
    group_size: int,
    scale_layout: str,
    rounding: str | None = None,
    offset: int = 0,
    weight_offset: float = 0.0,
    return_unquantized: bool = False,
) -> tuple[Bounded, ...]:
    used = f64(weight) + weight_offset
    if residual is None:
        (norm,) = oracle.rmsnorm(x, used, eps=eps, offset=offset)
        rest = ()
    else:
        norm, total = oracle.rmsnorm_residual(x, residual, used, eps=eps, offset=offset)
        rest = (total,)
    # The weight's own sum rounds once.
    norm = Bounded(norm.value, norm.error + U * np.abs(norm.value), norm.scale)
    if format == "mxfp4":
        data, scale = _quantized_mxfp4(norm.value, norm.error, rounding or "even")
    else:
        data, scale = _quantized_fp8(norm.value, norm.error, group_size)
    if scale_layout == "column_major":
        scale = Bounded(scale.value.T, scale.error.T, scale.scale)
    return (data, scale, *((norm,) if return_unquantized else ()), *rest)
