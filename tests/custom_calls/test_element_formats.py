"""Element formats: every code and every scale byte against exact tables, packing, scales and codes by rule."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle_quantized
import pytest
from op_base import Rng, same_bits

from custom_calls.element_formats import (
    MXFP4_GROUP,
    ROUNDINGS,
    decode_mxfp4,
    encode_e2m1,
    encode_e4m3,
    fp8_scale,
    mxfp4_scale,
    pack_nibbles,
    unpack_nibbles,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "mxfp4.json").read_text(encoding="utf-8"))

ENCODE = jax.jit(encode_e2m1)
RUNS = pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], np.uint32).view(np.float32)


def every_pair() -> tuple[np.ndarray, np.ndarray]:
    codes, scales = np.meshgrid(np.arange(16, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    return codes, scales


@RUNS
def test_every_code_at_every_scale(run: Any) -> None:
    codes, scales = every_pair()
    got = np.asarray(run(decode_mxfp4)(jnp.asarray(codes), jnp.asarray(scales)))
    with np.errstate(over="ignore"):
        want = (oracle_quantized.E2M1[codes] * np.ldexp(1.0, scales.astype(int) - 127)).astype(np.float32)
    assert np.isnan(got[255]).all()
    assert same_bits(got[:255], want[:255])
    # The edges that a shorter formula gets wrong.
    smallest = got[0, 1]
    assert smallest.view(np.uint32) == 0x00200000, "0.5 * 2^-127 is subnormal"
    assert np.isposinf(got[254, 4:8]).all() and np.isneginf(got[254, 12:]).all()
    assert np.isfinite(got[254, :4]).all() and np.isfinite(got[253, :6]).all() and np.isinf(got[253, 6])
    assert np.isfinite(got[128]).all(), "128 is a scale, not the NaN"
    assert not np.signbit(got[3, 0]) and np.signbit(got[3, 8]) and got[3, 8] == 0


def test_tables_of_other_libraries_agree() -> None:
    assert same_bits(words(VECTORS["tables"]["e2m1"]), oracle_quantized.E2M1.astype(np.float32))
    fp8 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(words(VECTORS["tables"]["e4m3fn"]), fp8, equal_nan=True)


def test_two_codes_a_byte_even_index_low() -> None:
    packed = jnp.asarray(np.uint8([[0x21, 0x43], [0xF0, 0x0F]]))
    assert np.array_equal(unpack_nibbles(packed), [[1, 2, 3, 4], [0, 15, 15, 0]])
    assert same_bits(pack_nibbles(jnp.asarray(np.uint8([[1, 2, 3, 4], [0, 15, 15, 0]]))), packed)


@pytest.mark.parametrize("shape", [(256,), (2, 128), (3, 2, 5), (0, 4), (4, 0)], ids=str)
def test_packing_round_trips(shape: tuple[int, ...], rng: Rng) -> None:
    packed = rng.integers(0, 256, shape, np.uint8)
    if shape == (256,):
        packed = np.arange(256, dtype=np.uint8)
    codes = unpack_nibbles(jnp.asarray(packed))
    assert same_bits(codes, oracle_quantized.unpack(packed))
    assert same_bits(pack_nibbles(codes), packed)


def magnitudes(rng: Rng) -> np.ndarray:
    """float32 bits around every power of two and every rule's threshold, subnormals, infinity, and others."""
    mantissas = np.uint32([0, 1, 2, 0x3FFFFF, 0x400000, 0x400001, 0x5FFFFF, 0x600000, 0x600001, 0x7FFFFF])
    grid = (np.arange(255, dtype=np.uint32)[:, None] << 23) | mantissas
    return np.concatenate(
        [grid.reshape(-1), np.uint32([0x7F800000]), rng.integers(0, 0x7F800000, 500, np.uint32)]
    )


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_scale_of_every_magnitude(rounding: str, rng: Rng) -> None:
    bits = magnitudes(rng)
    got = jax.jit(mxfp4_scale, static_argnums=1)(jnp.asarray(bits), rounding)
    want = [oracle_quantized.scale_byte(float(a), rounding) for a in bits.view(np.float32)]
    assert np.array_equal(got, want)
    nan = np.uint32([0x7F800001, 0x7FC00000, 0x7FFFFFFF])
    assert np.array_equal(mxfp4_scale(jnp.asarray(nan), rounding), [255, 255, 255])


@pytest.mark.parametrize("scale", [0, 1, 2, 30, 126, 127, 128, 200, 252, 254])
def test_codes_near_every_threshold(scale: int, rng: Rng) -> None:
    # Thresholds and codes, the float32 below and above each, and numbers far away on both sides.
    marks = np.float64([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 100])
    with np.errstate(over="ignore"):
        at = np.ldexp(marks, scale - 127).astype(np.float32)
        tiny = np.float32([1e-45, 1e-40, 2.0**-126, 1e30, 3.4e38, np.inf])
        x = np.concatenate([at, np.nextafter(at, np.float32(0)), np.nextafter(at, np.float32(np.inf)), tiny])
    x = np.concatenate([x, -x, rng.integers(0, 2**32, 3000, np.uint32).view(np.float32)])
    x = np.where(np.isnan(x), np.float32(0), x)
    got = ENCODE(jnp.asarray(x.view(np.uint32)), jnp.full(x.shape, scale, jnp.uint32))
    want = oracle_quantized.nearest_codes(np.ldexp(x.astype(np.float64), 127 - scale))
    assert same_bits(got, want), [
        (float(a), int(g), int(w)) for a, g, w in zip(x, got, want, strict=True) if g != w
    ][:5]


def test_a_nan_scale_has_no_codes() -> None:
    bits = jnp.asarray(np.float32([1, -1, 0, -0.0, np.inf, np.nan]).view(np.uint32))
    assert not np.asarray(encode_e2m1(bits, jnp.full(6, 255, jnp.uint32))).any()


def test_every_code_decodes_and_encodes_to_itself() -> None:
    codes, scales = (array[:253] for array in every_pair())
    values = jax.jit(decode_mxfp4)(jnp.asarray(codes), jnp.asarray(scales))
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    assert same_bits(ENCODE(bits, jnp.asarray(scales.astype(np.uint32))), codes)


def test_fp8_scale_of_every_magnitude(rng: Rng) -> None:
    bits = np.concatenate([magnitudes(rng), rng.integers(0x2EDBE000, 0x2EDBF000, 500, np.uint32)])
    # Both sides of where the quotient by 7 gets one bit less.
    bits = np.concatenate([bits, ((np.arange(255)[:, None] << 23) + 0x600000 + np.arange(-2, 3)).ravel()])
    bits = bits[bits <= 0x7F800000].astype(np.uint32)
    got = np.asarray(jax.jit(fp8_scale)(jnp.asarray(bits)))
    assert same_bits(got.view(np.float32), oracle_quantized.fp8_scales(bits.view(np.float32)))


def test_e4m3_codes_near_every_threshold(rng: Rng) -> None:
    codes = oracle_quantized.FP8_MAGNITUDES
    marks = np.concatenate([codes, (codes[1:] + codes[:-1]) / 2, [456, 464, 480, 512, 1e30]])
    marks = marks.astype(np.float32)
    tiny = np.float32([1e-45, 1e-40, 2.0**-126, 2.0**-11, 1.5 * 2.0**-11, 3.4e38, np.inf])
    x = np.concatenate(
        [marks, np.nextafter(marks, np.float32(0)), np.nextafter(marks, np.float32(1e38)), tiny]
    )
    x = np.concatenate([x, magnitudes(rng).view(np.float32), rng.uniform(0, 500, 3000).astype(np.float32)])
    got = jax.jit(encode_e4m3)(jnp.asarray(x.view(np.uint32)))
    assert np.array_equal(got, oracle_quantized.nearest_fp8(x.astype(np.float64)))
    nan = np.uint32([0x7F800001, 0x7FC00000, 0x7FFFFFFF])
    assert np.array_equal(encode_e4m3(jnp.asarray(nan)), [0x7F, 0x7F, 0x7F])


def test_names_of_the_rules() -> None:
    assert ROUNDINGS == ("floor", "even", "ceil", "rceil")
    assert MXFP4_GROUP == 32
