"""mla_attention: ragged, causal and cached, over pools in which all that is not visible is NaN."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import pytest
from op_base import KERNELS, Array, Builder, Call, OpTests, Rng, check, normal, poison, same_bits

from custom_calls import registry
from custom_calls.errors import UnsupportedTransformError
from custom_calls.mla_attention import TARGET_WITH_SCRATCH, mla_attention

INT_MAX, INT_MIN = 2**31 - 1, -(2**31)
LAYERS, LAYER = 2, 1
GARBAGE = np.array([-1, INT_MAX, INT_MIN, 1 << 20], np.int64)
"""Page numbers for the part of the table that no query sees."""


def paged(
    rng: Rng, contexts: list[Array], page_size: int, cache: str, seen: list[int] | None = None
) -> tuple[Array, Array]:
    """A pool and page table that hold the rows `contexts[s]` of each sequence (all, or the first seen[s]).

    Everything else is NaN: the other layer, pages of nobody, rows behind the end of a sequence.
    """
    width = contexts[0].shape[1]
    counts = [-(-len(rows) // page_size) for rows in contexts]
    num_pages = sum(counts) + 3
    kv = poison((LAYERS, num_pages, page_size, width), cache)
    pages = rng.choice([*GARBAGE, num_pages, 0], (len(contexts), max(counts) + 2)).astype(np.int32)
    free = list(rng.permutation(num_pages))
    for s, rows in enumerate(contexts):
        numbers = [free.pop() for _ in range(counts[s])]
        pages[s, : counts[s]] = numbers
        for j in range(len(rows) if seen is None else seen[s]):
            kv[LAYER, numbers[j // page_size], j % page_size] = rows[j]
    return kv, pages


def make(
    lengths: list[tuple[int, int]], heads: int, rank: int, rope: int, page_size: int, keys: str = "all",
    before: int = 0, behind: int = 0, scale: float = 1.0,
) -> Builder:  # fmt: skip
    """lengths: (query rows, keys) of each sequence; `before` and `behind`: rows that no sequence owns."""

    def build(rng: Rng, dtype: str, cache: str) -> Call:
        scales = np.array([0.02, 0.03] if cache == "float8_e4m3fn" else [np.nan, np.nan], np.float32)
        unit = np.where(np.arange(rank + rope) < rank, *(1 / scales)) if cache == "float8_e4m3fn" else 1.0
        contexts = [
            (rng.standard_normal((n, rank + rope)) * unit).astype(np.dtype(cache)) for _, n in lengths
        ]
        seen = [n if keys == "all" else max(0, n - rows) for rows, n in lengths]
        kv, pages = paged(rng, contexts, page_size, cache, seen)
        start = before + np.cumsum([0, *(rows for rows, _ in lengths)])
        tokens = int(start[-1]) + behind
        q_latent, q_rope = poison((tokens, heads, rank), dtype), poison((tokens, heads, rope), dtype)
        owned = slice(before, int(start[-1]))
        q_latent[owned] = normal(rng, q_latent[owned].shape, dtype, scale)
        q_rope[owned] = normal(rng, q_rope[owned].shape, dtype, scale)
        arrays = {
            "q_latent": q_latent,
            "q_rope": q_rope,
            "kv": kv,
            "layer": np.int32(LAYER),
            "scales": scales,
            "pages": pages,
            "query_start_loc": start.astype(np.int32),
            "seq_lens": np.array([n for _, n in lengths], np.int32),
        }
        static = {"softmax_scale": float((rank + rope) ** -0.5), "keys": keys}
        return Call(arrays, static, extreme=scale > 4)

    return build


def rows_of(call: Call, start: int, stop: int, sequence: int, seq_len: int) -> Call:
    """The rows [start, stop) of one sequence, as a call of their own."""
    return call.changed(
        q_latent=call.arrays["q_latent"][start:stop],
        q_rope=call.arrays["q_rope"][start:stop],
        pages=call.arrays["pages"][sequence : sequence + 1],
        query_start_loc=np.array([0, stop - start], np.int32),
        seq_lens=np.array([seq_len], np.int32),
    )


def rows_of_heads(heads: int, rng: Rng, dtype: str, cache: str) -> tuple[Call, list[tuple[Any, Call]]]:
    """Each sequence alone, parts of a chunk, and each row of a chunk as a decode step of its own."""
    lengths = [(1, 70), (23, 530), (1, 515), (9, 9)]
    call = make(lengths, heads, 24, 8, 16)(rng, dtype, cache)
    start = call.arrays["query_start_loc"]
    alone = []
    for s, (count, n) in enumerate(lengths):
        spans = {(0, count), (0, 1), (count - 1, count), (count // 3, 2 * count // 3 + 1)}
        for first, last in sorted(span for span in spans if span[0] < span[1]):
            at = slice(int(start[s]) + first, int(start[s]) + last)
            alone.append((at, rows_of(call, at.start, at.stop, s, n - count + last)))
    return call, alone


SHAPES = pytest.mark.parametrize(
    ("rank", "rope", "dtype"), [(8, 2, "float32"), (512, 64, "bfloat16")], ids=["small", "published"]
)
"""The second is what GPUs have kernels of their own for."""


@pytest.mark.bug("ROCm/aiter#2585", "test")
class TestMlaAttention(OpTests):
    function = staticmethod(mla_attention)
    oracle = staticmethod(oracle.mla_attention)
    primitive = "mla_jax.mla_attention"
    op_name = "mla_attention"
    variants = (
        ("float32", "float32"),
        ("float32", "float8_e4m3fn"),
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float8_e4m3fn"),
    )
    cases = {  # noqa: RUF012
        "T0": make([(0, 5)], 3, 8, 2, 16),
        "only-padding": make([(0, 5), (0, 0)], 3, 8, 2, 16, behind=3),
        "decode-H1-page1": make([(1, 1), (1, 17), (1, 65)], 1, 8, 2, 1),
        "decode-H20-page3": make([(1, 33), (1, 2)], 20, 24, 8, 3),
        "decode-H12-R512-P64": make([(1, 40)], 12, 512, 64, 16),
        # The published width, for which GPUs have kernels of 16, 32 and 64 heads; steps of 32 or 64 keys.
        "R512-H8-page1": make([(1, 1), (1, 32), (1, 70)], 8, 512, 64, 1),
        "R512-H16-splits": make([(1, 700), (1, 3), (1, 0)], 16, 512, 64, 64),
        "R512-H20-chunk": make([(3, 65), (2, 2)], 20, 512, 64, 16, behind=1),
        "R512-H32-cached": make([(2, 64), (1, 33)], 32, 512, 64, 16, keys="cached"),
        "R512-H64": make([(1, 31)], 64, 512, 64, 128),
        "R512-peaked": make([(1, 200), (3, 70)], 16, 512, 64, 16, scale=100.0),
        "R512-H128": make([(1, 65), (1, 128)], 128, 512, 64, 64),
        "R512-H128-splits": make([(1, 1100)], 128, 512, 64, 64),
        "prefill-page16": make([(17, 17), (3, 3)], 3, 40, 8, 16),
        "odd-rank": make([(3, 30), (1, 65)], 5, 33, 6, 16),
        "chunks-page64": make([(5, 22), (1, 70), (17, 17)], 12, 24, 8, 64),
        "empty-in-the-middle": make(
            [(3, 10), (0, 5), (2, 2), (0, 0), (1, 4)], 3, 8, 2, 3, before=2, behind=4
        ),
        # More sequences than a GPU's block has threads to look for a token's among them.
        "many-sequences": make([(1, 1 + i % 5) for i in range(150)], 1, 8, 2, 4),
        "split-511": make([(1, 511)], 3, 24, 8, 64),
        "split-512": make([(2, 512)], 3, 24, 8, 16),
        "split-513": make([(1, 513), (3, 514)], 3, 24, 8, 64),
        "split-1025": make([(1, 1025)], 3, 24, 8, 3),
        "split-chunk": make([(65, 560)], 3, 24, 8, 64),
        # More splits than the threads that share their merge read at once, peaks on both sides of one another.
        "split-8100": make([(1, 8100)], 2, 8, 2, 64, scale=4.0),
        "cached": make([(3, 10), (4, 4), (0, 3), (1, 514)], 3, 24, 8, 16, keys="cached", behind=2),
        # Scores of several hundred: the largest takes all the weight and exp must neither overflow nor vanish.
        "peaked": make([(3, 40), (1, 600)], 3, 24, 8, 16, scale=100.0),
    }
    errors = {  # noqa: RUF012
        "q-latent-rank": (
            {"q_latent": jax.ShapeDtypeStruct((4, 8), "float32")},
            "argument 'q_latent': expected shape (T, H, R), got (4, 8)",
        ),
        "q-latent-dtype": (
            {"q_latent": jax.ShapeDtypeStruct((4, 3, 8), "float16")},
            "argument 'q_latent': expected dtype float32 or bfloat16, got float16",
        ),
        "q-rope-heads": (
            {"q_rope": jax.ShapeDtypeStruct((4, 2, 2), "float32")},
            "argument 'q_rope': expected shape (4, 3, P), got (4, 2, 2)",
        ),
        "q-rope-dtype": (
            {"q_rope": jax.ShapeDtypeStruct((4, 3, 2), "bfloat16")},
            "argument 'q_rope': expected dtype float32, got bfloat16",
        ),
        "kv-width": (
            {"kv": jax.ShapeDtypeStruct((2, 4, 3, 9), "float32")},
            "argument 'kv': expected shape (layers, num_pages, page_size, 10), got (2, 4, 3, 9)",
        ),
        "kv-dtype": (
            {"kv": jax.ShapeDtypeStruct((2, 4, 3, 10), "float8_e5m2")},
            "argument 'kv': expected dtype float32 or bfloat16 or float8_e4m3fn, got float8_e5m2",
        ),
        "layer-shape": (
            {"layer": jax.ShapeDtypeStruct((2,), "int32")},
            "argument 'layer': expected shape (), got (2,)",
        ),
        "layer-dtype": (
            {"layer": jax.ShapeDtypeStruct((), "uint32")},
            "argument 'layer': expected dtype int32, got uint32",
        ),
        "scales-shape": (
            {"scales": jax.ShapeDtypeStruct((1,), "float32")},
            "argument 'scales': expected shape (2), got (1,)",
        ),
        "scales-dtype": (
            {"scales": jax.ShapeDtypeStruct((2,), "bfloat16")},
            "argument 'scales': expected dtype float32, got bfloat16",
        ),
        "pages-rank": (
            {"pages": jax.ShapeDtypeStruct((4,), "int32")},
            "argument 'pages': expected shape (S, max_pages), got (4,)",
        ),
        "pages-dtype": (
            {"pages": jax.ShapeDtypeStruct((2, 5), "int16")},
            "argument 'pages': expected dtype int32, got int16",
        ),
        "query-start-loc-shape": (
            {"query_start_loc": jax.ShapeDtypeStruct((2,), "int32")},
            "argument 'query_start_loc': expected shape (3), got (2,)",
        ),
        "query-start-loc-dtype": (
            {"query_start_loc": jax.ShapeDtypeStruct((3,), "float32")},
            "argument 'query_start_loc': expected dtype int32, got float32",
        ),
        "seq-lens-shape": (
            {"seq_lens": jax.ShapeDtypeStruct((3,), "int32")},
            "argument 'seq_lens': expected shape (2), got (3,)",
        ),
        "seq-lens-dtype": (
            {"seq_lens": jax.ShapeDtypeStruct((2,), "uint8")},
            "argument 'seq_lens': expected dtype int32, got uint8",
        ),
        "keys": ({"keys": "new"}, "argument 'keys': expected 'all' or 'cached', got 'new'"),
    }
    vmapped = (("q_latent", "q_rope"), ("q_rope", "pages", "seq_lens", "scales"))

    @staticmethod
    def small(rng: Rng, dtype: str, cache: str) -> Call:
        call = make([(3, 7), (1, 7)], 3, 8, 2, 3)(rng, dtype, cache)
        kv = normal(rng, call.arrays["kv"].shape, cache, 40.0 if cache == "float8_e4m3fn" else 1.0)
        return call.changed(kv=kv)

    @staticmethod
    def rows(rng: Rng, dtype: str, cache: str) -> tuple[Call, list[tuple[Any, Call]]]:
        return rows_of_heads(3, rng, dtype, cache)


@pytest.mark.parametrize("variant", TestMlaAttention.variants, ids="-".join)
@pytest.mark.parametrize("heads", [16, 17])
def test_rows_of_more_heads_do_not_depend_on_the_batch(
    heads: int, variant: tuple[str, str], rng: Rng
) -> None:
    """Sixteen heads fill a vector; with more, rows lie across the lanes, in passes of several vectors."""
    TestMlaAttention.check_rows(*rows_of_heads(heads, rng, *variant))


@pytest.mark.parametrize("variant", [("float32", "bfloat16"), ("bfloat16", "float32")], ids="-".join)
@pytest.mark.parametrize("case", ["chunks-page64", "split-513"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_mixed_dtypes(kernels: str, case: str, variant: tuple[str, str], rng: Rng) -> None:
    TestMlaAttention.check_call(TestMlaAttention.cases[case](rng, *variant), kernels)


@pytest.mark.parametrize("number", [-1, "num_pages", INT_MAX, INT_MIN])
@pytest.mark.parametrize("keys", ["all", "cached"])
@SHAPES
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_visible_page_outside_the_pool_gives_nan(
    kernels: str, rank: int, rope: int, dtype: str, keys: str, number: int | str, rng: Rng
) -> None:
    call = make([(6, 12), (2, 8)], 3, rank, rope, 4, keys=keys)(rng, dtype, dtype)
    pages = call.arrays["pages"].copy()
    # With keys="all" the page of keys 8 .. 11 is seen by rows 2 .. 5 alone, with "cached" by none.
    pages[0, 2] = call.arrays["kv"].shape[1] if number == "num_pages" else number
    out, logsumexp = TestMlaAttention.check_call(call.changed(pages=pages), kernels)
    wanted = [False, False, True, True, True, True, False, False] if keys == "all" else [False] * 8
    assert np.isnan(np.asarray(out)).all(axis=(1, 2)).tolist() == wanted
    assert np.isnan(np.asarray(logsumexp)).all(axis=1).tolist() == wanted
    assert np.isfinite(np.asarray(out)[~np.array(wanted)]).all()


@pytest.mark.parametrize("page_size", [1, 3, 16])
@pytest.mark.parametrize("keys", ["all", "cached"])
@pytest.mark.parametrize("held", ["capacity + 1", INT_MAX])
@SHAPES
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_sequence_longer_than_its_table_is_nan_in_every_row(
    kernels: str, rank: int, rope: int, dtype: str, held: int | str, keys: str, page_size: int, rng: Rng
) -> None:
    """In the rows that see none of the missing keys as well, and in nobody else's."""
    call = make([(2, 9), (3, 40), (0, 4), (1, 30)], 3, rank, rope, page_size, keys=keys, behind=1)(
        rng, dtype, dtype
    )
    kv = normal(rng, call.arrays["kv"].shape, dtype)
    pages = rng.integers(0, kv.shape[1], call.arrays["pages"].shape).astype(np.int32)
    capacity = pages.shape[1] * page_size
    full = call.changed(kv=kv, pages=pages, seq_lens=np.array([9, capacity, 4, 30], np.int32))
    longer = capacity + 1 if held == "capacity + 1" else held
    over = full.changed(seq_lens=np.array([9, longer, longer, 30], np.int32))
    got, want = TestMlaAttention.call(over, kernels), TestMlaAttention.check_call(full, kernels)
    for value, alone in zip(got, want, strict=True):
        value, alone = np.asarray(value), np.asarray(alone)
        assert np.isnan(value[2:5]).all()
        assert same_bits(value[[0, 1, 5, 6]], alone[[0, 1, 5, 6]])


@pytest.mark.parametrize("keys", ["all", "cached"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_negative_lengths_hold_nothing(kernels: str, keys: str, rng: Rng) -> None:
    call = make([(2, 2), (3, 9)], 3, 8, 2, 4, keys=keys)(rng, "float32", "float32")
    call = call.changed(seq_lens=np.array([-1, INT_MIN], np.int32))
    out, logsumexp = TestMlaAttention.call(call, kernels)
    assert not np.asarray(out).any()
    assert np.isneginf(np.asarray(logsumexp)).all()


@pytest.mark.parametrize("layer", [-1, LAYERS, INT_MAX, INT_MIN])
@SHAPES
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_layer_outside_the_pool_gives_nan(
    kernels: str, rank: int, rope: int, dtype: str, layer: int, rng: Rng
) -> None:
    call = make([(2, 5), (0, 2)], 3, rank, rope, 4, behind=1)(rng, dtype, dtype)
    call = call.changed(layer=np.int32(layer), kv=normal(rng, call.arrays["kv"].shape, dtype))
    out, logsumexp = TestMlaAttention.check_call(call, kernels)
    assert np.isnan(np.asarray(out)[:2]).all()
    assert np.isneginf(np.asarray(logsumexp)[2]).all()


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_nan_key_reaches_only_the_queries_that_see_it(kernels: str, rng: Rng) -> None:
    call = make([(5, 9), (3, 9)], 3, 8, 2, 1)(rng, "float32", "float32")
    kv = call.arrays["kv"].copy()
    kv[LAYER, call.arrays["pages"][0, 7]] = np.nan
    out, logsumexp = TestMlaAttention.call(call.changed(kv=kv), kernels)
    clean, clean_logsumexp = TestMlaAttention.call(call, kernels)
    seeing, others = [3, 4], [0, 1, 2, 5, 6, 7]
    assert np.isnan(np.asarray(out)[seeing]).all()
    assert np.isnan(np.asarray(logsumexp)[seeing]).all()
    assert same_bits(np.asarray(out)[others], np.asarray(clean)[others])
    assert same_bits(np.asarray(logsumexp)[others], np.asarray(clean_logsumexp)[others])


@pytest.mark.parametrize("keys", ["all", "cached"])
@pytest.mark.parametrize("variant", TestMlaAttention.variants, ids="-".join)
@pytest.mark.bug("ROCm/aiter#2996", "test")
@pytest.mark.bug("sgl-project/sglang#25556", "test")
def test_every_page_size_gives_the_same_bits(variant: tuple[str, str], keys: str, rng: Rng) -> None:
    call = make([(3, 530), (1, 65), (7, 7)], 3, 24, 8, 64, keys=keys)(rng, *variant)
    contexts = []
    for s, n in enumerate(call.arrays["seq_lens"]):
        numbers = [call.arrays["pages"][s, j // 64] for j in range(n)]
        contexts.append(call.arrays["kv"][LAYER, numbers, np.arange(n) % 64])
    want = TestMlaAttention.check_call(call, "native")
    for page_size in (1, 3, 16, 1000):
        kv, pages = paged(rng, contexts, page_size, variant[1])
        got = TestMlaAttention.call(call.changed(kv=kv, pages=pages), "native")
        assert all(same_bits(g, w) for g, w in zip(got, want, strict=True)), page_size


@SHAPES
@pytest.mark.parametrize("kernels", KERNELS)
def test_pages_that_follow_each_other_here_and_there(
    kernels: str, rank: int, rope: int, dtype: str, rng: Rng
) -> None:
    """Kernels read several pages at once where they lie side by side: then every one of these must."""
    call = make([(1, 93)], 3, rank, rope, 8)(rng, dtype, dtype)
    numbers = call.arrays["pages"][0, :12]
    for order in ([4, 5, 9, 2, 0, 1, 12, 7, 10, 11, 8, 6], [9, 2, 4, 5, 7, 8, 10, 12, 0, 3, 13, 14]):
        others = np.setdiff1d(np.arange(15), order)
        kv, pages = poison(call.arrays["kv"].shape, dtype), call.arrays["pages"].copy()
        kv[:, order], pages[0, :12] = call.arrays["kv"][:, numbers], order
        assert np.isnan(kv[:, others].astype(np.float32)).all()
        TestMlaAttention.check_call(call.changed(kv=kv, pages=pages), kernels)


@pytest.mark.parametrize("kernels", KERNELS)
def test_sequences_may_share_pages(kernels: str, rng: Rng) -> None:
    call = make([(1, 12), (2, 14)], 3, 8, 2, 4)(rng, "float32", "float32")
    pages = call.arrays["pages"].copy()
    pages[1, :2] = pages[0, :2]
    TestMlaAttention.check_call(call.changed(pages=pages), kernels)


@pytest.mark.parametrize("kernels", KERNELS)
def test_more_rows_than_keys_see_nothing_at_first(kernels: str, rng: Rng) -> None:
    # Two of five rows lie in front of the sequence's first key: 0 and -inf, as for padding.
    call = make([(5, 3)], 2, 8, 2, 4)(rng, "float32", "float32")
    out, logsumexp = TestMlaAttention.check_call(call, kernels)
    assert np.isneginf(np.asarray(logsumexp)).all(axis=1).tolist() == [True, True, False, False, False]
    assert same_bits(out[:2], np.zeros((2, 2, 8), np.float32))


@pytest.mark.parametrize("kernels", KERNELS)
def test_equal_scores_average_the_rows(kernels: str) -> None:
    # A query of zeros ties every score: the output is the mean and logsumexp is log(n).
    rng = np.random.default_rng(0)
    call = make([(1, 600)], 2, 8, 2, 16)(rng, "float32", "float32")
    zeros = {name: np.zeros_like(call.arrays[name]) for name in ("q_latent", "q_rope")}
    out, logsumexp = TestMlaAttention.check_call(call.changed(**zeros), kernels)
    np.testing.assert_allclose(logsumexp, np.log(600), rtol=1e-6)
    assert np.abs(np.asarray(out)).max() < 0.3


@pytest.mark.parametrize("softmax_scale", [0.0, -0.05])
@SHAPES
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_scale_need_not_be_positive(
    kernels: str, rank: int, rope: int, dtype: str, softmax_scale: float, rng: Rng
) -> None:
    """Keys that a query does not see stay out of it even where the scale turns the order of scores around."""
    call = make([(21, 70), (1, 40)], 4, rank, rope, 16)(rng, dtype, dtype)
    TestMlaAttention.check_call(call.changed(softmax_scale=softmax_scale), kernels)


@pytest.mark.parametrize("longest", [70, 200], ids=["whole", "in-splits"])
@SHAPES
@pytest.mark.parametrize("kernels", KERNELS)
def test_scores_of_minus_infinity_weigh_nothing(
    kernels: str, rank: int, rope: int, dtype: str, longest: int, rng: Rng
) -> None:
    """As if the sequence began behind such keys; a row that sees no others gives 0 and -inf."""
    hidden, page_size = 40, 4
    call = make([(3, longest), (1, hidden)], 3, rank, rope, page_size)(rng, dtype, dtype)
    q_rope, kv = call.arrays["q_rope"].copy(), call.arrays["kv"].copy()
    first, behind = np.split(call.arrays["pages"], [hidden // page_size], axis=1)
    q_rope[:, :, 0] = 3e38
    kv[LAYER, :, :, rank] = 0
    kv[LAYER, first, :, rank] = -3e38
    call = call.changed(q_rope=q_rope, kv=kv)
    got = TestMlaAttention.call(call, kernels)
    others = call.changed(pages=behind, seq_lens=call.arrays["seq_lens"] - hidden)
    for value, want in zip(got, TestMlaAttention.expected(others), strict=True):
        check(value, want, f"mla_attention [{kernels}]")


@pytest.mark.parametrize("kernels", KERNELS)
def test_cached_and_new_keys_merge_to_all_keys(kernels: str, rng: Rng) -> None:
    call = make([(4, 530)], 3, 24, 8, 16)(rng, "float32", "float32")
    out, logsumexp = (np.asarray(x, np.float64) for x in TestMlaAttention.call(call, kernels))
    cached = TestMlaAttention.call(call.changed(keys="cached"), kernels)
    old_out, old_logsumexp = (np.asarray(x, np.float64) for x in cached)
    numbers = call.arrays["pages"][0, np.arange(526, 530) // 16]
    new = call.arrays["kv"][LAYER, numbers, np.arange(526, 530) % 16].astype(np.float64)
    query = np.concatenate([call.arrays["q_latent"], call.arrays["q_rope"]], -1).astype(np.float64)
    score = np.einsum("thw,kw->thk", query, new) * call.static["softmax_scale"]
    score[np.broadcast_to(np.tril(np.ones((4, 4)))[:, None] == 0, score.shape)] = -np.inf
    both = np.concatenate([score, old_logsumexp[:, :, None]], -1)
    total = np.logaddexp.reduce(both, axis=-1)
    np.testing.assert_allclose(logsumexp, total, rtol=1e-5)
    merged = np.einsum("thk,kr->thr", np.exp(score - total[..., None]), new[:, :24])
    merged += np.exp(old_logsumexp - total)[..., None] * old_out
    np.testing.assert_allclose(out, merged, atol=1e-5)


@pytest.mark.parametrize("kernels", KERNELS)
def test_an_empty_batch_and_an_empty_pool(kernels: str) -> None:
    for sequences, max_pages, num_pages in ((0, 4, 3), (2, 0, 3), (2, 4, 0)):
        call = Call(
            {
                "q_latent": poison((3, 2, 8)),
                "q_rope": poison((3, 2, 2)),
                "kv": poison((2, num_pages, 4, 10)),
                "layer": np.int32(0),
                "scales": np.ones(2, np.float32),
                "pages": np.zeros((sequences, max_pages), np.int32),
                "query_start_loc": np.zeros(sequences + 1, np.int32),
                "seq_lens": np.zeros(sequences, np.int32),
            },
            {"softmax_scale": 1.0},
        )
        for value, want in zip(
            TestMlaAttention.call(call, kernels), TestMlaAttention.expected(call), strict=True
        ):
            check(
                value, want, f"{kernels}: {sequences} sequences, {max_pages} pages, {num_pages} in the pool"
            )


@pytest.mark.parametrize(("max_pages", "num_pages"), [(0, 3), (4, 0)])
@pytest.mark.parametrize("kernels", KERNELS)
def test_keys_that_no_page_can_hold_are_nan(kernels: str, max_pages: int, num_pages: int) -> None:
    call = Call(
        {
            "q_latent": poison((4, 2, 8)),
            "q_rope": poison((4, 2, 2)),
            "kv": poison((2, num_pages, 4, 10)),
            "layer": np.int32(0),
            "scales": np.ones(2, np.float32),
            "pages": np.zeros((2, max_pages), np.int32),
            "query_start_loc": np.array([0, 1, 3], np.int32),
            "seq_lens": np.array([0, 5], np.int32),
        },
        {"softmax_scale": 1.0},
    )
    out, logsumexp = TestMlaAttention.call(call, kernels)
    assert np.isnan(np.asarray(out)).all(axis=(1, 2)).tolist() == [False, True, True, False]
    assert np.isnan(np.asarray(logsumexp)).all(axis=1).tolist() == [False, True, True, False]
    assert not np.asarray(out)[[0, 3]].any()
    assert np.isneginf(np.asarray(logsumexp)[[0, 3]]).all()


def test_bfloat16_weights_may_round_but_the_logsumexp_does_not(rng: Rng) -> None:
    """logsumexp merges partial results: its bound is float32's even where the output is bfloat16."""
    call = make([(2, 900)], 3, 24, 8, 16)(rng, "bfloat16", "bfloat16")
    _, logsumexp = TestMlaAttention.check_call(call, "native")
    want = TestMlaAttention.expected(call)[1]
    assert np.asarray(logsumexp).dtype == np.float32
    assert np.abs(np.asarray(logsumexp) - want.value).max() < 1e-5 * want.scale
    assert ml_dtypes.finfo(ml_dtypes.bfloat16).eps > 1e-3


@pytest.mark.parametrize("cache", ["bfloat16", "float8_e4m3fn"])
def test_native_with_scratch_for_more_splits_than_are_planned(cache: str, rng: Rng) -> None:
    # Five tokens: scratch for 264 // 5 splits of the keys, of which a GPU of 132 or 256 processors uses fewer.
    lengths = [(1, 3400), (1, 3), (1, 64), (1, 129), (1, 0)]
    TestMlaAttention.check_call(make(lengths, 16, 512, 64, 128)(rng, "bfloat16", cache), "native")


@pytest.mark.parametrize(
    ("processors", "rows", "heads", "capacity", "splits"),
    [
        # An H200's, of up to 16 heads and of more.
        (132, 4, 16, 1 << 16, 66),
        (132, 4, 17, 1 << 16, 33),
        (132, 3, 128, 1 << 16, 22),
        # AMD's.
        (256, 4, 16, 1 << 16, 66),
        (256, 4, 17, 1 << 16, 64),
        (256, 3, 128, 1 << 16, 42),
        # A record that does not say.
        (None, 4, 16, 1 << 16, 66),
        (None, 4, 17, 1 << 16, 33),
        # No more than 128, none of fewer than 64 keys, and one needs no scratch.
        (256, 1, 16, 1 << 16, 128),
        (256, 1, 32, 640, 10),
        (256, 200, 32, 1 << 16, 0),
        (256, 1, 32, 127, 0),
    ],
)
def test_scratch_follows_what_the_library_spreads_work_over(
    processors: int | None, rows: int, heads: int, capacity: int, splits: int
) -> None:
    said = {} if processors is None else {"processors": processors}
    library = registry.Library("rocm", "declared", frozenset({TARGET_WITH_SCRATCH}), "", said)
    arrays = {
        "q_latent": jax.ShapeDtypeStruct((rows, heads, 512), jnp.bfloat16),
        "q_rope": jax.ShapeDtypeStruct((rows, heads, 64), jnp.bfloat16),
        "kv": jax.ShapeDtypeStruct((1, 2, 1, 576), jnp.bfloat16),
        "layer": jax.ShapeDtypeStruct((), jnp.int32),
        "scales": jax.ShapeDtypeStruct((2,), jnp.float32),
        "pages": jax.ShapeDtypeStruct((rows, capacity), jnp.int32),
        "query_start_loc": jax.ShapeDtypeStruct((rows + 1,), jnp.int32),
        "seq_lens": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
    call = jax.jit(lambda a: mla_attention(**a, softmax_scale=1.0, kernels="native"))
    with registry.declared(library):
        text = call.trace(arrays).lower(lowering_platforms=("rocm",)).as_text()
    assert f"tensor<{splits}x{rows}x{heads}x512xf32>, tensor<{splits}x{rows}x{heads}xf32>" in text


@pytest.mark.parametrize("kernels", KERNELS)
def test_vmap_over_the_pool_is_refused(kernels: str, rng: Rng) -> None:
    call = TestMlaAttention.small_call(rng)
    axes = {name: 0 if name == "kv" else None for name in call.arrays}
    arrays = {**TestMlaAttention.device(call), "kv": jnp.stack([jnp.asarray(call.arrays["kv"])] * 2)}
    with pytest.raises(UnsupportedTransformError, match=r"mla_jax\.mla_attention: vmap over the pool"):
        jax.vmap(TestMlaAttention.bound(call, kernels), in_axes=(axes,))(arrays)
