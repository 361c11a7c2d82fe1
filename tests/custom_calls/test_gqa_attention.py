"""gqa_attention_reference, and with it rope_append_kv end to end: many steps of paged decoding."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from op_base import KERNELS, Array, Rng, check, normal, poison, same_bits

from custom_calls.errors import ShapeError
from custom_calls.gqa_attention import gqa_attention_reference
from custom_calls.kv_cache_layout import KV_CACHE_LAYOUTS, KVCacheSizes, kv_cache_shapes
from custom_calls.rope_append_kv import rope_append_kv

SEEN = 1000 * oracle.BOUND_FLOAT32
"""A mistake is far beyond what arithmetic explains."""

HEADS, KV_HEADS, WIDTH, VALUE_WIDTH, ROPE = 6, 2, 16, 12, 8
SCALE = 0.3
ATTEND = jax.jit(gqa_attention_reference, static_argnames=("cache_layout", "softmax_scale", "sliding_window"))


# ---- the function alone ----


def problem(
    rng: Rng, dtype: str = "float32", cache: str = "float32", cache_layout: str = "flash", page_size: int = 16
) -> dict[str, Any]:
    """Ragged rows over shuffled pages: prefill, decode, no rows, a chunk after cached keys, a padded row."""
    lengths, lens = [5, 1, 0, 3], [5, 37, 20, 19]
    max_pages = -(-37 // page_size)
    sizes = KVCacheSizes(2, 4 * max_pages + 1, page_size, KV_HEADS, WIDTH, VALUE_WIDTH)
    k_shape, v_shape = kv_cache_shapes(sizes, np.dtype(cache), cache_layout)
    return {
        "q": normal(rng, (sum(lengths) + 1, HEADS, WIDTH), dtype),
        "k_cache": normal(rng, k_shape, cache),
        "v_cache": normal(rng, v_shape, cache),
        "layer": np.int32(1),
        "k_scale": np.float32(0.7),
        "v_scale": np.array([1.9], np.float32),
        "pages": rng.permutation(4 * max_pages).reshape(4, max_pages).astype(np.int32),
        "query_start_loc": np.cumsum([0, *lengths]).astype(np.int32),
        "seq_lens": np.array(lens, np.int32),
    }


def attend(arrays: dict[str, Any], **static: Any) -> tuple[Array, Array]:
    settings = {"cache_layout": "flash", "softmax_scale": SCALE, **static}
    out, logsumexp = ATTEND(**jax.tree.map(jnp.asarray, arrays), **settings)
    for got, want in zip((out, logsumexp), oracle.gqa_attention(**arrays, **settings), strict=True):
        check(got, want, f"gqa_attention_reference {settings}")
    return np.asarray(out), np.asarray(logsumexp)


@pytest.mark.parametrize("cache_layout", KV_CACHE_LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "cache"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "float8_e4m3fn")]
)
def test_matches_oracle(dtype: str, cache: str, cache_layout: str, rng: Rng) -> None:
    arrays = problem(rng, dtype, cache, cache_layout)
    out, logsumexp = attend(arrays, cache_layout=cache_layout)
    assert not out[-1].any()
    assert np.isneginf(logsumexp[-1]).all(), "a row that no sequence owns"


@pytest.mark.parametrize("sliding_window", [1, 2, 16, 1000])
def test_sliding_window(sliding_window: int, rng: Rng) -> None:
    arrays = problem(rng, page_size=3)
    attend(arrays, sliding_window=sliding_window)
    if sliding_window == 1:  # a single key: its value, for every query head of the group
        out, _ = attend(arrays, sliding_window=1)
        value = arrays["v_cache"][1, arrays["pages"][1, 12], 0]  # key 36
        assert np.allclose(out[5], np.repeat(value, HEADS // KV_HEADS, axis=0), rtol=1e-6)


@pytest.mark.parametrize("page", [-1, 13, 2**31 - 1])
def test_a_missing_page_is_nan_only_where_it_is_seen(page: int, rng: Rng) -> None:
    arrays = problem(rng)
    arrays["pages"][1, 0] = arrays["pages"][3, 1] = page
    out, _ = attend(arrays)
    assert np.isnan(out).any(axis=(1, 2)).tolist() == [False] * 5 + [True] * 4 + [False]
    # Keys 0 to 15 of the second sequence are out of its window; keys 16 to 18 of the last are not.
    out, _ = attend(arrays, sliding_window=4)
    assert np.isnan(out).any(axis=(1, 2)).tolist() == [False] * 6 + [True] * 3 + [False]


@pytest.mark.parametrize("layer", [-1, 2])
def test_a_missing_layer_is_nan(layer: int, rng: Rng) -> None:
    out, _ = attend({**problem(rng), "layer": np.int32(layer)})
    assert np.isnan(out[:-1]).all()


def test_a_sequence_longer_than_its_pages_is_nan(rng: Rng) -> None:
    arrays = problem(rng)
    arrays["seq_lens"][0] = 3 * 16 + 1
    out, _ = attend(arrays)
    assert np.isnan(out).any(axis=(1, 2)).tolist() == [True] * 5 + [False] * 5


def test_more_rows_than_keys(rng: Rng) -> None:
    arrays = problem(rng)
    arrays["seq_lens"][0] = 2
    out, logsumexp = attend(arrays)
    assert not out[:3].any()
    assert np.isneginf(logsumexp[:3]).all()


@pytest.mark.parametrize(("rows", "seqs"), [(0, 1), (3, 0)])
def test_nothing_to_do(rows: int, seqs: int, rng: Rng) -> None:
    arrays = problem(rng)
    changes = {
        "q": arrays["q"][:rows],
        "pages": arrays["pages"][:seqs],
        "query_start_loc": np.zeros(seqs + 1, np.int32),
        "seq_lens": np.zeros(seqs, np.int32),
    }
    out, logsumexp = attend({**arrays, **changes})
    assert out.shape == (rows, HEADS, VALUE_WIDTH)
    assert not out.any()
    assert np.isneginf(logsumexp).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cache_layout": "split"},
            "argument 'cache_layout': expected 'flash' or 'split_k' or 'split_kv', got 'split'",
        ),
        ({"q": np.zeros((10, 96), np.float32)}, "argument 'q': expected shape (T, Hq, 16), got (10, 96)"),
        ({"q": np.zeros((10, 6, 16), np.float16)}, "argument 'q': expected dtype float32 or bfloat16, got float16"),
        (
            {"q": np.zeros((10, 3, 16), np.float32)},
            "argument 'q': expected Hq to be a positive multiple of the caches' 2 heads, got 3",
        ),
        ({"pages": np.zeros(4, np.int32)}, "argument 'pages': expected shape (S, max_pages), got (4,)"),
        ({"pages": np.zeros((4, 3), np.uint32)}, "argument 'pages': expected dtype int32, got uint32"),
        ({"layer": np.zeros(1, np.int32)}, "argument 'layer': expected shape (), got (1,)"),
        ({"query_start_loc": np.zeros(4, np.int32)}, "argument 'query_start_loc': expected shape (5), got (4,)"),
        ({"seq_lens": np.zeros(5, np.int32)}, "argument 'seq_lens': expected shape (4), got (5,)"),
        ({"k_scale": np.ones(2, np.float32)}, "argument 'k_scale': expected shape () or (1), got (2,)"),
        ({"v_scale": np.ones(3, np.float32)}, "argument 'v_scale': expected shape () or (1), got (3,)"),
        ({"sliding_window": 0}, "argument 'sliding_window': expected None or an integer >= 1, got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str, rng: Rng) -> None:
    settings = {"cache_layout": "flash", "softmax_scale": SCALE}
    with pytest.raises(ShapeError) as raised:
        gqa_attention_reference(**{**jax.tree.map(jnp.asarray, problem(rng)), **settings, **changes})
    assert str(raised.value) == f"gqa_attention_reference: {message}"


# ---- together with rope_append_kv ----


def table(rng: Rng) -> tuple[Array, Array]:
    angle = rng.uniform(-np.pi, np.pi, (64, ROPE // 2))
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def turned(rows: Array, cos: Array, sin: Array) -> Array:
    """Rows (n, heads, WIDTH) of positions 0 .. n - 1, "half" pairs rotated, in float64 and without paging."""
    value = rows.astype(np.float64)
    half = ROPE // 2
    c, s = (t[: len(rows), None, :].astype(np.float64) for t in (cos, sin))
    a, b = value[..., :half].copy(), value[..., half:ROPE].copy()
    value[..., :half], value[..., half:ROPE] = a * c - b * s, b * c + a * s
    return value


def plain_attention(q: Array, k: Array, v: Array, window: int | None = None) -> Array:
    """Causal attention of one sequence's rows (n, heads, .), all in float64."""
    k, v = (np.repeat(rows, HEADS // KV_HEADS, axis=1).astype(np.float64) for rows in (k, v))
    score = np.einsum("ihd,jhd->hij", q, k) * float(np.float32(SCALE))
    distance = np.arange(len(q))[:, None] - np.arange(len(q))[None, :]
    seen = (distance >= 0) & (distance < (window or len(q)))
    weight = np.exp(np.where(seen, score - score.max(axis=-1, keepdims=True), -np.inf))
    return np.einsum("hij,jhv->ihv", weight / weight.sum(axis=-1, keepdims=True), v)


@dataclass
class Story:
    """Two sequences' whole lives: queries, keys, values before rotation, and what attention should give."""

    rows: list[tuple[Array, Array, Array]]
    cos: Array
    sin: Array

    @classmethod
    def tell(cls, rng: Rng, lengths: tuple[int, ...]) -> "Story":
        widths = ((HEADS, WIDTH), (KV_HEADS, WIDTH), (KV_HEADS, VALUE_WIDTH))
        rows = [tuple(normal(rng, (n, *width)) for width in widths) for n in lengths]
        return cls(rows, *table(rng))  # type: ignore[arg-type]

    def truth(self, window: int | None = None) -> list[Array]:
        return [
            plain_attention(turned(q, self.cos, self.sin), turned(k, self.cos, self.sin), v, window)
            for q, k, v in self.rows
        ]

    def step(self, spans: list[tuple[int, int]], padding: int) -> tuple[Array, ...]:
        """q, k, v of every sequence's span of positions, NaN rows behind them, and the positions."""
        parts = [
            np.concatenate([rows[i][a:b] for rows, (a, b) in zip(self.rows, spans, strict=True)])
            for i in range(3)
        ]
        padded = [np.concatenate([part, poison((padding, *part.shape[1:]))]) for part in parts]
        positions = np.concatenate([*(np.arange(a, b) for a, b in spans), np.zeros(padding)])
        return (*padded, positions.astype(np.int32))


STEPS = [[(0, 5), (0, 29)], *[[(5 + i, 6 + i), (29 + i, 30 + i)] for i in range(4)]]
"""A prefill and four decode steps of two sequences; the second crosses pages of 16 at its third."""

LENGTHS = (9, 33)


def decode(story: Story, cache_layout: str, page_size: int, kernels: str, twice: bool = False) -> list[Array]:
    """What the paged steps give for every row of every sequence, in order of position."""
    max_pages = 64 // page_size
    sizes = KVCacheSizes(2, 2 * max_pages + 1, page_size, KV_HEADS, WIDTH, VALUE_WIDTH)
    caches: Any = [jnp.asarray(poison(shape)) for shape in kv_cache_shapes(sizes, np.float32, cache_layout)]
    pages = np.random.default_rng(page_size).permutation(2 * max_pages + 1)[: 2 * max_pages]
    pages = pages.reshape(2, max_pages).astype(np.int32)
    append = jax.jit(
        functools.partial(rope_append_kv, layout="half", cache_layout=cache_layout, kernels=kernels)
    )
    # The layer, and scales that a float32 cache must not look at.
    common = (jnp.int32(1), jnp.float32(np.nan), jnp.float32(np.nan))
    found: list[list[Array]] = [[], []]
    for spans in STEPS:
        q, k, v, positions = story.step(spans, padding=1)
        slots = [
            pages[s, p // page_size] * page_size + p % page_size
            for s, (a, b) in enumerate(spans)
            for p in range(a, b)
        ]
        rest = (k, v, story.cos, story.sin, positions, np.array([*slots, -1], np.int32))
        q_rotated, *caches = append(*map(jnp.asarray, (q, *rest)), *caches, *common)
        if twice:
            q_rotated, *_ = append(q_rotated, *map(jnp.asarray, rest), *caches, *common)
        start = np.cumsum([0, *(b - a for a, b in spans)]).astype(np.int32)
        lens = np.array([b for _, b in spans], np.int32)
        out, _ = ATTEND(
            q_rotated, *caches, *common, *map(jnp.asarray, (pages, start, lens)),
            cache_layout=cache_layout, softmax_scale=SCALE,
        )  # fmt: skip
        assert not np.asarray(out)[-1].any()
        for s in range(2):
            found[s].append(np.asarray(out)[start[s] : start[s + 1]])
    return [np.concatenate(parts) for parts in found]


def worst(got: list[Array], want: list[Array]) -> float:
    """The largest error relative to the largest value, or infinity for NaN."""
    errors = [np.abs(g - w).max() / np.abs(w).max() for g, w in zip(got, want, strict=True)]
    return float(np.nan_to_num(max(errors), nan=np.inf))


LAYOUTS_AND_PAGES = [
    (layout, size) for layout in KV_CACHE_LAYOUTS for size in (1, 16, 64) if (layout, size) != ("split_kv", 1)
]


@pytest.mark.parametrize("kernels", KERNELS)
def test_paged_decoding_is_plain_attention(kernels: str, rng: Rng) -> None:
    """Every layout and page size, against float64 attention that knows no pages."""
    story = Story.tell(rng, LENGTHS)
    want = story.truth()
    results = {(layout, size): decode(story, layout, size, kernels) for layout, size in LAYOUTS_AND_PAGES}
    for key, got in results.items():
        assert worst(got, want) <= oracle.BOUND_FLOAT32, key
        # The same keys in the same order: neither layout nor page size changes a bit.
        assert all(same_bits(a, b) for a, b in zip(got, results["flash", 16], strict=True)), key


@pytest.mark.parametrize("cache_layout", KV_CACHE_LAYOUTS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_float8_caches_with_two_scales(kernels: str, cache_layout: str, rng: Rng) -> None:
    """A stored element is off by float8's rounding, and attention over the caches is exact; swapped scales are not."""
    story = Story.tell(rng, (32,))
    ((q, k, v),) = story.rows
    sizes = KVCacheSizes(1, 2, 16, KV_HEADS, WIDTH, VALUE_WIDTH)
    shapes = kv_cache_shapes(sizes, jnp.float8_e4m3fn, cache_layout)
    scales = {"k_scale": np.float32(0.05), "v_scale": np.float32(0.02)}
    order = np.arange(32, dtype=np.int32)
    q_rotated, *caches = rope_append_kv(
        *map(jnp.asarray, (q, k, v, story.cos, story.sin, order, order)),
        *(jnp.asarray(poison(shape, jnp.float8_e4m3fn)) for shape in shapes),
        jnp.int32(0), **jax.tree.map(jnp.asarray, scales), layout="half", cache_layout=cache_layout,
        kernels=kernels,  # type: ignore[arg-type]
    )  # fmt: skip
    k_cache, v_cache = map(np.asarray, caches)
    truth = (turned(k, story.cos, story.sin), v.astype(np.float64))
    for which, cache, rows in zip("kv", (k_cache, v_cache), truth, strict=True):
        scale = float(scales[f"{which}_scale"])
        stored = oracle.f64(oracle.kv_rows(cache, cache_layout, which)).reshape(rows.shape) * scale
        # Half a unit of 3 bits after the first; of 2^-9 for the smallest. Float32's own error is far below.
        assert (np.abs(stored - rows) <= 1.001 * np.maximum(2.0**-4 * np.abs(rows), 2.0**-10 * scale)).all()
    arrays = {
        "q": np.asarray(q_rotated),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "layer": np.int32(0),
        **scales,
        "pages": np.array([[0, 1]], np.int32),
        "query_start_loc": np.array([0, 32], np.int32),
        "seq_lens": np.array([32], np.int32),
    }
    right, _ = attend(arrays, cache_layout=cache_layout)
    swapped = {"k_scale": scales["v_scale"], "v_scale": scales["k_scale"]}
    wrong, _ = attend({**arrays, **swapped}, cache_layout=cache_layout)
    # The values alone are 2.5 times as large; the weights are averages.
    assert worst([wrong], [right]) > 1


@pytest.mark.bug("sgl-project/sglang#24148", "test")
def test_rotating_twice_or_never_is_seen(rng: Rng) -> None:
    story = Story.tell(rng, LENGTHS)
    want = story.truth()
    assert worst(decode(story, "flash", 16, "native", twice=True), want) > SEEN
    still = Story(story.rows, np.ones_like(story.cos), np.zeros_like(story.sin))
    assert worst(decode(still, "flash", 16, "native"), want) > SEEN


def test_a_cache_read_in_another_layout_is_seen(rng: Rng) -> None:
    """The name decides: the same bytes under another name are another cache."""
    sizes = KVCacheSizes(1, 1, 16, KV_HEADS, 16, 16)
    shapes = {name: kv_cache_shapes(sizes, np.float32, name) for name in KV_CACHE_LAYOUTS}
    flat = [normal(rng, (int(np.prod(shape)),)) for shape in shapes["flash"]]
    query = normal(rng, (1, HEADS, 16))
    ints = [np.array(x, np.int32) for x in ([[0]], [0, 1], [16])]
    outs = [
        np.asarray(
            ATTEND(
                query, *(c.reshape(s) for c, s in zip(flat, shapes[name], strict=True)),
                np.int32(0), np.float32(1), np.float32(1), *ints, cache_layout=name, softmax_scale=SCALE,
            )[0]
        )
        for name in KV_CACHE_LAYOUTS
    ]  # fmt: skip
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert worst([outs[a]], [outs[b]]) > SEEN


@pytest.mark.parametrize("cache_layout", KV_CACHE_LAYOUTS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_sliding_window_with_a_small_pool_of_its_own(kernels: str, cache_layout: str, rng: Rng) -> None:
    """Pages that the window has left are unmapped and given to new tokens: the pool is smaller than a sequence."""
    window, page_size, length, num_pages = 6, 4, 33, 5
    story = Story.tell(rng, (length,))
    (want,) = story.truth(window)
    sizes = KVCacheSizes(1, num_pages, page_size, KV_HEADS, WIDTH, VALUE_WIDTH)
    caches: Any = [jnp.asarray(poison(shape)) for shape in kv_cache_shapes(sizes, np.float32, cache_layout)]
    # The full pool's pages are in another order and numbers than the window's; 64 slots have no place at first.
    *full_pages, unused = rng.permutation(16)[: -(-length // page_size) + 1].astype(np.int32)
    unused *= page_size
    slot_map = np.full(16 * page_size, -1, np.int32)
    window_pages = np.full((1, len(full_pages)), -1, np.int32)
    free = list(rng.permutation(num_pages))
    append = jax.jit(
        functools.partial(rope_append_kv, layout="half", cache_layout=cache_layout, kernels=kernels)
    )
    scales = (jnp.int32(0), jnp.float32(np.nan), jnp.float32(np.nan))
    reused = 0
    for spans in [[(0, 7)], *[[(p, p + 1)] for p in range(7, length)]]:
        first, last = spans[0]
        for page in range(first // page_size, (last - 1) // page_size + 1):
            if window_pages[0, page] < 0:
                window_pages[0, page] = free.pop(0)
                at = full_pages[page] * page_size
                slot_map[at : at + page_size] = window_pages[0, page] * page_size + np.arange(page_size)
        q, k, v, positions = story.step(spans, padding=2)
        slots = [full_pages[p // page_size] * page_size + p % page_size for p in range(first, last)]
        # Padded tokens: a slot of no pool, and one that the full pool has and the window's has not.
        slots = np.array([*slots, -1, unused], np.int32)
        operands = (q, k, v, story.cos, story.sin, positions, slots)
        q_rotated, *caches = append(*map(jnp.asarray, operands), *caches, *scales, jnp.asarray(slot_map))
        out, _ = ATTEND(
            q_rotated, *caches, *scales, jnp.asarray(window_pages), jnp.array([0, last - first], jnp.int32),
            jnp.array([last], jnp.int32), cache_layout=cache_layout, softmax_scale=SCALE, sliding_window=window,
        )  # fmt: skip
        got = np.asarray(out)[: last - first]
        assert worst([got], [want[first:last]]) <= oracle.BOUND_FLOAT32, (first, last)
        # The next token sees the keys > last - window.
        for page in range((last - window + 1) // page_size):
            if window_pages[0, page] >= 0:
                free.append(window_pages[0, page])
                reused += 1
                at = full_pages[page] * page_size
                slot_map[at : at + page_size] = -1
                window_pages[0, page] = -1
    assert reused > num_pages
