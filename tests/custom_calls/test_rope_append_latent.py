"""rope_append_latent and rope_latent_rows: rotation, stored rows, dropped rows, float8 codes, in place."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import pytest
from op_base import KERNELS, Array, Builder, Call, OpTests, Rng, bits, normal, poison, same_bits

from custom_calls.rope_append_latent import dequantise_rows, rope_append_latent, rope_latent_rows

F8 = ml_dtypes.float8_e4m3fn
INT_MAX, INT_MIN = 2**31 - 1, -(2**31)
CACHES = ("float32", "bfloat16", "float8_e4m3fn")


def table(rng: Rng, rows: int, rope: int) -> tuple[Array, Array]:
    angle = rng.uniform(-np.pi, np.pi, (rows, rope // 2))
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotation(
    rng: Rng, dtype: str, tokens: int, heads: int, rank: int, rope: int, q_offset: int, kv_offset: int,
    positions: int, scale: float,
) -> dict[str, Array]:  # fmt: skip
    """The arguments that both ops share; columns outside the static ranges are NaN."""
    q = poison((tokens, heads, q_offset + rope + 3), dtype)
    q[:, :, q_offset : q_offset + rope] = normal(rng, (tokens, heads, rope), dtype, scale)
    kv_a = poison((tokens, kv_offset + rank + rope + 2), dtype)
    kv_a[:, kv_offset : kv_offset + rank + rope] = normal(rng, (tokens, rank + rope), dtype, scale)
    cos, sin = table(rng, positions, rope)
    return {
        "q": q,
        "kv_a": kv_a,
        "norm_weight": normal(rng, (rank,)),
        "cos": cos,
        "sin": sin,
        "positions": rng.integers(0, positions, tokens).astype(np.int32),
    }


def make_rows(
    tokens: int, heads: int, rank: int, rope: int, layout: str = "interleaved", q_offset: int = 4,
    kv_offset: int = 5, positions: int = 40, scale: float = 1.0,
) -> Builder:  # fmt: skip
    def build(rng: Rng, dtype: str) -> Call:
        arrays = rotation(rng, dtype, tokens, heads, rank, rope, q_offset, kv_offset, positions, scale)
        static = {"eps": 1e-6, "layout": layout, "q_offset": q_offset, "kv_offset": kv_offset}
        return Call(arrays, static, extreme=scale < 1e-30)

    return build


def noise(rng: Rng, shape: tuple[int, ...], dtype: Any) -> Array:
    """Random bytes: NaN of every kind, infinities and subnormals among them."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return rng.integers(0, 256, count, np.uint8).view(np.dtype(dtype)).reshape(shape)


def make(
    tokens: int, heads: int, rank: int, rope: int, layout: str = "interleaved", page_size: int = 16,
    layer: int = 1, layers: int = 3, slots: tuple[int, ...] = (), **others: Any,
) -> Builder:  # fmt: skip
    """The pool is noise; `slots` replaces the first tokens' slots."""

    def build(rng: Rng, dtype: str, cache: str) -> Call:
        call = make_rows(tokens, heads, rank, rope, layout, **others)(rng, dtype)
        num_pages = -(-tokens // page_size) + 2
        num_slots = num_pages * page_size
        # Live slots are distinct, and a dropped -1 must not meet a live last slot that would hide it.
        free = [slot for slot in rng.permutation(num_slots - 1) if slot not in slots]
        chosen = np.array([*slots, *free][:tokens], np.int32)
        is_float8 = cache == "float8_e4m3fn"
        return Call(
            {
                **call.arrays,
                "slots": chosen,
                "kv": noise(rng, (layers, num_pages, page_size, rank + rope), cache),
                "layer": np.int32(layer),
                # Only float8 may look at the scales.
                "scales": np.array([0.013, 0.021] if is_float8 else [np.nan, np.nan], np.float32),
            },
            call.static,
            call.extreme,
        )

    return build


def dropped_slots(page_size: int) -> Builder:
    num_slots = (-(-9 // page_size) + 2) * page_size
    return make(9, 2, 8, 4, page_size=page_size, slots=(-1, num_slots, num_slots + 1, INT_MAX, INT_MIN, 0))


def clamped_positions(build: Builder) -> Builder:
    def wrapped(rng: Rng, *variant: str) -> Call:
        call = build(rng, *variant)
        positions = call.arrays["positions"].copy()
        positions[:6] = [-1, 40, 41, INT_MAX, INT_MIN, 39]
        return call.changed(positions=positions)

    return wrapped


ROTATION_ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "layout": ({"layout": "neox"}, "argument 'layout': expected 'interleaved' or 'half', got 'neox'"),
    "q-rank": (
        {"q": jax.ShapeDtypeStruct((4, 9), "float32")},
        "argument 'q': expected shape (T, H, D), got (4, 9)",
    ),
    "q-dtype": (
        {"q": jax.ShapeDtypeStruct((4, 3, 9), "float16")},
        "argument 'q': expected dtype float32 or bfloat16, got float16",
    ),
    "kv-a-tokens": (
        {"kv_a": jax.ShapeDtypeStruct((5, 15), "float32")},
        "argument 'kv_a': expected shape (4, W), got (5, 15)",
    ),
    "kv-a-dtype": (
        {"kv_a": jax.ShapeDtypeStruct((4, 15), "bfloat16")},
        "argument 'kv_a': expected dtype float32, got bfloat16",
    ),
    "norm-weight-dtype": (
        {"norm_weight": jax.ShapeDtypeStruct((8,), "int32")},
        "argument 'norm_weight': expected dtype float32 or bfloat16, got int32",
    ),
    "cos-rank": (
        {"cos": jax.ShapeDtypeStruct((40, 2, 1), "float32")},
        "argument 'cos': expected shape (M, P / 2), got (40, 2, 1)",
    ),
    "cos-empty": (
        {"cos": jax.ShapeDtypeStruct((0, 2), "float32"), "sin": jax.ShapeDtypeStruct((0, 2), "float32")},
        "argument 'cos': expected a range inside [0, 0) of positions, got [0, 0)",
    ),
    "sin-shape": (
        {"sin": jax.ShapeDtypeStruct((39, 2), "float32")},
        "argument 'sin': expected shape (40, 2), got (39, 2)",
    ),
    "cos-dtype": (
        {"cos": jax.ShapeDtypeStruct((40, 2), "bfloat16")},
        "argument 'cos': expected dtype float32, got bfloat16",
    ),
    "sin-dtype": (
        {"sin": jax.ShapeDtypeStruct((40, 2), "bfloat16")},
        "argument 'sin': expected dtype float32, got bfloat16",
    ),
    "positions-shape": (
        {"positions": jax.ShapeDtypeStruct((3,), "int32")},
        "argument 'positions': expected shape (4), got (3,)",
    ),
    "positions-dtype": (
        {"positions": jax.ShapeDtypeStruct((4,), "uint32")},
        "argument 'positions': expected dtype int32, got uint32",
    ),
    "q-offset": (
        {"q_offset": 6},
        "argument 'q_offset': expected a range inside [0, 9) of q's columns, got [6, 10)",
    ),
    "kv-offset": (
        {"kv_offset": 4},
        "argument 'kv_offset': expected a range inside [0, 15) of kv_a's columns, got [4, 16)",
    ),
    "kv-offset-negative": (
        {"kv_offset": -1},
        "argument 'kv_offset': expected a range inside [0, 15) of kv_a's columns, got [-1, 11)",
    ),
}


def finite(call: Call, rng: Rng, dtype: str) -> Call:
    return call.changed(**{name: normal(rng, call.arrays[name].shape, dtype) for name in ("q", "kv_a")})


class TestRopeLatentRows(OpTests):
    function = staticmethod(rope_latent_rows)
    oracle = staticmethod(oracle.rope_latent_rows)
    primitive = "mla_jax.rope_latent_rows"
    op_name = "rope_latent_rows"
    cases = {  # noqa: RUF012
        "T0": make_rows(0, 3, 8, 4),
        "T1-H1-R8-P2": make_rows(1, 1, 8, 2),
        "T1-H1-R8-P2-half": make_rows(1, 1, 8, 2, "half"),
        "T3-H12-R512-P64": make_rows(3, 12, 512, 64, q_offset=128, kv_offset=0),
        "T3-H12-R512-P64-half": make_rows(3, 12, 512, 64, "half", q_offset=0, kv_offset=96),
        "T17-H20-R24-P8": make_rows(17, 20, 24, 8, "half"),
        "T65-H3-R40-P8": make_rows(65, 3, 40, 8),
        "positions-clamp": clamped_positions(make_rows(9, 3, 24, 8)),
        "one-position": make_rows(3, 2, 8, 4, positions=1),
        "large": make_rows(3, 2, 24, 8, scale=1e16),
        "subnormal": make_rows(3, 2, 24, 8, "half", scale=1e-39),
    }
    errors = ROTATION_ERRORS | {
        "norm-weight-rank": (
            {"norm_weight": jax.ShapeDtypeStruct((8, 1), "float32")},
            "argument 'norm_weight': expected shape (R), got (8, 1)",
        ),
    }
    vmapped = (("q", "kv_a", "positions"), ("cos", "sin"))
    differentiable = ("q", "kv_a", "norm_weight", "cos", "sin")

    @staticmethod
    def small(rng: Rng, dtype: str) -> Call:
        return finite(make_rows(4, 3, 8, 4, q_offset=2, kv_offset=1)(rng, dtype), rng, dtype)

    @staticmethod
    def rows(rng: Rng, dtype: str) -> tuple[Call, list[tuple[Any, Call]]]:
        call = make_rows(65, 3, 40, 8)(rng, dtype)
        at = [slice(0, 1), slice(33, 34), slice(64, 65), slice(5, 22)]
        rowed = ("q", "kv_a", "positions")
        return call, [
            (rows, call.changed(**{name: call.arrays[name][rows] for name in rowed})) for rows in at
        ]


@pytest.mark.bug("ROCm/aiter#4342", "test")
class TestRopeAppendLatent(OpTests):
    function = staticmethod(rope_append_latent)
    oracle = staticmethod(oracle.rope_append_latent)
    primitive = "mla_jax.rope_append_latent"
    op_name = "rope_append_latent"
    variants = tuple((dtype, cache) for dtype in ("float32", "bfloat16") for cache in CACHES)
    cases = {  # noqa: RUF012
        "T0": make(0, 3, 8, 4),
        "T1-page1-P2-half": make(1, 1, 8, 2, "half", page_size=1),
        "T3-page64-R512": make(3, 12, 512, 64, page_size=64, q_offset=128, kv_offset=0),
        "T17-page3-half": make(17, 20, 24, 8, "half", page_size=3),
        "T2-H31-P66": make(2, 31, 8, 66),  # Parts of heads that do not divide a GPU's blocks.
        "T65-page16": make(65, 3, 40, 8),
        "dropped-slots-page1": dropped_slots(1),
        "dropped-slots-page3": dropped_slots(3),
        "last-slot": make(3, 2, 8, 4, slots=(3 * 16 - 1,)),
        "layer-first": make(3, 1, 8, 4, layer=0),
        "layer-last": make(3, 1, 8, 4, layer=2),
        "layer-minus-one": make(3, 1, 8, 4, layer=-1),
        "layer-too-large": make(3, 1, 8, 4, layer=3),
        "layer-int-max": make(3, 1, 8, 4, layer=INT_MAX),
        "layer-int-min": make(3, 1, 8, 4, layer=INT_MIN),
        "positions-clamp": clamped_positions(make(9, 1, 8, 4)),
        "saturating": make(5, 1, 8, 8, scale=1e4),
        "tiny": make(5, 1, 8, 8, scale=1e-4),
    }
    errors = ROTATION_ERRORS | {
        "kv-rank": (
            {"kv": jax.ShapeDtypeStruct((3, 48, 12), "float32")},
            "argument 'kv': expected shape (L, num_pages, page_size, R + P), got (3, 48, 12)",
        ),
        "kv-width": (
            {"kv": jax.ShapeDtypeStruct((3, 3, 16, 11), "float32")},
            "argument 'kv': expected shape (L, num_pages, page_size, 12), got (3, 3, 16, 11)",
        ),
        "kv-dtype": (
            {"kv": jax.ShapeDtypeStruct((3, 3, 16, 12), "float16")},
            "argument 'kv': expected dtype float32 or bfloat16 or float8_e4m3fn, got float16",
        ),
        "kv-dtype-fnuz": (
            {"kv": jax.ShapeDtypeStruct((3, 3, 16, 12), "float8_e4m3fnuz")},
            "argument 'kv': expected dtype float32 or bfloat16 or float8_e4m3fn, got float8_e4m3fnuz",
        ),
        "slots-shape": (
            {"slots": jax.ShapeDtypeStruct((4, 1), "int32")},
            "argument 'slots': expected shape (4), got (4, 1)",
        ),
        "slots-dtype": (
            {"slots": jax.ShapeDtypeStruct((4,), "int16")},
            "argument 'slots': expected dtype int32, got int16",
        ),
        "layer-shape": (
            {"layer": jax.ShapeDtypeStruct((1,), "int32")},
            "argument 'layer': expected shape (), got (1,)",
        ),
        "layer-dtype": (
            {"layer": jax.ShapeDtypeStruct((), "float32")},
            "argument 'layer': expected dtype int32, got float32",
        ),
        "scales-shape": (
            {"scales": jax.ShapeDtypeStruct((3,), "float32")},
            "argument 'scales': expected shape (2), got (3,)",
        ),
        "scales-dtype": (
            {"scales": jax.ShapeDtypeStruct((2,), "bfloat16")},
            "argument 'scales': expected dtype float32, got bfloat16",
        ),
    }

    @staticmethod
    def small(rng: Rng, dtype: str, cache: str) -> Call:
        return finite(make(4, 3, 8, 4, q_offset=2, kv_offset=1)(rng, dtype, cache), rng, dtype)

    @classmethod
    def check_call(cls, call: Call, kernels: str) -> tuple[Any, ...]:
        """Besides the bounds: every row that no slot names keeps its bytes."""
        got = super().check_call(call, kernels)
        before, after = call.arrays["kv"], np.asarray(got[1])
        layers, num_pages, page_size, _ = before.shape
        written = np.zeros((layers, num_pages * page_size), bool)
        for slot in call.arrays["slots"]:
            if 0 <= slot < num_pages * page_size and 0 <= call.arrays["layer"] < layers:
                written[int(call.arrays["layer"]), slot] = True
        kept = ~written.reshape(layers, num_pages, page_size)
        assert same_bits(after[kept], before[kept]), "rows that no slot names have changed"
        assert np.isfinite(oracle.f64(after[~kept])).all()
        return got

    @staticmethod
    def rows(rng: Rng, dtype: str, cache: str) -> tuple[Call, list[tuple[Any, Call]]]:
        # The whole pool is compared: the parts drop all other rows instead of leaving them out.
        call = make(17, 3, 40, 8)(rng, dtype, cache)
        call = call.changed(kv=np.zeros_like(call.arrays["kv"]))
        return call, []

    def test_rows_do_not_depend_on_the_batch(self, variant: tuple[str, ...], rng: Rng) -> None:
        call, _ = self.rows(rng, *variant)
        q_rope, pool = self.call(call, "native")
        flat = np.asarray(pool).reshape(pool.shape[0], -1, pool.shape[3])
        for rows in (slice(0, 1), slice(16, 17), slice(3, 12)):
            rowed = ("q", "kv_a", "positions", "slots")
            part_q, part = self.call(call.changed(**{n: call.arrays[n][rows] for n in rowed}), "native")
            slots = call.arrays["slots"][rows]
            assert same_bits(np.asarray(q_rope)[rows], part_q)
            assert same_bits(flat[1, slots], np.asarray(part).reshape(flat.shape)[1, slots])


def identity_call(values: Array, cache: str, scales: tuple[float, float] = (1.0, 1.0)) -> Call:
    """One token whose key part `values` is stored unrotated: cos = 1, sin = 0."""
    rope = len(values)
    return Call(
        {
            "q": np.zeros((1, 1, rope), np.float32),
            "kv_a": np.concatenate([np.ones(2), values]).astype(np.float32)[None],
            "norm_weight": np.ones(2, np.float32),
            "cos": np.ones((1, rope // 2), np.float32),
            "sin": np.zeros((1, rope // 2), np.float32),
            "positions": np.zeros(1, np.int32),
            "slots": np.zeros(1, np.int32),
            "kv": np.zeros((1, 1, 1, 2 + rope), np.dtype(cache)),
            "layer": np.int32(0),
            "scales": np.array(scales, np.float32),
        },
        {"eps": 0.0, "layout": "half", "q_offset": 0},
    )


def adversarial(dtype: Any) -> Array:
    """Every value of a narrow range of `dtype`, every tie between two, and their float32 neighbours."""
    dtype = np.dtype(dtype)
    if dtype.itemsize == 1:
        codes = np.arange(127, dtype=np.uint8).view(dtype).astype(np.float32)
    else:
        codes = np.arange(0x3F00, 0x4040, dtype=np.uint16).view(dtype).astype(np.float32)
    ties = (codes[:-1] + codes[1:]) / 2
    exact = np.concatenate([codes, ties])
    near = [np.nextafter(exact, np.float32(side * np.inf)) for side in (-1, 1)]
    values = np.concatenate([exact, *near]).astype(np.float32)
    values = values[(values == 0) | (np.abs(values) >= 2.0**-126)]
    values = np.concatenate([values, [448, 449, 463.9, 464, 465, 480, 1e6, 3e38, 0.0]]).astype(np.float32)
    return np.concatenate([values, -values])


@pytest.mark.parametrize("cache", ["bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_stored_codes_are_exact(kernels: str, cache: str) -> None:
    values = adversarial(cache)
    _, pool = TestRopeAppendLatent.call(identity_call(values, cache), kernels)
    got = np.asarray(pool)[0, 0, 0, 2:]
    half = len(values) // 2
    other = np.concatenate([-values[half:], values[:half]])
    want = oracle.round_to(values + other * np.float32(0), np.dtype(cache)).astype(np.dtype(cache))
    wrong = bits(got).reshape(len(values), -1) != bits(want).reshape(len(values), -1)
    shown = [tuple(map(float, triple)) for triple in zip(values, got, want, strict=True)]
    assert not wrong.any(), [shown[i] for i in np.flatnonzero(wrong.any(axis=1))[:5]]


@pytest.mark.parametrize("kernels", KERNELS)
def test_float8_nan_is_stored_as_nan(kernels: str) -> None:
    values = np.array([np.nan, 1.0, -np.nan, -0.0, 2.0, 3.0, 4.0, 5.0], np.float32)
    _, pool = TestRopeAppendLatent.call(identity_call(values, "float8_e4m3fn"), kernels)
    stored = np.asarray(pool)[0, 0, 0, 2:].astype(np.float32)
    # NaN * sin(0) makes the other half of a pair NaN as well: pairs are (i, i + 4).
    assert np.isnan(stored).tolist() == [True, False, True, False] * 2
    assert np.signbit(stored[3])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.bug("sgl-project/sglang#34765", "test")
def test_each_part_has_its_own_scale(kernels: str) -> None:
    values = np.array([1.0, -2.0, 3.0, 4.0], np.float32)
    call = identity_call(values, "float8_e4m3fn", scales=(0.25, 0.125))
    _, pool = TestRopeAppendLatent.check_call(call, kernels)
    assert np.asarray(pool, np.float32)[0, 0, 0].tolist() == [4, 4, 8, -16, 24, 32]
    back = dequantise_rows(pool, jnp.asarray(call.arrays["scales"]), 2)
    assert np.asarray(back)[0, 0, 0].tolist() == [1, 1, 1, -2, 3, 4]


@pytest.mark.parametrize("layout", ["interleaved", "half"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_layouts_by_hand(kernels: str, layout: str) -> None:
    # A quarter turn takes the pair (a, b) to (-b, a) and leaves the order of the columns alone.
    call = identity_call(np.array([1.0, 2.0, 3.0, 4.0], np.float32), "float32")
    zero, one = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    call = call.changed(cos=zero, sin=one, layout=layout, q=np.array([[[5.0, 6.0, 7.0, 8.0]]], np.float32))
    q_rope, pool = TestRopeAppendLatent.call(call, kernels)
    wanted = {"interleaved": ([-6, 5, -8, 7], [-2, 1, -4, 3]), "half": ([-7, -8, 5, 6], [-3, -4, 1, 2])}[
        layout
    ]
    assert np.asarray(q_rope)[0, 0].tolist() == wanted[0]
    assert np.asarray(pool)[0, 0, 0, 2:].tolist() == wanted[1]


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_rotation_by_the_zero_angle_keeps_every_bit(kernels: str) -> None:
    # Pairs are (i, i + 3): -0.0 - b * 0 is -0.0 for b >= 0, and b + a * 0 is -0.0 for b = -0.0 and a < 0.
    values = np.array([-0.0, 1e-30, -1e30, 7.0, -3.5, -0.0], np.float32)
    _, pool = TestRopeAppendLatent.call(identity_call(values, "float32"), kernels)
    assert same_bits(np.asarray(pool)[0, 0, 0, 2:], values)


WHOLE_VECTORS = [
    (3, 40, 600, 64, "interleaved", "float32", "float32", "float32"),
    (3, 5, 600, 16, "half", "float32", "float8_e4m3fn", "bfloat16"),
    (3, 40, 600, 64, "interleaved", "bfloat16", "bfloat16", "bfloat16"),
    (3, 5, 600, 16, "half", "bfloat16", "bfloat16", "bfloat16"),
    (3, 5, 600, 16, "half", "bfloat16", "float8_e4m3fn", "float32"),
    (520, 70, 40, 64, "interleaved", "bfloat16", "bfloat16", "bfloat16"),
    (520, 5, 40, 16, "half", "bfloat16", "bfloat16", "bfloat16"),
    (520, 5, 40, 16, "half", "bfloat16", "float32", "bfloat16"),
    (520, 5, 40, 16, "interleaved", "bfloat16", "float8_e4m3fn", "float32"),
]
"""Tokens, heads, rank, columns that are rotated, their layout, and the types of activations, cache and weights."""


@pytest.mark.parametrize("shape", WHOLE_VECTORS, ids=lambda shape: "-".join(map(str, shape)))
@pytest.mark.parametrize("kernels", KERNELS)
def test_rows_that_a_gpu_moves_in_whole_vectors(
    kernels: str, shape: tuple[int, int, int, int, str, str, str, str], rng: Rng
) -> None:
    """Every width and offset a multiple of 8: kernels of their own, and others again for many tokens."""
    tokens, heads, rank, rope, layout, dtype, cache, weight = shape
    call = make(tokens, heads, rank, rope, layout, q_offset=8, kv_offset=16, slots=(4, -1))(rng, dtype, cache)
    q, kv_a = (call.arrays[name][..., :-rest] for name, rest in (("q", 3), ("kv_a", 2)))
    call = call.changed(
        q=np.concatenate([q, poison((*q.shape[:-1], 8), dtype)], axis=-1),
        kv_a=np.concatenate([kv_a, poison((*kv_a.shape[:-1], 8), dtype)], axis=-1),
        norm_weight=call.arrays["norm_weight"].astype(np.dtype(weight)),
    )
    TestRopeAppendLatent.check_call(call, kernels)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("kernels", KERNELS)
def test_rows_form_stores_what_the_pool_form_stores(kernels: str, cache: str, rng: Rng) -> None:
    call = make(9, 3, 24, 8)(rng, "float32", cache)
    q_rope, pool = TestRopeAppendLatent.call(call, kernels)
    names = ("q", "kv_a", "norm_weight", "cos", "sin", "positions")
    alone = Call({name: call.arrays[name] for name in names}, call.static)
    q_alone, rows = TestRopeLatentRows.call(alone, kernels)
    assert same_bits(q_rope, q_alone)
    if cache == "float32":
        flat = np.asarray(pool).reshape(3, -1, 32)
        assert same_bits(flat[1, call.arrays["slots"]], rows)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("kernels", KERNELS)
def test_the_pool_is_updated_in_place(kernels: str, cache: str, rng: Rng) -> None:
    call = make(5, 2, 24, 8, page_size=16)(rng, "bfloat16", cache)
    pool = noise(rng, (3, 64, 16, 32), cache)
    call = call.changed(kv=pool)
    arrays = TestRopeAppendLatent.device(call)
    kv = arrays.pop("kv")
    function = TestRopeAppendLatent.bound(call, kernels)
    step = jax.jit(lambda kv, rest: function({**rest, "kv": kv}), donate_argnums=0)
    compiled = step.lower(kv, arrays).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == pool.nbytes
    if kernels == "native" or cache == "float32":
        assert memory.temp_size_in_bytes < pool.nbytes
        copies = re.findall(
            r"= \w+\[(?:3,64,16|3,1024),32\]\S* (?:copy|convert|fusion)\(.*", compiled.as_text()
        )
        assert [line for line in copies if "scatter" not in line] == []
    else:
        # XLA:CPU has no in-place scatter of narrow floats: the reference pays one copy, never a float32 one.
        assert memory.temp_size_in_bytes < 2 * pool.nbytes
    address = kv.unsafe_buffer_pointer()
    _, updated = compiled(kv, arrays)
    assert updated.unsafe_buffer_pointer() == address
    assert kv.is_deleted()
    want = TestRopeAppendLatent.call(call, kernels)[1]
    assert same_bits(updated, want)


@pytest.mark.parametrize("kernels", KERNELS)
def test_without_donation_the_callers_pool_is_left_alone(kernels: str, rng: Rng) -> None:
    call = make(5, 2, 24, 8)(rng, "float32", "bfloat16")
    arrays = TestRopeAppendLatent.device(call)
    TestRopeAppendLatent.bound(call, kernels)(arrays)
    assert same_bits(arrays["kv"], call.arrays["kv"])
