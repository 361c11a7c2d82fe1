"""mla_attention_expanded: causal attention among a step's own rows, NaN in all that is not used."""

from typing import Any

import jax
import numpy as np
import oracle
import pytest
from op_base import KERNELS, Builder, Call, OpTests, Rng, check, normal, poison, same_bits

from custom_calls.mla_attention_expanded import mla_attention_expanded

ROWED = ("q", "q_rope", "kv", "rows")
MLA, ALIGNED = (128, 64, 128), (8, 16)


def make(
    lengths: list[int], heads: int, nope: int, rope: int, v: int, before: int = 0, behind: int = 0,
    uniform: bool = False, scale: float = 1.0, unused: tuple[int, int] = (3, 5),
) -> Builder:  # fmt: skip
    """`before` and `behind`: rows that no sequence owns; they and columns `unused` of q and rows are NaN."""

    def build(rng: Rng, dtype: str) -> Call:
        start = before + np.cumsum([0, *lengths])
        tokens, owned, rank = int(start[-1]) + behind, slice(before, int(start[-1])), unused[1]
        q = poison((tokens, heads, nope + unused[0]), dtype)
        q_rope = poison((tokens, heads, rope), dtype)
        kv = poison((tokens, heads * (nope + v)), dtype)
        rows = poison((tokens, rank + rope), dtype)
        q[owned, :, :nope] = normal(rng, q[owned, :, :nope].shape, dtype, scale)
        q_rope[owned] = normal(rng, q_rope[owned].shape, dtype, scale)
        kv[owned] = normal(rng, kv[owned].shape, dtype)
        rows[owned, rank:] = normal(rng, rows[owned, rank:].shape, dtype)
        arrays = {"q": q, "q_rope": q_rope, "kv": kv, "rows": rows, "query_start_loc": start.astype(np.int32)}
        static = {"nope": nope, "v": v, "softmax_scale": float((nope + rope) ** -0.5)}
        return Call(arrays, {**static, "uniform_length": lengths[0] if uniform else None}, extreme=scale > 4)

    return build


class TestMlaAttentionExpanded(OpTests):
    function = staticmethod(mla_attention_expanded)
    oracle = staticmethod(oracle.mla_attention_expanded)
    primitive = "mla_jax.mla_attention_expanded"
    op_name = "mla_attention_expanded"
    cases = {  # noqa: RUF012
        "T0": make([0], 3, 8, 2, 4),
        "T1-H1": make([1], 1, 8, 2, 4),
        "only-padding": make([0, 0], 3, 8, 2, 4, behind=3),
        "T17-H20": make([17], 20, 12, 8, 7),
        "T65-H3": make([65], 3, 40, 8, 24),
        "T3-H12-wide": make([3], 12, 128, 64, 128),
        "ragged": make([5, 1, 17, 3], 3, 24, 8, 16),
        "empty-in-the-middle": make([3, 0, 2, 0, 1], 3, 8, 2, 5, before=2, behind=4),
        "tile-129": make([2, 129, 128], 2, 8, 2, 4),
        "split-511": make([511], 1, 8, 2, 4),
        "split-513": make([512, 513], 1, 8, 2, 4),
        "split-1025": make([1025], 1, 8, 2, 4),
        "uniform": make([9, 9, 9], 3, 24, 8, 16, uniform=True),
        "uniform-one": make([1, 1, 1, 1], 3, 24, 8, 16, uniform=True),
        "peaked": make([40, 3], 3, 24, 8, 16, scale=100.0),
        "many-sequences": make([i % 4 for i in range(150)], 2, 8, 2, 4, before=1, behind=1),
        "wide-values": make([35, 4], 2, 20, 4, 300),
        # MLA's own widths in aligned rows, which GPUs multiply on matrix cores.
        "mla-T1": make([1], 2, *MLA, unused=ALIGNED),
        "mla-ragged": make([5, 0, 130, 1, 64], 3, *MLA, before=2, behind=131, unused=ALIGNED),
        "mla-T257-H1": make([257], 1, *MLA, unused=ALIGNED),
        "mla-tiles-exactly": make([128, 256], 1, *MLA, unused=ALIGNED),
        "mla-many-sequences": make([i % 3 for i in range(100)], 1, *MLA, unused=ALIGNED),
        "mla-long": make([1025], 1, *MLA, unused=ALIGNED),
        "mla-long-ragged": make([1300, 760], 1, *MLA, before=1, behind=2, unused=ALIGNED),
        "mla-17-heads": make([140], 17, *MLA, unused=ALIGNED),
        "mla-peaked": make([70, 3], 2, *MLA, scale=100.0, unused=ALIGNED),
    }
    errors = {  # noqa: RUF012
        "q-rank": (
            {"q": jax.ShapeDtypeStruct((6, 9), "float32")},
            "argument 'q': expected shape (T, H, D), got (6, 9)",
        ),
        "q-dtype": (
            {"q": jax.ShapeDtypeStruct((6, 2, 9), "float16")},
            "argument 'q': expected dtype float32 or bfloat16, got float16",
        ),
        "nope": ({"nope": 10}, "argument 'nope': expected a range inside [0, 9) of q's columns, got [0, 10)"),
        "q-rope-shape": (
            {"q_rope": jax.ShapeDtypeStruct((6, 3, 2), "float32")},
            "argument 'q_rope': expected shape (6, 2, P), got (6, 3, 2)",
        ),
        "q-rope-dtype": (
            {"q_rope": jax.ShapeDtypeStruct((6, 2, 2), "bfloat16")},
            "argument 'q_rope': expected dtype float32, got bfloat16",
        ),
        "kv-width": (
            {"kv": jax.ShapeDtypeStruct((6, 21), "float32")},
            "argument 'kv': expected shape (6, 20), got (6, 21)",
        ),
        "kv-dtype": (
            {"kv": jax.ShapeDtypeStruct((6, 20), "bfloat16")},
            "argument 'kv': expected dtype float32, got bfloat16",
        ),
        "v": ({"v": 3}, "argument 'kv': expected shape (6, 18), got (6, 20)"),
        "rows-tokens": (
            {"rows": jax.ShapeDtypeStruct((5, 7), "float32")},
            "argument 'rows': expected shape (6, R + P), got (5, 7)",
        ),
        "rows-narrow": (
            {"rows": jax.ShapeDtypeStruct((6, 1), "float32")},
            "argument 'rows': expected a range inside [0, 1) of rows' columns, got [0, 2)",
        ),
        "rows-dtype": (
            {"rows": jax.ShapeDtypeStruct((6, 7), "bfloat16")},
            "argument 'rows': expected dtype float32, got bfloat16",
        ),
        "query-start-loc-rank": (
            {"query_start_loc": jax.ShapeDtypeStruct((3, 1), "int32")},
            "argument 'query_start_loc': expected shape (S + 1), got (3, 1)",
        ),
        "query-start-loc-dtype": (
            {"query_start_loc": jax.ShapeDtypeStruct((3,), "int8")},
            "argument 'query_start_loc': expected dtype int32, got int8",
        ),
        "uniform-length": (
            {"uniform_length": 4},
            "argument 'uniform_length': expected T / S = 6 / 2, got 4",
        ),
    }
    vmapped = (ROWED, ("q", "q_rope"))
    differentiable = ROWED

    @staticmethod
    def small(rng: Rng, dtype: str) -> Call:
        call = make([4, 2], 2, 6, 2, 4)(rng, dtype)
        # Finite everywhere: derivatives of unused columns are zero.
        return call.changed(q=normal(rng, (6, 2, 9), dtype), rows=normal(rng, (6, 7), dtype))

    @staticmethod
    def rows(rng: Rng, dtype: str) -> tuple[Call, list[tuple[Any, Call]]]:
        """Each sequence alone, and the front of each: later rows do not change earlier ones."""
        lengths = [3, 530, 1, 140]
        call = make(lengths, 2, 8, 2, 4)(rng, dtype)
        start = call.arrays["query_start_loc"]
        alone = []
        for s, count in enumerate(lengths):
            for rows in {count, max(1, count // 2), 1}:
                at = slice(int(start[s]), int(start[s]) + rows)
                parts = {name: call.arrays[name][at] for name in ROWED}
                alone.append((at, call.changed(**parts, query_start_loc=np.array([0, rows], np.int32))))
        return call, alone


SMALL = make([5, 4], 3, 8, 2, 4)
TILES = make([150, 70], 2, *MLA, unused=ALIGNED)
LONG_TILES = make([1100], 1, *MLA, unused=ALIGNED)


@pytest.mark.parametrize(("build", "dtype", "broken"), [
    (SMALL, "float32", 2), (SMALL, "bfloat16", 2), (TILES, "bfloat16", 3), (TILES, "bfloat16", 143),
    (TILES, "bfloat16", 151), (LONG_TILES, "bfloat16", 290), (TILES, "float32", 40),
])  # fmt: skip
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_nan_row_reaches_only_later_rows_of_its_sequence(
    kernels: str, build: Builder, dtype: str, broken: int, rng: Rng
) -> None:
    call = build(rng, dtype)
    kv = call.arrays["kv"].copy()
    kv[broken] = np.nan
    got = TestMlaAttentionExpanded.call(call.changed(kv=kv), kernels)
    clean = TestMlaAttentionExpanded.call(call, kernels)
    start = call.arrays["query_start_loc"]
    reached = np.arange(broken, start[np.searchsorted(start, broken, side="right")])
    others = np.setdiff1d(np.arange(start[-1]), reached)
    for value, want in zip(got, clean, strict=True):
        assert same_bits(np.asarray(value)[others], np.asarray(want)[others])
        assert np.isnan(np.asarray(value)[reached]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [1, 2])
@pytest.mark.parametrize(("build", "broken"), [(SMALL, 2), (TILES, 3), (TILES, 148), (LONG_TILES, 300)])
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_value_that_is_not_finite_reaches_only_its_column_of_later_rows(
    kernels: str, build: Builder, broken: int, column: int, bad: float, rng: Rng
) -> None:
    call = build(rng, "bfloat16")
    kv = call.arrays["kv"].copy()
    kv[broken : broken + 2, call.static["nope"] + column] = bad
    out, lse = map(np.asarray, TestMlaAttentionExpanded.call(call.changed(kv=kv), kernels))
    clean, clean_lse = map(np.asarray, TestMlaAttentionExpanded.call(call, kernels))
    assert same_bits(lse, clean_lse)
    start = call.arrays["query_start_loc"]
    reached = np.zeros(out.shape, bool)
    last = start[np.searchsorted(start, broken, side="right")]
    reached[broken:last, 0, column] = True
    assert not np.isfinite(out[reached].astype(np.float32)).any()
    assert same_bits(out[~reached], clean[~reached])


@pytest.mark.parametrize(
    ("build", "dtype"), [(SMALL, "float32"), (TILES, "bfloat16"), (LONG_TILES, "bfloat16")]
)
@pytest.mark.parametrize("kernels", KERNELS)
def test_scores_of_minus_infinity_weigh_nothing(kernels: str, build: Builder, dtype: str, rng: Rng) -> None:
    """Rows that see nothing else give 0 and -inf; the others are as if their sequence began behind such keys."""
    call = build(rng, dtype)
    length = int(call.arrays["query_start_loc"][1])
    hidden = length // 2
    q, kv = call.arrays["q"].copy(), call.arrays["kv"].copy()
    q[:, 0, 0] = 3e38
    kv[:, 0] = 0
    kv[:hidden, 0] = -3e38
    call = call.changed(q=q, kv=kv)
    got = [np.asarray(value)[:length, 0] for value in TestMlaAttentionExpanded.call(call, kernels)]
    assert np.array_equal(got[0][:hidden], np.zeros_like(got[0][:hidden]))
    assert np.array_equal(got[1][:hidden], np.full(hidden, -np.inf, np.float32))
    later = {name: call.arrays[name][hidden:length] for name in ROWED}
    start = np.array([0, length - hidden], np.int32)
    wanted = TestMlaAttentionExpanded.expected(call.changed(**later, query_start_loc=start))
    for value, want in zip(got, wanted, strict=True):
        check(
            value[hidden:],
            oracle.Bounded(want.value[:, 0], want.error[:, 0], want.scale),
            f"{kernels} result",
        )


@pytest.mark.parametrize("scale", [-0.05, 0.0])
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_scale_need_not_be_positive(kernels: str, scale: float, rng: Rng) -> None:
    call = TILES(rng, "bfloat16").changed(softmax_scale=scale)
    TestMlaAttentionExpanded.check_call(call, kernels)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "starts",
    [
        [0, 60, 40, 90, 220],
        [-7, 50, 10, 1000, 30],
        [130, 20, 220, -1, 2**31 - 1],
        [300, 0, 1, 2, 3],
        [0, 150, *range(100), 220],
    ],
)
def test_native_moves_starts_up_that_are_out_of_order(starts: list[int], dtype: str, rng: Rng) -> None:
    """The contract asks for ascending ones; others must not reach other memory or another row."""
    call = make([220], 2, *MLA, unused=ALIGNED)(rng, dtype)
    in_order = np.maximum.accumulate(np.clip(starts, 0, 220)).astype(np.int32)
    got = TestMlaAttentionExpanded.call(call.changed(query_start_loc=np.array(starts, np.int32)), "native")
    want = TestMlaAttentionExpanded.call(call.changed(query_start_loc=in_order), "native")
    assert all(same_bits(g, w) for g, w in zip(got, want, strict=True))
    TestMlaAttentionExpanded.check_call(call.changed(query_start_loc=in_order), "native")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_the_promise_of_uniform_lengths_changes_nothing(kernels: str, dtype: str, rng: Rng) -> None:
    call = make([7, 7], 3, 8, 2, 4)(rng, dtype)
    promised = call.changed(uniform_length=7)
    TestMlaAttentionExpanded.check_call(promised, kernels)
    if kernels == "native":
        got, want = (TestMlaAttentionExpanded.call(c, kernels) for c in (promised, call))
        assert all(same_bits(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_first_row_returns_its_own_value(kernels: str, rng: Rng) -> None:
    call = make([1, 1], 3, 8, 2, 4)(rng, "float32")
    out, _ = TestMlaAttentionExpanded.call(call, kernels)
    values = call.arrays["kv"].reshape(2, 3, 12)[:, :, 8:]
    assert np.array_equal(np.asarray(out), values)
