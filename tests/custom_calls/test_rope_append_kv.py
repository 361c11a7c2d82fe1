"""rope_append_kv: rotation, every layout's addresses, dropped rows, slot maps, float8 codes, in place."""

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import pytest
from op_base import KERNELS, Array, Builder, Call, OpTests, Rng, bits, normal, same_bits

from custom_calls.kv_cache_layout import KV_CACHE_LAYOUTS, KVCacheSizes, kv_cache_shapes
from custom_calls.registry import library
from custom_calls.rope_append_kv import TARGET, TARGET_MAPPED, rope_append_kv

F8 = ml_dtypes.float8_e4m3fn
INT_MAX, INT_MIN = 2**31 - 1, -(2**31)
CACHES = ("float32", "bfloat16", "float8_e4m3fn")
LAYERS = 3
POSITIONS = 40


def noise(rng: Rng, shape: tuple[int, ...], dtype: Any) -> Array:
    """Random bytes: NaN of every kind, infinities and subnormals among them."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return rng.integers(0, 256, count, np.uint8).view(np.dtype(dtype)).reshape(shape)


def make(
    tokens: int, q_heads: int, kv_heads: int, width: int, cache_layout: str = "flash", layout: str = "interleaved",
    value_width: int | None = None, rope: int | None = None, page_size: int = 16, layer: int = 1,
    slots: tuple[int, ...] = (), together: str = "", scale: float = 1.0,
) -> Builder:  # fmt: skip
    """The caches are noise; `slots` replaces the first tokens' slots; heads of `together` share an axis."""
    rope, value_width = rope or width, value_width or width

    def build(rng: Rng, dtype: str, cache: str) -> Call:
        num_pages = -(-tokens // page_size) + 2
        num_slots = num_pages * page_size
        # Live slots are distinct, and a dropped -1 must not meet a live last slot that would hide it.
        free = [slot for slot in rng.permutation(num_slots - 1) if slot not in slots]
        angle = rng.uniform(-np.pi, np.pi, (POSITIONS, rope // 2))
        sizes = KVCacheSizes(LAYERS, num_pages, page_size, kv_heads, width, value_width)
        k_shape, v_shape = kv_cache_shapes(sizes, np.dtype(cache), cache_layout)
        # Only float8 may look at the scales.
        scales = (0.013, 0.021) if cache == "float8_e4m3fn" else (np.nan, np.nan)
        arrays = {
            "q": normal(rng, (tokens, q_heads, width), dtype, scale),
            "k": normal(rng, (tokens, kv_heads, width), dtype, scale),
            "v": normal(rng, (tokens, kv_heads, value_width), dtype, scale),
            "cos": np.cos(angle).astype(np.float32),
            "sin": np.sin(angle).astype(np.float32),
            "positions": rng.integers(0, POSITIONS, tokens).astype(np.int32),
            "slots": np.array([*slots, *free][:tokens], np.int32),
            "k_cache": noise(rng, k_shape, cache),
            "v_cache": noise(rng, v_shape, cache),
            "layer": np.int32(layer),
            "k_scale": np.float32(scales[0]),
            "v_scale": np.array([scales[1]], np.float32),
            "slot_map": None,
        }
        for name in together:
            arrays[name] = arrays[name].reshape(tokens, int(np.prod(arrays[name].shape[1:])))
        return Call(arrays, {"layout": layout, "cache_layout": cache_layout}, extreme=scale < 1e-30)

    return build


def dropped_slots(page_size: int, cache_layout: str) -> Builder:
    num_slots = (-(-9 // page_size) + 2) * page_size
    bad = (-1, num_slots, num_slots + 1, INT_MAX, INT_MIN, 0)
    return make(9, 2, 1, 16, cache_layout, page_size=page_size, slots=bad)


def clamped_positions(build: Builder) -> Builder:
    def wrapped(rng: Rng, *variant: str) -> Call:
        call = build(rng, *variant)
        positions = call.arrays["positions"].copy()
        positions[:6] = [-1, POSITIONS, POSITIONS + 1, INT_MAX, INT_MIN, POSITIONS - 1]
        return call.changed(positions=positions)

    return wrapped


def mapped(build: Builder, size: int = 300) -> Builder:
    """Every live slot goes through a map; of the first tokens' some have no place, or one outside the caches."""

    def wrapped(rng: Rng, *variant: str) -> Call:
        call = build(rng, *variant)
        targets = call.arrays["slots"].copy()
        num_slots = oracle.kv_rows(call.arrays["k_cache"], call.static["cache_layout"], "k")[
            0, :, :, 0, 0
        ].size
        slots = rng.permutation(size)[: len(targets)].astype(np.int32)
        slot_map = np.full(size, num_slots // 2, np.int32)  # what no token names is a live slot
        targets[:5] = [-1, num_slots, INT_MIN, INT_MAX, -num_slots]
        slot_map[slots] = targets
        # Outside the map: -1 must not read the last entry, nor must anything beyond it.
        slot_map[-1] = slot_map[0] = num_slots // 2
        slots[5:9] = [-1, size, INT_MAX, INT_MIN]
        return call.changed(slots=slots, slot_map=slot_map)

    return wrapped


def written(call: Call, which: str) -> Array:
    """Which elements of a cache the call stores, as a mask of the cache's shape."""
    layout, cache = call.static["cache_layout"], call.arrays[f"{which}_cache"]
    rows = np.zeros(oracle.kv_rows(cache, layout, which).shape, bool)
    layers, num_pages, page_size = rows.shape[:3]
    live = oracle.live_slots(
        call.arrays["slots"], call.arrays["slot_map"], num_pages * page_size, call.arrays["layer"], layers
    )
    for slot in live:
        if slot >= 0:
            rows[int(call.arrays["layer"]), slot // page_size, slot % page_size] = True
    return oracle.kv_cache(rows, layout, which, 16 // cache.dtype.itemsize)


class TestRopeAppendKv(OpTests):
    function = staticmethod(rope_append_kv)
    oracle = staticmethod(oracle.rope_append_kv)
    primitive = "mla_jax.rope_append_kv"
    op_name = "rope_append_kv"
    variants = tuple((dtype, cache) for dtype in ("float32", "bfloat16") for cache in CACHES)
    cases = {  # noqa: RUF012
        "T0-flash": make(0, 4, 2, 16),
        "T0-split_kv": make(0, 4, 2, 16, "split_kv", together="qkv"),
        "T1-H1-page1-R2-half": make(1, 1, 1, 3, "flash", "half", rope=2, page_size=1),
        "T1-page1-split_k": make(1, 2, 1, 16, "split_k", page_size=1),
        "T17-page3-D38-R22": make(17, 6, 2, 38, "flash", rope=22, page_size=3, value_width=5),
        "T17-page3-split_k-R46-half": make(
            17, 6, 3, 48, "split_k", "half", rope=46, page_size=3, value_width=7
        ),
        "T33-page48-split_kv-R34": make(33, 2, 2, 64, "split_kv", rope=34, page_size=48, value_width=21),
        "T5-page16-split_kv-D128-half": make(5, 8, 1, 128, "split_kv", "half", value_width=64),
        # Ways of GPU kernels: several blocks a token, columns that pass through in runs of 8.
        "T3-H16-D192-R64-half": make(3, 16, 4, 192, "flash", "half", rope=64, value_width=128),
        "T9-D48-R16-split_kv": make(9, 4, 2, 48, "split_kv", rope=16, value_width=24),
        "T9-D48-R16-split_k-half": make(9, 4, 2, 48, "split_k", "half", rope=16, value_width=24),
        "T65-page64-split_k": make(65, 4, 2, 32, "split_k", page_size=64),
        "dropped-slots-flash": dropped_slots(3, "flash"),
        "dropped-slots-split_k": dropped_slots(3, "split_k"),
        "dropped-slots-split_kv": dropped_slots(16, "split_kv"),
        "last-slot": make(3, 2, 1, 8, slots=(3 * 16 - 1,)),
        "slot-map-flash": mapped(make(20, 2, 1, 8, "flash", page_size=3)),
        "slot-map-split_k": mapped(make(20, 2, 1, 16, "split_k", "half", page_size=3)),
        "layer-first": make(3, 1, 1, 16, "split_k", layer=0),
        "layer-last": make(3, 1, 1, 16, "split_k", layer=2),
        "layer-minus-one": make(3, 1, 1, 16, "split_k", layer=-1),
        "layer-too-large": make(3, 1, 1, 16, "split_k", layer=3),
        "layer-int-max": make(3, 1, 1, 16, "split_k", layer=INT_MAX),
        "layer-int-min": make(3, 1, 1, 16, "split_k", layer=INT_MIN),
        "positions-clamp": clamped_positions(make(9, 1, 1, 8)),
        "saturating": make(5, 1, 1, 16, "split_kv", scale=1e4),
        "tiny": make(5, 1, 1, 16, "split_kv", scale=1e-4),
        "subnormal": make(3, 2, 1, 24, "flash", "half", rope=8, scale=1e-39),
    }
    errors = {  # noqa: RUF012
        "layout": ({"layout": "neox"}, "argument 'layout': expected 'interleaved' or 'half', got 'neox'"),
        "cache-layout": (
            {"cache_layout": "paged"},
            "argument 'cache_layout': expected 'flash' or 'split_k' or 'split_kv', got 'paged'",
        ),
        "k-cache-rank": (
            {"cache_layout": "split_k"},
            "argument 'k_cache': expected shape (L, num_pages, Hk, D / 4, page_size, 4), got (3, 3, 16, 2, 24)",
        ),
        "k-cache-dtype": (
            {"k_cache": jax.ShapeDtypeStruct((3, 3, 16, 2, 24), "float8_e4m3fnuz")},
            "argument 'k_cache': expected dtype float32 or bfloat16 or float8_e4m3fn, got float8_e4m3fnuz",
        ),
        "v-cache-dtype": (
            {"v_cache": jax.ShapeDtypeStruct((3, 3, 16, 2, 24), "bfloat16")},
            "argument 'v_cache': expected dtype float32, got bfloat16",
        ),
        "v-cache-heads": (
            {"v_cache": jax.ShapeDtypeStruct((3, 3, 16, 3, 16), "float32")},
            "argument 'v_cache': expected shape (3, 3, 16, 2, Dv), got (3, 3, 16, 3, 16)",
        ),
        "q-width": (
            {"q": jax.ShapeDtypeStruct((4, 6, 23), "float32")},
            "argument 'q': expected shape (T, Hq, 24) or (T, Hq * 24) with Hq a positive multiple of the caches' 2 "
            "heads, got (4, 6, 23)",
        ),
        "q-width-together": (
            {"q": jax.ShapeDtypeStruct((4, 143), "float32")},
            "argument 'q': expected shape (T, Hq, 24) or (T, Hq * 24) with Hq a positive multiple of the caches' 2 "
            "heads, got (4, 143)",
        ),
        "q-heads": (
            {"q": jax.ShapeDtypeStruct((4, 5, 24), "float32")},
            "argument 'q': expected shape (T, Hq, 24) or (T, Hq * 24) with Hq a positive multiple of the caches' 2 "
            "heads, got (4, 5, 24)",
        ),
        "q-no-heads": (
            {"q": jax.ShapeDtypeStruct((4, 0), "float32")},
            "argument 'q': expected shape (T, Hq, 24) or (T, Hq * 24) with Hq a positive multiple of the caches' 2 "
            "heads, got (4, 0)",
        ),
        "q-rank": (
            {"q": jax.ShapeDtypeStruct((144,), "float32")},
            "argument 'q': expected shape (T, Hq, 24) or (T, Hq * 24) with Hq a positive multiple of the caches' 2 "
            "heads, got (144,)",
        ),
        "q-dtype": (
            {"q": jax.ShapeDtypeStruct((4, 6, 24), "float16")},
            "argument 'q': expected dtype float32 or bfloat16, got float16",
        ),
        "k-tokens": (
            {"k": jax.ShapeDtypeStruct((5, 2, 24), "float32")},
            "argument 'k': expected shape (4, 2, 24) or (4, 48), got (5, 2, 24)",
        ),
        "k-heads": (
            {"k": jax.ShapeDtypeStruct((4, 72), "float32")},
            "argument 'k': expected shape (4, 2, 24) or (4, 48), got (4, 72)",
        ),
        "k-dtype": (
            {"k": jax.ShapeDtypeStruct((4, 2, 24), "bfloat16")},
            "argument 'k': expected dtype float32, got bfloat16",
        ),
        "v-tokens": (
            {"v": jax.ShapeDtypeStruct((3, 2, 20), "float32")},
            "argument 'v': expected shape (4, 2, 20) or (4, 40), got (3, 2, 20)",
        ),
        "v-width": (
            {"v": jax.ShapeDtypeStruct((4, 2, 24), "float32")},
            "argument 'v': expected shape (4, 2, 20) or (4, 40), got (4, 2, 24)",
        ),
        "cos-rank": (
            {"cos": jax.ShapeDtypeStruct((40, 1, 1, 4), "float32")},
            "argument 'cos': expected shape (M, R / 2), got (40, 1, 1, 4)",
        ),
        "cos-dtype": (
            {"cos": jax.ShapeDtypeStruct((40, 4), "bfloat16")},
            "argument 'cos': expected dtype float32, got bfloat16",
        ),
        "sin-dtype": (
            {"sin": jax.ShapeDtypeStruct((40, 4), "bfloat16")},
            "argument 'sin': expected dtype float32, got bfloat16",
        ),
        "sin-shape": (
            {"sin": jax.ShapeDtypeStruct((39, 4), "float32")},
            "argument 'sin': expected shape (40, 4), got (39, 4)",
        ),
        "table-empty": (
            {"cos": jax.ShapeDtypeStruct((0, 4), "float32"), "sin": jax.ShapeDtypeStruct((0, 4), "float32")},
            "argument 'cos': expected a range inside [0, 0) of positions, got [0, 0)",
        ),
        "table-too-wide": (
            {
                "cos": jax.ShapeDtypeStruct((9, 13), "float32"),
                "sin": jax.ShapeDtypeStruct((9, 13), "float32"),
            },
            "argument 'cos': expected a range inside [0, 24) of the key's columns, got [0, 26)",
        ),
        "table-that-rotates-nothing": (
            {"cos": jax.ShapeDtypeStruct((9, 0), "float32"), "sin": jax.ShapeDtypeStruct((9, 0), "float32")},
            "argument 'cos': expected a range inside [0, 24) of the key's columns, got [0, 0)",
        ),
        "positions-shape": (
            {"positions": jax.ShapeDtypeStruct((5,), "int32")},
            "argument 'positions': expected shape (4), got (5,)",
        ),
        "positions-dtype": (
            {"positions": jax.ShapeDtypeStruct((4,), "uint32")},
            "argument 'positions': expected dtype int32, got uint32",
        ),
        "slots-shape": (
            {"slots": jax.ShapeDtypeStruct((3,), "int32")},
            "argument 'slots': expected shape (4), got (3,)",
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
        "k-scale-shape": (
            {"k_scale": jax.ShapeDtypeStruct((2,), "float32")},
            "argument 'k_scale': expected shape () or (1), got (2,)",
        ),
        "v-scale-shape": (
            {"v_scale": jax.ShapeDtypeStruct((1, 1), "float32")},
            "argument 'v_scale': expected shape () or (1), got (1, 1)",
        ),
        "k-scale-dtype": (
            {"k_scale": jax.ShapeDtypeStruct((), "bfloat16")},
            "argument 'k_scale': expected dtype float32, got bfloat16",
        ),
        "v-scale-dtype": (
            {"v_scale": jax.ShapeDtypeStruct((1,), "float16")},
            "argument 'v_scale': expected dtype float32, got float16",
        ),
        "slot-map-shape": (
            {"slot_map": jax.ShapeDtypeStruct((4, 2), "int32")},
            "argument 'slot_map': expected shape (N), got (4, 2)",
        ),
        "slot-map-dtype": (
            {"slot_map": jax.ShapeDtypeStruct((4,), "uint32")},
            "argument 'slot_map': expected dtype int32, got uint32",
        ),
    }

    @staticmethod
    def small(rng: Rng, dtype: str, cache: str) -> Call:
        return make(4, 6, 2, 24, "flash", "half", rope=8, value_width=20)(rng, dtype, cache)

    @classmethod
    def check_call(cls, call: Call, kernels: str) -> tuple[Any, ...]:
        """Besides the bounds: every element that no slot names keeps its bytes."""
        got = super().check_call(call, kernels)
        for which, cache in (("k", got[1]), ("v", got[2])):
            before, after, stored = call.arrays[f"{which}_cache"], np.asarray(cache), written(call, which)
            assert same_bits(after[~stored], before[~stored]), f"{which}: what no slot names has changed"
            assert np.isfinite(oracle.f64(after[stored])).all()
        return got

    @staticmethod
    def rows(rng: Rng, dtype: str, cache: str) -> tuple[Call, list[tuple[Any, Call]]]:
        # The whole pool is compared: the parts drop all other rows instead of leaving them out.
        return make(19, 3, 1, 32, "split_k", rope=22)(rng, dtype, cache), []

    def test_rows_do_not_depend_on_the_batch(self, variant: tuple[str, ...], rng: Rng) -> None:
        call, _ = self.rows(rng, *variant)
        names = ("q", "k", "v", "positions", "slots")
        q_rotated, *caches = self.call(call, "native")
        for rows in (slice(0, 1), slice(16, 19), slice(3, 12)):
            part = call.changed(**{name: call.arrays[name][rows] for name in names})
            part_q, *part_caches = self.call(part, "native")
            assert same_bits(np.asarray(q_rotated)[rows], part_q)
            for which, cache, part_cache in zip("kv", caches, part_caches, strict=True):
                stored = written(part, which)
                assert stored.any()
                assert same_bits(np.asarray(cache)[stored], np.asarray(part_cache)[stored])


@pytest.mark.parametrize("together", ["".join(c) for n in range(4) for c in itertools.combinations("qkv", n)])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.bug("sgl-project/sglang#21315", "test")
def test_heads_apart_or_together(kernels: str, together: str, rng: Rng) -> None:
    call = make(4, 6, 2, 24, "flash", "half", rope=8, value_width=20)(rng, "bfloat16", "float32")
    arrays = {name: call.arrays[name].reshape(4, -1) for name in together}
    got, want = TestRopeAppendKv.call(call.changed(**arrays), kernels), TestRopeAppendKv.call(call, kernels)
    assert got[0].shape == arrays.get("q", call.arrays["q"]).shape
    assert same_bits(np.asarray(got[0]).reshape(4, 6, 24), want[0])
    assert same_bits(got[1], want[1])
    assert same_bits(got[2], want[2])


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("cache_layout", KV_CACHE_LAYOUTS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_addresses_by_hand(kernels: str, cache_layout: str, cache: str, rng: Rng) -> None:
    """Every element lies where the docstring of `kv_cache_layout` says."""
    heads, page_size, slot, layer = 2, 32, 2 * 32 + 19, 1
    call = make(1, heads, heads, 48, cache_layout, page_size=page_size, slots=(slot,))(rng, "float32", cache)
    x = 16 // np.dtype(cache).itemsize
    # Multiples of 1/8 in float8's range of whole numbers: every cache holds them exactly.
    k, v = ((rng.integers(1, 16, (1, heads, 48)) / 8).astype(np.float32) for _ in range(2))
    still = {"cos": np.ones((1, 24), np.float32), "sin": np.zeros((1, 24), np.float32)}
    ones = {"k_scale": np.float32(1), "v_scale": np.float32(1)}
    _, k_cache, v_cache = TestRopeAppendKv.call(call.changed(k=k, v=v, **still, **ones), kernels)
    k_cache, v_cache = np.asarray(k_cache), np.asarray(v_cache)
    page, o = 2, 19
    for h, d in itertools.product(range(heads), range(48)):
        key_at = (layer, page, o, h, d) if cache_layout == "flash" else (layer, page, h, d // x, o, d % x)
        value_at = {
            "flash": (layer, page, o, h, d),
            "split_k": (layer, page, h, d, o),
            "split_kv": (layer, page, h, o // x, d, o % x),
        }[cache_layout]
        assert float(k_cache[key_at]) == k[0, h, d]
        assert float(v_cache[value_at]) == v[0, h, d]


def identity_call(
    values: Array, cache: str, cache_layout: str = "flash", scales: tuple[float, float] = (1.0, 1.0)
) -> Call:
    """One token whose key and value are `values`, stored unrotated: cos = 1, sin = 0."""
    width = len(values)
    sizes = KVCacheSizes(1, 1, 16, 1, width, width)
    k_shape, v_shape = kv_cache_shapes(sizes, np.dtype(cache), cache_layout)
    row = values.astype(np.float32)[None, None]
    return Call(
        {
            "q": row,
            "k": row,
            "v": row,
            "cos": np.ones((1, width // 2), np.float32),
            "sin": np.zeros((1, width // 2), np.float32),
            "positions": np.zeros(1, np.int32),
            "slots": np.zeros(1, np.int32),
            "k_cache": np.zeros(k_shape, np.dtype(cache)),
            "v_cache": np.zeros(v_shape, np.dtype(cache)),
            "layer": np.int32(0),
            "k_scale": np.float32(scales[0]),
            "v_scale": np.float32(scales[1]),
            "slot_map": None,
        },
        {"layout": "half", "cache_layout": cache_layout},
    )


def stored_rows(call: Call, caches: tuple[Any, ...]) -> tuple[Array, Array]:
    """What slot 0 of layer 0 holds for head 0: key and value."""
    layout = call.static["cache_layout"]
    k, v = (oracle.kv_rows(np.asarray(c), layout, which) for c, which in zip(caches, "kv", strict=True))
    return k[0, 0, 0, 0], v[0, 0, 0, 0]


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
    values = np.concatenate([exact, *near, [448, 449, 463.9, 464, 465, 480, 1e6, 3e38, 0.0]]).astype(
        np.float32
    )
    values = values[(values == 0) | (np.abs(values) >= 2.0**-126)]
    values = np.concatenate([values, -values])
    return np.pad(values, (0, -len(values) % 32), constant_values=1.0)


@pytest.mark.parametrize("cache_layout", ["flash", "split_kv"])
@pytest.mark.parametrize("cache", ["bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_stored_codes_are_exact(kernels: str, cache: str, cache_layout: str) -> None:
    values = adversarial(cache)
    call = identity_call(values, cache, cache_layout)
    _, *caches = TestRopeAppendKv.call(call, kernels)
    # A rotation by the zero angle turns a -0 whose partner is positive into +0.
    other = np.concatenate([-values[len(values) // 2 :], values[: len(values) // 2]])
    turned = values + other * np.float32(0)
    for got, exact in zip(stored_rows(call, tuple(caches)), (turned, values), strict=True):
        want = oracle.round_to(exact, np.dtype(cache)).astype(np.dtype(cache))
        wrong = np.flatnonzero(bits(got).reshape(len(values), -1) != bits(want).reshape(len(values), -1))
        assert wrong.size == 0, [(float(values[i]), got[i], want[i]) for i in wrong[:5] % len(values)]


@pytest.mark.parametrize("kernels", KERNELS)
def test_float8_nan_is_stored_as_nan(kernels: str) -> None:
    values = np.array([np.nan, 1.0, -np.nan, -0.0, 2.0, np.inf, 4.0, -np.inf], np.float32)
    call = identity_call(values, "float8_e4m3fn").changed(k=np.ones((1, 1, 8), np.float32))
    _, *caches = TestRopeAppendKv.call(call, kernels)
    key, value = stored_rows(call, tuple(caches))
    assert np.asarray(key, np.float32).tolist() == [1] * 8
    assert np.isnan(value.astype(np.float32)).tolist() == [True, False] * 2 + [False] * 4
    assert np.asarray(value, np.float32)[4:].tolist() == [2, 448, 4, -448]
    assert np.signbit(np.float32(value[3]))


@pytest.mark.parametrize("cache_layout", ["flash", "split_k"])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.bug("sgl-project/sglang#21315", "test")
def test_keys_and_values_have_their_own_scale(kernels: str, cache_layout: str) -> None:
    values = np.tile(np.array([1.0, -2.0, 3.0, 4.0], np.float32), 4)
    call = identity_call(values, "float8_e4m3fn", cache_layout, scales=(0.25, 0.125))
    q_rotated, *caches = TestRopeAppendKv.check_call(call, kernels)
    key, value = stored_rows(call, tuple(caches))
    assert np.asarray(key, np.float32).tolist() == (4 * values).tolist()
    assert np.asarray(value, np.float32).tolist() == (8 * values).tolist()
    assert np.asarray(q_rotated)[0, 0].tolist() == values.tolist(), "the query is never scaled"


@pytest.mark.parametrize("layout", ["interleaved", "half"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_layouts_by_hand(kernels: str, layout: str) -> None:
    # A quarter turn takes the pair (a, b) to (-b, a); the last two columns are not rotated.
    call = identity_call(np.arange(1.0, 7.0), "float32")
    zero, one = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    call = call.changed(cos=zero, sin=one, layout=layout, q=10 * call.arrays["q"])
    q_rotated, *caches = TestRopeAppendKv.call(call, kernels)
    wanted = {"interleaved": [-2, 1, -4, 3, 5, 6], "half": [-3, -4, 1, 2, 5, 6]}[layout]
    key, value = stored_rows(call, tuple(caches))
    assert key.tolist() == wanted
    assert np.asarray(q_rotated)[0, 0].tolist() == [10 * x for x in wanted]
    assert value.tolist() == [1, 2, 3, 4, 5, 6], "values are not rotated"


@pytest.mark.parametrize("cache_layout", KV_CACHE_LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_what_is_not_rotated_keeps_its_bits(kernels: str, dtype: str, cache_layout: str, rng: Rng) -> None:
    """Columns beyond R of the query, and values in a cache of their own dtype: NaN, -0 and subnormals too."""
    call = make(5, 4, 2, 48, cache_layout, rope=16)(rng, dtype, dtype)
    q, v = call.arrays["q"].copy(), noise(rng, (5, 2, 48), dtype)
    q[:, :, 16:] = noise(rng, (5, 4, 32), dtype)
    q_rotated, _, v_cache = TestRopeAppendKv.call(call.changed(q=q, v=v), kernels)
    got, want = np.asarray(q_rotated)[:, :, 16:], q[:, :, 16:]
    # XLA:CPU moves bfloat16 through float32, which may alter what a NaN carries, in the reference.
    bare = np.isnan(oracle.f64(want)) if kernels == "reference" else np.zeros(want.shape, bool)
    assert bare.sum() < bare.size / 20
    assert np.array_equal(np.isnan(oracle.f64(got)), np.isnan(oracle.f64(want)))
    assert same_bits(got[~bare], want[~bare])
    rows = oracle.kv_rows(np.asarray(v_cache), cache_layout, "v")
    assert same_bits(rows.reshape(LAYERS, -1, 2, 48)[1, call.arrays["slots"]], v)


@pytest.mark.parametrize("tokens", [1, 200], ids=["one-thread", "threads"])
def test_the_kernel_keeps_subnormals(tokens: int, rng: Rng) -> None:
    """XLA's threads flush them to zero; then a row would depend on the thread that it met."""
    call = make(tokens, 16, 4, 32, "flash", "half")(rng, "float32", "float32")
    tiny = {name: (call.arrays[name] * 1e-39).astype(np.float32) for name in "qkv"}
    still = {"cos": np.ones((1, 16), np.float32), "sin": np.zeros((1, 16), np.float32)}
    assert (tiny["k"] != 0).all()
    q_rotated, k_cache, v_cache = TestRopeAppendKv.call(call.changed(**tiny, **still), "native")
    assert np.array_equal(q_rotated, tiny["q"])
    for cache, name in ((k_cache, "k"), (v_cache, "v")):
        stored = np.asarray(cache).reshape(LAYERS, -1, 4, 32)[1, call.arrays["slots"]]
        assert np.array_equal(stored, tiny[name])


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_slot_map_of_no_entries_stores_nothing(kernels: str, rng: Rng) -> None:
    call = make(4, 2, 1, 8)(rng, "float32", "bfloat16").changed(slot_map=np.zeros(0, np.int32))
    _, k_cache, v_cache = TestRopeAppendKv.call(call, kernels)
    assert same_bits(k_cache, call.arrays["k_cache"])
    assert same_bits(v_cache, call.arrays["v_cache"])


@pytest.mark.parametrize("where", ["num_layers", "num_pages"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_caches_without_rows_store_nothing(kernels: str, where: str, rng: Rng) -> None:
    call = make(4, 2, 1, 8, layer=0)(rng, "float32", "bfloat16")
    sizes = KVCacheSizes(1, 1, 16, 1, 8, 8)._replace(**{where: 0})
    shapes = kv_cache_shapes(sizes, jnp.bfloat16, "flash")
    empty = {
        f"{which}_cache": noise(rng, shape, "bfloat16") for which, shape in zip("kv", shapes, strict=True)
    }
    q_rotated, k_cache, v_cache = TestRopeAppendKv.call(call.changed(**empty), kernels)
    assert (k_cache.shape, v_cache.shape) == shapes
    assert same_bits(q_rotated, TestRopeAppendKv.call(call, kernels)[0])


@pytest.mark.bug("sgl-project/sglang#21315", "test")
def test_the_slot_map_has_a_kernel_of_its_own(rng: Rng) -> None:
    call = TestRopeAppendKv.small_call(rng)
    for slot_map, target in ((None, TARGET), (np.zeros(7, np.int32), TARGET_MAPPED)):
        one = call.changed(slot_map=slot_map)
        text = jax.jit(TestRopeAppendKv.bound(one, "native")).lower(TestRopeAppendKv.device(one)).as_text()
        assert re.findall(r"@(mla_jax\.\w+\.v1)", text) == [target]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("cache_layout", KV_CACHE_LAYOUTS)
@pytest.mark.parametrize("mapped", [False, True], ids=["slots", "slot-map"])
def test_the_caches_are_updated_in_place(mapped: bool, cache_layout: str, cache: str, rng: Rng) -> None:
    call = make(5, 4, 2, 64, cache_layout, page_size=16)(rng, "bfloat16", cache)
    shapes = kv_cache_shapes(KVCacheSizes(LAYERS, 64, 16, 2, 64, 64), np.dtype(cache), cache_layout)
    k_pool, v_pool = (noise(rng, shape, cache) for shape in shapes)
    slot_map = np.arange(48, dtype=np.int32)[::-1].copy() if mapped else None
    call = call.changed(k_cache=k_pool, v_cache=v_pool, slot_map=slot_map)
    arrays = TestRopeAppendKv.device(call)
    donated = {name: arrays.pop(name) for name in ("k_cache", "v_cache")}
    function = TestRopeAppendKv.bound(call, "native")
    step = jax.jit(lambda caches, rest: function({**rest, **caches}), donate_argnums=0)
    compiled = step.lower(donated, arrays).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == k_pool.nbytes + v_pool.nbytes
    assert memory.temp_size_in_bytes < k_pool.nbytes
    sizes = {
        tuple(map(int, m.split(","))) for m in re.findall(r"= \w+\[([\d,]+)\]\S* copy\(", compiled.as_text())
    }
    assert not {size for size in sizes if np.prod(size) >= k_pool.size}
    addresses = [donated[name].unsafe_buffer_pointer() for name in ("k_cache", "v_cache")]
    _, *updated = compiled(donated, arrays)
    assert [array.unsafe_buffer_pointer() for array in updated] == addresses
    assert all(array.is_deleted() for array in donated.values())
    for got, want in zip(updated, TestRopeAppendKv.call(call, "native")[1:], strict=True):
        assert same_bits(got, want)


@pytest.mark.parametrize("kernels", KERNELS)
def test_without_donation_the_callers_caches_are_left_alone(kernels: str, rng: Rng) -> None:
    call = make(5, 2, 1, 16, "split_k")(rng, "float32", "bfloat16")
    arrays = TestRopeAppendKv.device(call)
    TestRopeAppendKv.bound(call, kernels)(arrays)
    assert same_bits(arrays["k_cache"], call.arrays["k_cache"])
    assert same_bits(arrays["v_cache"], call.arrays["v_cache"])


@pytest.mark.parametrize("cache_layout", KV_CACHE_LAYOUTS)
@pytest.mark.bug("ROCm/aiter#2768", "test")
@pytest.mark.bug("ROCm/aiter#4474", "test")
def test_caches_of_more_than_32_bits_of_elements_compile(cache_layout: str, rng: Rng) -> None:
    """The reference's coordinates stay in 32 bits; the native kernel's addresses are checked by its build."""
    call = TestRopeAppendKv.small_call(rng).changed(cache_layout=cache_layout)
    sizes = KVCacheSizes(2, 2**20, 64, 2, 48, 48)
    k_shape, v_shape = kv_cache_shapes(sizes, F8, cache_layout)
    assert np.prod(k_shape, dtype=np.int64) > 2**32
    arrays = {
        **{name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in TestRopeAppendKv.device(call).items()},
        **{name: jax.ShapeDtypeStruct((4, 2, 48), "bfloat16") for name in "qkv"},
        "k_cache": jax.ShapeDtypeStruct(k_shape, F8),
        "v_cache": jax.ShapeDtypeStruct(v_shape, F8),
    }
    for kernels in KERNELS:
        lowered = jax.jit(TestRopeAppendKv.bound(call, kernels)).lower(arrays)
        assert [out.shape for out in lowered.out_info] == [(4, 2, 48), k_shape, v_shape]


def ffi_operands(cache_layout: str, cache: str = "bfloat16") -> dict[str, tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of a right call of the native kernel: T = 4, Hq = 6, Hk = 2, D = 16, Dv = 12, R = 8."""
    k_shape, v_shape = kv_cache_shapes(KVCacheSizes(3, 5, 16, 2, 16, 12), np.dtype(cache), cache_layout)
    return {
        "q": ((4, 6, 16), "float32"),
        "k": ((4, 2, 16), "float32"),
        "v": ((4, 2, 12), "float32"),
        "cos": ((9, 4), "float32"),
        "sin": ((9, 4), "float32"),
        "positions": ((4,), "int32"),
        "slots": ((4,), "int32"),
        "k_cache": (k_shape, cache),
        "v_cache": (v_shape, cache),
        "layer": ((), "int32"),
        "k_scale": ((), "float32"),
        "v_scale": ((), "float32"),
        "slot_map": ((7,), "int32"),
        "q_rotated": ((4, 6, 16), "float32"),
        "new_k_cache": (k_shape, cache),
        "new_v_cache": (v_shape, cache),
    }


CACHES = {7: 1, 8: 2}
"""The caches' places among operands and results."""


def ffi_run(
    operands: dict[str, tuple[tuple[int, ...], str]], target: str, aliases: dict[int, int], **attributes: int
) -> list[Array]:
    """The native kernel on ones."""
    results = ("q_rotated", "new_k_cache", "new_v_cache")
    outs = [jax.ShapeDtypeStruct(*operands[name]) for name in results]
    left_out = {*results, *(() if target == TARGET_MAPPED else ("slot_map",))}
    arrays = [jnp.ones(*spec) for name, spec in operands.items() if name not in left_out]
    assert target in library("cpu").targets
    call = jax.ffi.ffi_call(target, outs, input_output_aliases=aliases)
    return list(
        map(np.asarray, call(*arrays, **{name: np.int64(value) for name, value in attributes.items()}))
    )


FFI_ERRORS: dict[str, tuple[str, dict[str, Any], dict[str, int], str]] = {
    "q-type": ("flash", {"q": ((4, 6, 16), "float16")}, {}, "'q': expected float32 or bfloat16, got float16"),
    "q-rank": ("flash", {"q": ((4, 96), "float32")}, {}, "'q': expected rank 3, got shape (4, 96)"),
    "k-type": ("flash", {"k": ((4, 2, 16), "bfloat16")}, {}, "'k': expected float32 (the type of 'q'), got bfloat16"),
    "k-tokens": ("flash", {"k": ((5, 2, 16), "float32")}, {}, "'k': expected shape (4, 2, 16), got shape (5, 2, 16)"),
    "v-type": ("flash", {"v": ((4, 2, 12), "bfloat16")}, {}, "'v': expected float32 (the type of 'q'), got bfloat16"),
    "v-heads": ("flash", {"v": ((4, 3, 12), "float32")}, {}, "'v': expected shape (4, 2, 12), got shape (4, 3, 12)"),
    "q-rotated": (
        "flash", {"q_rotated": ((4, 6, 15), "float32")}, {},
        "'q_rotated': expected shape (4, 6, 16), got shape (4, 6, 15)",
    ),
    "q-rotated-type": (
        "flash", {"q_rotated": ((4, 6, 16), "bfloat16")}, {},
        "'q_rotated': expected float32 (the type of 'q'), got bfloat16",
    ),
    "cos-type": (
        "flash", {"cos": ((9, 4), "bfloat16")}, {}, "'cos': expected float32 (the type of 'sin'), got bfloat16"
    ),
    "sin-type": (
        "flash", {"sin": ((9, 4), "bfloat16")}, {}, "'sin': expected float32 (the type of 'cos'), got bfloat16"
    ),
    "sin-shape": ("flash", {"sin": ((9, 5), "float32")}, {}, "'sin': expected shape (9, 4), got shape (9, 5)"),
    "no-table": (
        "flash", {"cos": ((0, 4), "float32"), "sin": ((0, 4), "float32")}, {},
        "'cos': expected at least one row, got (0, 4)",
    ),
    "wide-table": (
        "flash", {"cos": ((9, 9), "float32"), "sin": ((9, 9), "float32")}, {},
        "'cos': expected at most 8 columns, got (9, 9)",
    ),
    "positions": ("flash", {"positions": ((3,), "int32")}, {}, "'positions': expected shape (4), got shape (3)"),
    "positions-type": ("flash", {"positions": ((4,), "uint32")}, {}, "'positions': expected int32, got uint32"),
    "slots": ("flash", {"slots": ((5,), "int32")}, {}, "'slots': expected shape (4), got shape (5)"),
    "slots-type": ("flash", {"slots": ((4,), "uint32")}, {}, "'slots': expected int32, got uint32"),
    "layer": ("flash", {"layer": ((1,), "int32")}, {}, "'layer': expected shape (), got shape (1)"),
    "layer-type": ("flash", {"layer": ((), "uint32")}, {}, "'layer': expected int32, got uint32"),
    "k-scale": ("flash", {"k_scale": ((2,), "float32")}, {}, "'k_scale': expected shape (), got shape (2)"),
    "v-scale": ("flash", {"v_scale": ((2,), "float32")}, {}, "'v_scale': expected shape (), got shape (2)"),
    "v-scale-type": (
        "flash", {"v_scale": ((), "bfloat16")}, {}, "'v_scale': expected float32 (the type of 'cos'), got bfloat16"
    ),
    "layout": ("flash", {}, {"layout": 2}, "'layout': expected 0 (interleaved) or 1 (half), got 2"),
    "cache-layout": (
        "flash", {}, {"cache_layout": 3}, "'cache_layout': expected 0 (flash), 1 (split_k) or 2 (split_kv), got 3"
    ),
    "k-cache-type": (
        "flash", {"k_cache": ((3, 5, 16, 2, 16), "float16")}, {},
        "'k_cache': expected float32 or bfloat16 or float8_e4m3fn, got float16",
    ),
    "v-cache-type": (
        "flash", {"v_cache": ((3, 5, 16, 2, 12), "float32")}, {},
        "'v_cache': expected bfloat16 (the type of 'k_cache'), got float32",
    ),
    "k-cache-rank": (
        "flash", {"k_cache": ((3, 5, 2, 2, 16, 8), "bfloat16")}, {}, "'k_cache': expected rank 5, got shape"
    ),
    "k-cache-of-flash": (
        "flash", {"k_cache": ((3, 5, 16, 3, 16), "bfloat16")}, {},
        "'k_cache': expected shape (3, 5, 16, 2, 16), got shape (3, 5, 16, 3, 16)",
    ),
    "v-cache-of-flash": (
        "flash", {"v_cache": ((3, 4, 16, 2, 12), "bfloat16")}, {},
        "'v_cache': expected shape (3, 5, 16, 2, 12), got shape (3, 4, 16, 2, 12)",
    ),
    "k-cache-of-split-k": (
        "split_k", {"k_cache": ((3, 5, 2, 4, 16, 4), "bfloat16")}, {},
        "'k_cache': expected shape (3, 5, 2, 2, 16, 8), got shape (3, 5, 2, 4, 16, 4)",
    ),
    "v-cache-of-split-k": (
        "split_k", {"v_cache": ((3, 5, 2, 12, 15), "bfloat16")}, {},
        "'v_cache': expected shape (3, 5, 2, 12, 16), got shape (3, 5, 2, 12, 15)",
    ),
    "v-cache-of-split-kv": (
        "split_kv", {"v_cache": ((3, 5, 2, 12, 16), "bfloat16")}, {},
        "'v_cache': expected shape (3, 5, 2, 2, 12, 8), got shape (3, 5, 2, 12, 16)",
    ),
    "new-k-cache": (
        "flash", {"new_k_cache": ((2, 5, 16, 2, 16), "bfloat16")}, {},
        "'new_k_cache': expected shape (3, 5, 16, 2, 16), got shape (2, 5, 16, 2, 16)",
    ),
    "new-v-cache-type": (
        "flash", {"new_v_cache": ((3, 5, 16, 2, 12), "float32")}, {},
        "'new_v_cache': expected bfloat16 (the type of 'k_cache'), got float32",
    ),
    "key-width": (
        "split_k", {name: ((4, heads, 20), "float32") for name, heads in (("q", 6), ("k", 2), ("q_rotated", 6))}, {},
        "'k': expected a width that is a multiple of 8, got 20",
    ),
    "page-size": (
        "split_kv", {"k_cache": ((3, 5, 2, 2, 12, 8), "bfloat16")}, {},
        "'k_cache': expected a page size that is a multiple of 8, got 12",
    ),
    "no-page-size": (
        "flash", {"k_cache": ((3, 5, 0, 2, 16), "bfloat16")}, {},
        "'k_cache': expected a positive page size, got (3, 5, 0, 2, 16)",
    ),
    "slot-map": ("flash", {"slot_map": ((7, 1), "int32")}, {}, "'slot_map': expected shape (any), got shape (7, 1)"),
    "slot-map-type": ("flash", {"slot_map": ((7,), "uint32")}, {}, "'slot_map': expected int32, got uint32"),
    "k-cache-own": ("flash", {}, {}, "'new_k_cache': expected the buffer of 'k_cache' (an alias)"),
}  # fmt: skip


@pytest.mark.parametrize("name", FFI_ERRORS)
def test_the_kernel_refuses_wrong_buffers(name: str) -> None:
    cache_layout, changes, attributes, message = FFI_ERRORS[name]
    operands = {**ffi_operands(cache_layout), **changes}
    settings = {"layout": 0, "cache_layout": KV_CACHE_LAYOUTS.index(cache_layout), **attributes}
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        ffi_run(operands, TARGET_MAPPED, {}, **settings)
    assert f"mla_jax.rope_append_kv_mapped: argument {message}" in str(raised.value)


@pytest.mark.parametrize("target", [TARGET, TARGET_MAPPED])
@pytest.mark.parametrize("cache_layout", KV_CACHE_LAYOUTS)
def test_the_kernel_takes_right_buffers(cache_layout: str, target: str) -> None:
    """Also where a page holds a single pack."""
    for cache in ("bfloat16", "float8_e4m3fn"):
        operands = ffi_operands(cache_layout, cache)
        code = KV_CACHE_LAYOUTS.index(cache_layout)
        q_rotated, *caches = ffi_run(operands, target, CACHES, layout=0, cache_layout=code)
        # cos = sin = 1 takes (1, 1) to (0, 2); layer 1, slot 1 holds a key, all else is the caches' own.
        turned = np.where(np.arange(16) < 8, np.arange(16) % 2 * 2, 1)
        assert np.array_equal(q_rotated, np.broadcast_to(turned, (4, 6, 16)))
        for which, rows in zip("kv", (turned, 1), strict=True):
            want = np.ones(oracle.kv_rows(caches["kv".index(which)], cache_layout, which).shape)
            want[1, 0, 1] = rows
            got = oracle.kv_rows(caches["kv".index(which)], cache_layout, which)
            assert np.array_equal(oracle.f64(got), want)
