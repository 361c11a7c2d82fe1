"""The quantised products on this machine's GPU against float64, at sizes that reach each of its kernels.

The shared tests of tests/custom_calls run the same contracts on the CPU's kernels and, through tests/rocm, on AMD's
in the emulator.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "custom_calls"))

from oracle_quantized import LAYOUTS, random_weight

from custom_calls.absorb import absorb
from custom_calls.expert_mlp import expert_mlp
from custom_calls.linear import linear
from custom_calls.mxfp4_quantize import mxfp4_quantize
from custom_calls.quantized_tensor import QuantizedTensor, dequantize

Array = np.ndarray
DTYPES = ("bfloat16", "float32")
# (tokens, rows, columns): one row, ragged ones, and as many as each kernel is made for.
LINEAR = (
    (1, 37, 160), (8, 64, 128), (16, 100, 512), (33, 67, 192), (17, 300, 1024), (64, 2048, 256), (3, 5000, 2048),
    (9, 8200, 96), (40, 13000, 128), (0, 5, 160), (6, 160, 33), (200, 7000, 640), (64, 25700, 256),
)  # fmt: skip
# (tokens, heads, rows a head, rank, row offset, rows, column offset)
ABSORB = (
    (1, 128, 256, 512, 0, 128, 0), (20, 16, 256, 512, 128, 128, 64), (7, 3, 40, 256, 8, 24, 8),
    (150, 2, 192, 384, 64, 128, 0), (5, 2, 11, 256, 3, 7, 1), (33, 2, 320, 512, 64, 256, 0),
    (12, 3, 128, 512, 0, 120, 8), (70, 128, 256, 512, 128, 128, 0), (129, 5, 256, 512, 0, 128, 0),
)  # fmt: skip
# (tokens, hidden, inner, experts, slots)
EXPERTS = (
    (1, 256, 128, 8, 2),
    (40, 512, 256, 16, 6),
    (3, 128, 384, 300, 8),
    (0, 128, 128, 4, 2),
    (700, 256, 512, 9, 2),
)


def weight(rng: np.random.Generator, shape: tuple[int, ...], layout: str) -> QuantizedTensor:
    data, scale = random_weight(rng, shape, layout)
    return QuantizedTensor(jnp.asarray(data), jnp.asarray(scale), *LAYOUTS[layout])


def values(tensor: QuantizedTensor) -> Array:
    """Exact, on the CPU: a GPU's XLA may flush."""
    host = jax.devices("cpu")[0]
    with jax.default_device(host):
        return np.asarray(dequantize(jax.device_put(tensor, host)), np.float64)


def fits(k: int, layout: str) -> int:
    """The largest number of columns up to `k` that a layout allows, or its smallest."""
    container, (_, wide) = LAYOUTS[layout]
    unit = wide if container in ("mxfp4", "int4_group") else 1
    return max(unit, k // unit * unit)


def check(got: Any, want: Array, terms: Array, hidden: float = 0.0) -> None:
    """Within the float32 sums' error and one rounding: K terms of at most `terms` in all, by any order, are within
    2^-18 of it for K up to 64 K; a bfloat16 result moves by at most 2^-8 of itself. `hidden`: the same of a stored
    intermediate, which enters by its terms."""
    step = 2.0**-8 if got.dtype == ml_dtypes.bfloat16 else 0.0
    error = terms * (2.0**-18 + hidden) + np.abs(want) * step
    difference = np.abs(np.asarray(got, np.float64) - want)
    assert got.shape == want.shape
    assert (difference <= error).all(), (
        f"{int((difference > error).sum())} of {want.size}, {difference.max():.3e}"
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", LINEAR, ids=str)
def test_linear(shape: tuple[int, int, int], layout: str, dtype: str, rng: np.random.Generator) -> None:
    m, n, k = shape
    k = fits(k, layout)
    w = weight(rng, (n, k), layout)
    x = jnp.asarray(rng.standard_normal((m, k)), jnp.float32).astype(dtype)
    bias = jnp.asarray(rng.standard_normal(n), jnp.float32) if m % 2 else None
    got = linear(x, w, bias, kernels="native")
    wide, exact = np.asarray(x, np.float64), values(w)
    added = 0.0 if bias is None else np.asarray(bias, np.float64)
    check(got, wide @ exact.T + added, np.abs(wide) @ np.abs(exact.T) + np.abs(added))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("contract", ["rows", "columns"])
@pytest.mark.parametrize("shape", ABSORB, ids=str)
def test_absorb(
    shape: tuple[int, ...], contract: Any, layout: str, dtype: str, rng: np.random.Generator
) -> None:
    tokens, heads, of_head, rank, offset, rows, x_offset = shape
    rank = fits(rank, layout)
    w = weight(rng, (heads * of_head, rank), layout)
    used = rows if contract == "rows" else rank
    x = jnp.asarray(rng.standard_normal((tokens, heads, x_offset + used + 8)), jnp.float32).astype(dtype)
    static = {"row_offset": offset, "rows": rows, "x_offset": x_offset}
    got = absorb(x, w, contract=contract, kernels="native", **static)
    exact = values(w).reshape(heads, of_head, rank)[:, offset : offset + rows]
    wide = np.asarray(x, np.float64)[:, :, x_offset : x_offset + used]
    terms = "thd,hdr->thr" if contract == "rows" else "thr,hdr->thd"
    check(got, np.einsum(terms, wide, exact), np.einsum(terms, np.abs(wide), np.abs(exact)))


@pytest.mark.parametrize("contract", ["rows", "columns"])
def test_absorb_of_latent_columns_does_not_depend_on_the_batch(
    contract: Any, rng: np.random.Generator
) -> None:
    # Kernels of 8 to 128 tokens add up in one order.
    w = weight(rng, (4 * 256, 512), "mxfp4")
    used = 128 if contract == "rows" else 512
    x = jnp.asarray(rng.standard_normal((150, 4, used)), jnp.bfloat16)
    static: dict[str, Any] = {"contract": contract, "row_offset": 128, "rows": 128, "kernels": "native"}
    whole = np.asarray(absorb(x, w, **static)).view(np.uint16)
    for first, count in ((0, 1), (149, 1), (3, 8), (20, 9), (60, 32), (65, 50), (10, 64), (7, 100)):
        part = np.asarray(absorb(x[first : first + count], w, **static)).view(np.uint16)
        assert np.array_equal(whole[first : first + count], part), (first, count)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [None, *LAYOUTS])
@pytest.mark.parametrize("shape", EXPERTS, ids=str)
def test_expert_mlp(shape: tuple[int, ...], layout: str | None, dtype: str, rng: np.random.Generator) -> None:
    tokens, hidden, inner, experts, slots = shape
    if layout is None:
        gate_up, down = (
            jnp.asarray(rng.standard_normal(size) / 16, jnp.float32).astype(dtype)
            for size in ((experts, 2 * inner, hidden), (experts, hidden, inner))
        )
        first, second = np.asarray(gate_up, np.float64), np.asarray(down, np.float64)
    else:
        hidden, inner = fits(hidden, layout), fits(inner, layout)
        gate_up, down = (
            weight(rng, size, layout) for size in ((experts, 2 * inner, hidden), (experts, hidden, inner))
        )
        first, second = values(gate_up), values(down)
    x = jnp.asarray(rng.standard_normal((tokens, hidden)) / 64, jnp.float32).astype(dtype)
    ids = rng.integers(-1, experts + 1, (tokens, slots)).astype(np.int32)
    routing = rng.random((tokens, slots)).astype(np.float32)
    got = expert_mlp(x, gate_up, down, jnp.asarray(ids), jnp.asarray(routing), kernels="native")
    want, terms = np.zeros((tokens, hidden)), np.zeros((tokens, hidden))
    for token, slot in zip(*np.nonzero((ids >= 0) & (ids < experts)), strict=True):
        expert = ids[token, slot]
        both = first[expert] @ np.asarray(x[token], np.float64)
        gate, up = both[:inner], both[inner:]
        stored = gate / (1 + np.exp(-gate)) * up
        # What the sums' error may make of the gated values: each factor moves by 2^-18 of its terms.
        reach = np.abs(first[expert]) @ np.abs(np.asarray(x[token], np.float64)) * 2.0**-18
        moved = reach[:inner] * (np.abs(up) + reach[inner:]) * 1.1 + np.abs(gate) * reach[inner:]
        want[token] += routing[token, slot] * (second[expert] @ stored)
        step = 2.0**-8 if dtype == "bfloat16" else 2.0**-20
        terms[token] += routing[token, slot] * (
            np.abs(second[expert]) @ (np.abs(stored) * (step + 2.0**-18) + moved)
        )
    check(got, want, terms, hidden=1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounding", ["floor", "even", "ceil", "rceil"])
def test_quantise_is_bit_exact(rounding: Any, dtype: str, rng: np.random.Generator) -> None:
    bits = rng.integers(0, 2**32, (5, 7168), dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = jnp.asarray(bits).astype(dtype)
    host = jax.devices("cpu")[0]
    with jax.default_device(host):
        want = mxfp4_quantize(jax.device_put(x, host), rounding=rounding, kernels="reference")
    got = mxfp4_quantize(x, rounding=rounding, kernels="native")
    assert np.array_equal(got.data, want.data)
    assert np.array_equal(got.scale, want.scale)
