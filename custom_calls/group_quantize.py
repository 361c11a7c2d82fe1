"""Activations quantised in groups along the last axis: options, contract and reference of every op that does so.

| format | group_size | data                            | scale, row_major              | container   |
|--------|------------|---------------------------------|-------------------------------|-------------|
| mxfp4  | 32         | uint8 (T, N/2), e2m1            | uint8 (T, ceil(N/32)), e8m0   | mxfp4       |
| fp8    | any, 128   | float8_e4m3fn (T, N)            | float32 (T, ceil(N/g))        | fp8_block   |

mxfp4: see `custom_calls.mxfp4_quantize`, whose bytes these are. fp8, the rule of AMD's runtimes (AITER's
fused_flatten_fp8_group_quant, fused_rms_fp8_group_quant), with A the group's largest magnitude:

    s = max(A, 1e-10) / 448;  code = e4m3fn(min(|x| * (1 / s), 448)) with x's sign

Each of the three operations is rounded once to float32, the cast to e4m3fn to nearest, ties to even. A last
group that is not whole is filled up with zeros, which change neither its scale nor its codes.

What is no ordinary number, in fp8:
- a NaN gets code 0x7f and does not count for A: its neighbours keep their values (in mxfp4 it takes the group);
- an infinity counts as 2^128 in A and gets code +-448, whose value 448 * s is an infinity again; the numbers
  beside it lose precision (the same as in mxfp4);
- a group of zeros has s = 1e-10 / 448 and codes 0, each with its sign, and so has one of subnormal numbers.

The codes are OCP's. For gfx942, whose FP8 is e4m3fnuz, `quantized_tensor.to_fnuz` converts a result; no option
here yields it.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.checks import check_choice
from custom_calls.element_formats import (
    MXFP4_GROUP,
    ROUNDINGS,
    Rounding,
    encode_e2m1,
    encode_e4m3,
    fp8_scale,
    mxfp4_scale,
    pack_nibbles,
)
from custom_calls.errors import ShapeError
from custom_calls.op import Arrays
from custom_calls.quantized_tensor import QuantizedTensor, ScaleLayout

Format = Literal["mxfp4", "fp8"]
FORMATS: tuple[Format, ...] = get_args(Format)

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)


@dataclass(frozen=True)
class GroupQuantizer:
    """The options of a quantising op, checked, as one static value.

    Attributes:
      format, group_size: see the module's table.
      scale_layout: "row_major" (T, G) or "column_major" (G, T); see `QuantizedTensor`.
      rounding: rule of MXFP4's scales; None with fp8.
    """

    format: Format
    group_size: int
    scale_layout: ScaleLayout
    rounding: Rounding | None

    @classmethod
    def checked(
        cls, op: str, format: str, group_size: int, scale_layout: str, rounding: str | None
    ) -> "GroupQuantizer":
        """Raises `ShapeError` naming the option, expected and got; `rounding` None is "even" with mxfp4."""
        check_choice(op, "format", format, FORMATS)
        check_choice(op, "scale_layout", scale_layout, get_args(ScaleLayout))
        if format == "mxfp4":
            rounding = "even" if rounding is None else rounding
            check_choice(op, "rounding", rounding, ROUNDINGS)
            if group_size != MXFP4_GROUP:
                raise ShapeError(
                    f"{op}: argument 'group_size': expected {MXFP4_GROUP} with format 'mxfp4', got {group_size}"
                )
        else:
            if rounding is not None:
                raise ShapeError(
                    f"{op}: argument 'rounding': expected None with format 'fp8', whose scale is no power of two, "
                    f"got {rounding!r}"
                )
            if group_size < 1 or group_size != int(group_size):
                raise ShapeError(
                    f"{op}: argument 'group_size': expected a positive integer, got {group_size}"
                )
        return cls(format, int(group_size), scale_layout, rounding)  # type: ignore[arg-type]

    def abstract(self, rows: int, width: int) -> list[jax.ShapeDtypeStruct]:
        """Data and scale of rows of `width` values."""
        groups = -(-width // self.group_size)
        scale = (rows, groups) if self.scale_layout == "row_major" else (groups, rows)
        if self.format == "mxfp4":
            return [
                jax.ShapeDtypeStruct((rows, width // 2), jnp.uint8),
                jax.ShapeDtypeStruct(scale, jnp.uint8),
            ]
        return [
            jax.ShapeDtypeStruct((rows, width), jnp.float8_e4m3fn),
            jax.ShapeDtypeStruct(scale, jnp.float32),
        ]

    def reference(self, bits: jax.Array) -> Arrays:
        """Data and scale of rows (T, N) given by their `float32_bits`."""
        if self.rounding is not None:
            data, scale = mxfp4_groups(bits, self.rounding)
        else:
            data, scale = fp8_groups(bits, self.group_size)
        return data, (scale if self.scale_layout == "row_major" else scale.T)

    def attributes(self) -> dict[str, np.int64]:
        """As the native kernels read them."""
        return {
            "format": np.int64(FORMATS.index(self.format)),
            "group_size": np.int64(self.group_size),
            "rounding": np.int64(ROUNDINGS.index(self.rounding or "even")),
            "column_major": np.int64(self.scale_layout == "column_major"),
        }

    def tensor(self, data: jax.Array, scale: jax.Array) -> QuantizedTensor:
        container: Literal["mxfp4", "fp8_block"] = "mxfp4" if self.format == "mxfp4" else "fp8_block"
        return QuantizedTensor(data, scale, container, (1, self.group_size), self.rounding, self.scale_layout)


def float32_bits(x: jax.Array) -> jax.Array:
    """The uint32 bits of float32 or bfloat16 values as float32.

    Widened as bits: XLA's conversion to float32 may flush subnormal numbers.
    """
    if x.dtype == jnp.bfloat16:
        return jax.lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) << np.uint32(16)
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def mxfp4_groups(bits: jax.Array, rounding: Rounding) -> Arrays:
    """Packed codes (..., K/2) and scale bytes (..., ceil(K/32)) of values (..., K) given by their bits."""
    width = bits.shape[-1]
    groups = _grouped(bits, MXFP4_GROUP)
    scale = mxfp4_scale(jnp.max(groups & _MAGNITUDE, axis=-1), rounding)
    codes = _flattened(encode_e2m1(groups, scale[..., None]), width)
    return pack_nibbles(codes), scale.astype(jnp.uint8)


def fp8_groups(bits: jax.Array, group_size: int) -> Arrays:
    """float8_e4m3fn codes (..., K) and float32 scales (..., ceil(K/g)) of values given by their bits."""
    width = bits.shape[-1]
    groups = _grouped(bits, group_size)
    magnitude = groups & _MAGNITUDE
    is_nan = magnitude > _INFINITY
    largest = jnp.max(jnp.where(is_nan, np.uint32(0), magnitude), axis=-1)
    scale = jax.lax.bitcast_convert_type(fp8_scale(largest), jnp.float32)
    inverse = np.float32(1) / scale
    scaled = jax.lax.bitcast_convert_type(magnitude, jnp.float32) * inverse[..., None]
    code = encode_e4m3(jax.lax.bitcast_convert_type(scaled, jnp.uint32))
    sign = (groups >> np.uint32(24)) & np.uint32(0x80)
    code = _flattened(jnp.where(is_nan, np.uint32(0x7F), code | sign).astype(jnp.uint8), width)
    return jax.lax.bitcast_convert_type(code, jnp.float8_e4m3fn), scale


def _grouped(bits: jax.Array, size: int) -> jax.Array:
    """(..., K) -> (..., ceil(K / size), size), filled up with zeros."""
    fill = -bits.shape[-1] % size
    bits = jnp.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, fill)])
    return bits.reshape(*bits.shape[:-1], bits.shape[-1] // size, size)


def _flattened(groups: jax.Array, width: int) -> jax.Array:
    """(..., G, size) -> (..., width), without what filled up the last group."""
    *lead, count, size = groups.shape
    return groups.reshape(*lead, count * size)[..., :width]
