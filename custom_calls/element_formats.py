"""Element formats of quantised tensors, as bit arithmetic: e2m1, e8m0, int4, and e4m3fn through its dtype.

MXFP4 values are built from bits, never with `log2`, `exp2` or a multiplication by the scale: float32 logarithms
round up just below a power of two, and XLA:CPU flushes subnormal numbers to zero (a scale byte of 0 is
2^-127). The native kernels do the same arithmetic.

Sources: OCP Microscaling Formats (MX) v1.0; the rounding rules of scales as named by torchao and AMD Quark.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

MXFP4_GROUP = 32
"""Consecutive values along the last axis that share one e8m0 scale."""

Rounding = Literal["floor", "even", "ceil", "rceil"]
"""How the shared exponent follows from the largest magnitude A of a group.

floor: floor(log2 A) - 2, so that A in (6, 8) saturates; even: like floor after rounding A's mantissa at 1.75
(what AMD Quark and AITER do); ceil: ceil(log2 A) - 2; rceil: ceil(log2(A / 6)), nothing saturates.
"""
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)

# Midpoints between the codes' magnitudes, in quarters of the scale: a magnitude's code is the number of them
# that it passes. At a midpoint itself the even code wins.
_THRESHOLDS = (1, 3, 5, 7, 10, 14, 20)
_TIE_GOES_UP = (False, True, False, True, False, True, False)


def _u32(value: int) -> np.uint32:
    return np.uint32(value)


def unpack_nibbles(packed: jax.Array) -> jax.Array:
    """(..., K/2) uint8 -> (..., K) uint8 in [0, 16): the even index is in the low nibble."""
    both = jnp.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)
    return both.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def pack_nibbles(codes: jax.Array) -> jax.Array:
    """(..., K) uint8 in [0, 16), K even -> (..., K/2) uint8."""
    pairs = codes.reshape(*codes.shape[:-1], codes.shape[-1] // 2, 2)
    return pairs[..., 0] | (pairs[..., 1] << np.uint8(4))


def decode_mxfp4(codes: jax.Array, scale: jax.Array) -> jax.Array:
    """e2m1 code * 2^(scale - 127) as float32, exact for subnormal results too; scale 255 is NaN.

    Args:
      codes: (..., K) uint8 in [0, 16).
      scale: uint8, of the same shape.
    """
    magnitude = (codes & np.uint8(7)).astype(jnp.uint32)
    exponent = scale.astype(jnp.int32) + ((magnitude >> _u32(1)).astype(jnp.int32) - np.int32(1))
    # Codes 0 and 1 are 0 and 0.5; from 2 on, (1 + m/2) * 2^(code/2 - 1) with m the lowest bit.
    half = magnitude == _u32(1)
    significand = _u32(1 << 23) | jnp.where(half, _u32(0), (magnitude & _u32(1)) << _u32(22))
    normal = (jnp.maximum(exponent, np.int32(0)).astype(jnp.uint32) << _u32(23)) | (
        significand & _u32(0x7FFFFF)
    )
    subnormal = significand >> (np.int32(1) - jnp.minimum(exponent, np.int32(0))).astype(jnp.uint32)
    bits = jnp.where(exponent > np.int32(0), normal, subnormal)
    bits = jnp.where(exponent >= np.int32(255), _u32(0x7F800000), bits)
    bits = jnp.where(magnitude == _u32(0), _u32(0), bits)
    bits = bits | ((codes >> np.uint8(3)).astype(jnp.uint32) << _u32(31))
    bits = jnp.where(scale == np.uint8(255), _u32(0x7FC00000), bits)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def mxfp4_scale(magnitude_bits: jax.Array, rounding: Rounding) -> jax.Array:
    """e8m0 byte of a group whose largest magnitude has these float32 bits (sign cleared), as uint32.

    An infinity gives what 2^128 would, one more for rceil; NaN gives 255.
    """
    exponent = magnitude_bits >> _u32(23)
    mantissa = magnitude_bits & _u32(0x7FFFFF)
    if rounding == "even":
        exponent = (magnitude_bits + _u32(0x200000)) >> _u32(23)
    elif rounding == "ceil":
        exponent = exponent + (mantissa != _u32(0)).astype(jnp.uint32)
    elif rounding == "rceil":
        infinite = magnitude_bits == _u32(0x7F800000)
        exponent = exponent + ((mantissa > _u32(0x400000)) | infinite).astype(jnp.uint32)
    byte = jnp.maximum(exponent, _u32(2)) - _u32(2)
    return jnp.where(magnitude_bits > _u32(0x7F800000), _u32(255), byte)


def encode_e2m1(bits: jax.Array, scale: jax.Array) -> jax.Array:
    """Codes of values / 2^(scale - 127): to nearest, ties to the even code, saturating at 6.

    Args:
      bits: uint32 bits of float32 values.
      scale: uint32 e8m0 bytes, of the same shape or broadcasting; 255 gives code 0.

    Returns:
      uint8 codes; the sign of zero is kept.
    """
    exponent = (bits >> _u32(23)) & _u32(255)
    mantissa = bits & _u32(0x7FFFFF)
    significand = jnp.where(exponent == _u32(0), mantissa, mantissa | _u32(1 << 23))
    # value = significand * 2^(max(exponent, 1) - 150); in quarters of the scale it is
    # significand * 2^-shift. Beyond 25 every magnitude is below the first threshold.
    step = jnp.maximum(exponent, _u32(1)).astype(jnp.int32) - scale.astype(jnp.int32)
    shift = jnp.clip(np.int32(21) - step, np.int32(0), np.int32(25)).astype(jnp.uint32)
    code = jnp.zeros(bits.shape, jnp.uint32)
    for threshold, up in zip(_THRESHOLDS, _TIE_GOES_UP, strict=True):
        at = _u32(threshold) << shift
        code = code + (significand >= at if up else significand > at).astype(jnp.uint32)
    code = jnp.where(exponent == _u32(255), _u32(7), code) | ((bits >> _u32(31)) << _u32(3))
    return jnp.where(scale == _u32(255), _u32(0), code).astype(jnp.uint8)


def fp8_scale(magnitude_bits: jax.Array) -> jax.Array:
    """Bits of max(A, 1e-10) / 448 rounded to float32, for a largest magnitude A with these bits, both uint32.

    An infinity gives what 2^128 would. XLA would divide by a constant as a product with its reciprocal, which
    is off by one unit in the last place for some A; the integer quotient is not.
    """
    bits = jnp.maximum(magnitude_bits, _u32(int(np.float32(1e-10).view(np.uint32))))
    significand = (bits & _u32(0x7FFFFF)) | _u32(1 << 23)
    # 448 is 7 * 2^6. The shift that gives the quotient by 7 its 24 bits; it never rounds up to 2^24.
    shift = jnp.where(significand >= _u32(7 << 21), _u32(2), _u32(3))
    dividend = significand << shift
    quotient = jax.lax.div(dividend, jnp.full_like(dividend, 7))
    quotient = quotient + (dividend - quotient * _u32(7) >= _u32(4)).astype(jnp.uint32)
    exponent = (bits >> _u32(23)) - _u32(6) - shift
    return (exponent << _u32(23)) + (quotient - _u32(1 << 23))


def encode_e4m3(magnitude_bits: jax.Array) -> jax.Array:
    """e4m3fn codes, as uint32, of magnitudes with these float32 bits: to nearest, ties to even, saturating at 448.

    NaN gives 0x7f. XLA's own conversion does not saturate.
    """
    rounded = magnitude_bits + _u32(0x7FFFF) + ((magnitude_bits >> _u32(20)) & _u32(1))
    normal = jnp.minimum((rounded >> _u32(20)) - _u32(120 << 3), _u32(0x7E))
    # Below 2^-6 the codes are multiples of 2^-9; beyond 25 every magnitude is below half of one.
    exponent = (magnitude_bits >> _u32(23)).astype(jnp.int32)
    shift = jnp.clip(np.int32(141) - exponent, np.int32(21), np.int32(25)).astype(jnp.uint32)
    significand = (magnitude_bits & _u32(0x7FFFFF)) | _u32(1 << 23)
    half = _u32(1) << (shift - _u32(1))
    small = (significand + (half - _u32(1)) + ((significand >> shift) & _u32(1))) >> shift
    code = jnp.where(magnitude_bits < _u32(0x3C800000), small, normal)
    return jnp.where(magnitude_bits > _u32(0x7F800000), _u32(0x7F), code)
