"""The typed path from projections to attention: wrong types cannot pass, right ones give the textbook's numbers."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mla_jax.cache import LatentCache
from mla_jax.errors import LayoutError, ShapeError, UnsupportedTransformError
from mla_jax.latent import (
    Appended,
    Unrotated,
    appended_rows,
    merge_attn_states,
    mla_attention,
    mla_attention_expanded,
    rope_append_latent,
)
from mla_jax.paging import AttentionMetadata, PageTable, SlotMapping, advance
from mla_jax.rope import RopeTable

KERNELS = ["reference", "native"]
HEADS, NOPE, ROPE, RANK, V = 3, 5, 6, 10, 7
EPS, SCALE = 1e-6, 0.31
LAYERS, LAYER = 3, 1


def normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def rope_table(layout="interleaved", positions=40):
    angles = np.arange(positions)[:, None] * np.array([1.0, 0.3, 0.05])[None, :]
    return RopeTable(
        jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32), layout
    )


def empty_pool(num_pages=12, page_size=4, layout="interleaved", dtype=jnp.float32, fill=np.nan):
    kv = jnp.full((LAYERS, num_pages, page_size, RANK + ROPE), fill, jnp.float32).astype(dtype)
    scales = jnp.asarray([[1.0, 1.0], [0.25, 0.5], [1.0, 1.0]], jnp.float32)
    return LatentCache(kv, scales, RANK, layout)


def case(rng, lens=(6, 0, 9), before=(0, 0, 0), padding=2, **pool):
    """A ragged step with poisoned padding rows, over a poisoned pool."""
    cache = empty_pool(**pool)
    table = PageTable.allocate(cache, len(lens), 16)
    total = sum(lens) + padding
    meta = AttentionMetadata.extend(table, list(before), list(lens), num_tokens=total)
    owned = jnp.arange(total) < sum(lens)
    q = jnp.where(owned[:, None, None], normal(rng, total, HEADS, NOPE + ROPE), jnp.nan)
    kv_a = jnp.where(owned[:, None], normal(rng, total, 2 + RANK + ROPE + 1), jnp.nan)
    return SimpleNamespace(
        unrotated=Unrotated(q, kv_a, 2),
        weight=normal(rng, RANK),
        table=rope_table(cache.rope_layout),
        cache=cache,
        meta=meta,
        live=sum(lens),
    )


def append(c, *, kernels="reference", **change):
    arguments = {
        "unrotated": c.unrotated,
        "table": c.table,
        "positions": c.meta.positions,
        "cache": c.cache,
        "slots": c.meta.slot_mapping,
        **change,
    }
    return rope_append_latent(
        arguments["unrotated"],
        c.weight,
        arguments["table"],
        arguments["positions"],
        arguments["cache"],
        LAYER,
        arguments["slots"],
        eps=EPS,
        kernels=kernels,
    )


def rotate(values, cos, sin, layout):
    """Pairs as complex numbers times e^(i angle), in float64."""
    half = values.shape[-1] // 2
    if layout == "half":
        first, second = values[..., :half], values[..., half:]
    else:
        first, second = values[..., 0::2], values[..., 1::2]
    turned = (first + 1j * second) * (cos + 1j * sin)
    out = np.empty_like(values)
    if layout == "half":
        out[..., :half], out[..., half:] = turned.real, turned.imag
    else:
        out[..., 0::2], out[..., 1::2] = turned.real, turned.imag
    return out


def rows_float64(c):
    positions = np.asarray(c.meta.positions)
    kv_a = np.asarray(c.unrotated.kv_a, np.float64)[:, 2 : 2 + RANK + ROPE]
    latent, key = kv_a[:, :RANK], kv_a[:, RANK:]
    latent = latent / np.sqrt((latent**2).mean(-1, keepdims=True) + EPS) * np.asarray(c.weight, np.float64)
    cos, sin = (np.asarray(part, np.float64)[positions] for part in (c.table.cos, c.table.sin))
    q = np.asarray(c.unrotated.q, np.float64)[:, :, NOPE:]
    q_rope = rotate(q, cos[:, None], sin[:, None], c.table.layout)
    return q_rope, np.concatenate([latent, rotate(key, cos, sin, c.table.layout)], -1)


# Types -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: {"unrotated": append(c)}, "argument 'unrotated': expected Unrotated .* got Appended"),
        (lambda c: {"unrotated": c.unrotated.q}, "argument 'unrotated': expected Unrotated"),
        (
            lambda c: {"table": (c.table.cos, c.table.sin)},
            "argument 'table': expected RopeTable .* got tuple",
        ),
        (lambda c: {"cache": c.cache.kv}, "argument 'cache': expected LatentCache"),
        (lambda c: {"slots": c.meta.page_table}, "argument 'slots': expected SlotMapping .* got PageTable"),
        (lambda c: {"slots": c.meta.slot_mapping.slots}, "argument 'slots': expected SlotMapping"),
        (lambda c: {"slots": None}, "argument 'slots': expected SlotMapping .* got NoneType"),
        (lambda c: {"cache": None}, "argument 'slots': expected None without a cache"),
        (
            lambda c: {"table": rope_table("half")},
            "the table rotates 'half' pairs, the cache .* 'interleaved'",
        ),
        (
            lambda c: {"cache": empty_pool(layout="half")},
            "the table rotates 'interleaved' pairs, the cache was written with 'half'",
        ),
        (
            lambda c: {"slots": SlotMapping(c.meta.slot_mapping.slots, 48, 3)},
            r"SlotMapping was made for \(num_slots, page_size\) = \(48, 3\), the cache has \(48, 4\)",
        ),
        (lambda c: {"cache": empty_pool(num_pages=13)}, "SlotMapping was made for .* the cache has"),
    ],
)
@pytest.mark.bug("vllm-project/vllm#13418", "type")
def test_append_refuses_mix_ups(rng, make, message, jit):
    c = case(rng)
    change = make(c)
    run = (lambda: jax.eval_shape(lambda: append(c, **change))) if jit else (lambda: append(c, **change))
    with pytest.raises(LayoutError, match=f"rope_append_latent: {message}"):
        run()
    assert issubclass(LayoutError, TypeError)


@pytest.mark.bug("sgl-project/sglang#24148", "type")
def test_appended_cannot_be_made_by_hand(rng):
    appended = append(case(rng))
    fields = (appended.q, appended.q_rope, appended.cache, appended.layer, appended.rows)
    for make in (
        lambda: Appended(*fields),
        lambda: Appended(*fields, seal=object()),
        lambda: Appended(*fields, seal=True),
        lambda: Appended(),
        lambda: dataclasses.replace(appended, cache=empty_pool()),
    ):
        with pytest.raises(
            (LayoutError, TypeError), match=r"Appended is made by rope_append_latent only|unexpected"
        ):
            make()


def test_appended_cannot_be_changed(rng):
    appended = append(case(rng))
    with pytest.raises(dataclasses.FrozenInstanceError):
        appended.q_rope = appended.q


@pytest.mark.parametrize("attend", ["absorbed", "expanded"])
@pytest.mark.bug("sgl-project/sglang#24148", "type")
@pytest.mark.bug("sgl-project/sglang#21315", "type")
def test_attention_takes_nothing_but_appended(rng, attend):
    c = case(rng)
    appended = append(c)
    q_latent = jnp.zeros((c.meta.num_tokens, HEADS, RANK), jnp.float32)
    rows = appended_rows(appended, c.meta)
    kv = jnp.zeros((c.meta.num_tokens, HEADS * (NOPE + V)), jnp.float32)
    call = {
        "absorbed": lambda wrong: mla_attention(q_latent, wrong, c.meta, SCALE),
        "expanded": lambda wrong: mla_attention_expanded(wrong, rows, kv, c.meta, SCALE, nope=NOPE, v=V),
    }[attend]
    for wrong in (c.unrotated, rows, c.unrotated.q, appended.cache, (appended.q, appended.q_rope), None):
        with pytest.raises(LayoutError, match=f"'appended': expected Appended .* got {type(wrong).__name__}"):
            call(wrong)


@pytest.mark.bug("sgl-project/sglang#25556", "type")
def test_absorbed_attention_needs_a_pool_and_its_own_page_table(rng):
    c = case(rng)
    q_latent = jnp.zeros((c.meta.num_tokens, HEADS, RANK), jnp.float32)
    without = append(c, cache=None, slots=None)
    with pytest.raises(LayoutError, match="without a pool use mla_attention_expanded"):
        mla_attention(q_latent, without, c.meta, SCALE)
    dense = AttentionMetadata.dense(1, c.meta.num_tokens)
    with pytest.raises(LayoutError, match="expected rows in a pool and metadata with a page table"):
        mla_attention(q_latent, append(c), dense, SCALE)
    with pytest.raises(LayoutError, match="appended_rows: argument 'meta': expected a slot mapping"):
        appended_rows(append(c), dense)
    for other in (
        empty_pool(num_pages=13),
        empty_pool(num_pages=24, page_size=2),
        empty_pool(num_pages=12, page_size=2),
    ):
        foreign = dataclasses.replace(c.meta, page_table=PageTable.allocate(other, 3, 8))
        with pytest.raises(LayoutError, match="mla_attention: PageTable was made for"):
            mla_attention(q_latent, append(c), foreign, SCALE)
    foreign = dataclasses.replace(c.meta, slot_mapping=SlotMapping(c.meta.slot_mapping.slots, 24, 2))
    with pytest.raises(LayoutError, match="appended_rows: SlotMapping was made for"):
        appended_rows(append(c), foreign)


# What is stored ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_rows_and_queries_match_a_float64_evaluation(rng, layout, kernels):
    c = case(rng, before=(3, 0, 7), layout=layout)
    appended = append(c, kernels=kernels)
    q_rope, rows = rows_float64(c)
    np.testing.assert_allclose(appended.q_rope[: c.live], q_rope[: c.live], atol=2e-6)
    stored = np.asarray(appended.cache.kv).reshape(LAYERS, -1, RANK + ROPE)
    slots = np.asarray(c.meta.slot_mapping.slots)[: c.live]
    np.testing.assert_allclose(stored[LAYER, slots], rows[: c.live], atol=2e-6)
    # Nothing else was written: not the other layers, not the slots beside these.
    untouched = np.ones(stored.shape[:2], bool)
    untouched[LAYER, slots] = False
    assert np.isnan(stored[untouched]).all()
    np.testing.assert_array_equal(appended.q[: c.live], c.unrotated.q[: c.live])
    assert int(appended.layer) == LAYER
    assert appended.rows is None


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_rows_without_a_pool_are_the_rows_in_the_pool(rng, layout, kernels):
    c = case(rng, layout=layout, before=(0, 0, 5))
    appended = append(c, kernels=kernels)
    alone = append(c, cache=None, slots=None, kernels=kernels)
    np.testing.assert_array_equal(alone.q_rope[: c.live], appended.q_rope[: c.live])
    np.testing.assert_array_equal(alone.rows[: c.live], appended_rows(appended, c.meta)[: c.live])
    np.testing.assert_array_equal(appended_rows(alone, c.meta), alone.rows)
    assert alone.cache is None


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("layout", ["interleaved", "half"])
@pytest.mark.bug("vllm-project/vllm#56314", "test")
def test_identity_table_is_no_rotation(rng, layout, kernels):
    c = case(rng, layout=layout, before=(9, 0, 3), padding=0)
    appended = append(c, table=RopeTable.identity(ROPE, 1, layout), kernels=kernels)
    np.testing.assert_array_equal(appended.q_rope, c.unrotated.q[:, :, NOPE:])
    np.testing.assert_array_equal(
        appended_rows(appended, c.meta)[:, RANK:], c.unrotated.kv_a[:, 2 + RANK : 2 + RANK + ROPE]
    )


def test_rows_that_were_not_stored_come_back_as_zeros(rng):
    c = case(rng)
    rows = appended_rows(append(c), c.meta)
    assert not np.asarray(rows[c.live :]).any()
    outside = dataclasses.replace(c.meta.slot_mapping, slots=jnp.full((c.meta.num_tokens,), -1, jnp.int32))
    meta = dataclasses.replace(c.meta, slot_mapping=outside)
    appended = append(c, slots=outside)
    assert not np.asarray(appended_rows(appended, meta)).any()
    assert np.isnan(np.asarray(appended.cache.kv)).all()


@pytest.mark.parametrize("kernels", KERNELS)
def test_appended_rows_of_an_fp8_pool_are_what_attention_sees(rng, kernels):
    c = case(rng, dtype=jnp.float8_e4m3fn)
    appended = append(c, kernels=kernels)
    rows = np.asarray(appended_rows(appended, c.meta))[: c.live]
    assert rows.dtype == np.float32
    stored = np.asarray(appended.cache.kv.astype(jnp.float32)).reshape(LAYERS, -1, RANK + ROPE)
    scale = np.concatenate([np.full(RANK, 0.25), np.full(ROPE, 0.5)]).astype(np.float32)
    np.testing.assert_array_equal(
        rows, stored[LAYER, np.asarray(c.meta.slot_mapping.slots)[: c.live]] * scale
    )
    # e4m3 has 3 bits of mantissa (half a step is 2^-4) and subnormals of 2^-9.
    exact = rows_float64(c)[1][: c.live]
    assert (np.abs(rows - exact) <= 2**-4 * np.abs(exact) + 2**-10 * scale + 1e-6).all()
    assert np.abs(rows - exact).max() > 1e-3


def test_appended_rows_of_a_bfloat16_pool_are_rounded_once(rng):
    c = case(rng, dtype=jnp.bfloat16)
    rows = appended_rows(append(c), c.meta)[: c.live]
    alone = append(c, cache=None, slots=None).rows[: c.live]
    assert rows.dtype == jnp.float32
    np.testing.assert_array_equal(rows, alone.astype(jnp.bfloat16).astype(jnp.float32))


# Attention ---------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("keys", "kernels"))
def _attend(unrotated, weight, table, cache, meta, w, keys, kernels):
    appended = rope_append_latent(
        unrotated, weight, table, meta.positions, cache, LAYER, meta.slot_mapping, eps=EPS, kernels=kernels
    )
    heads = w.reshape(HEADS, NOPE + V, RANK)
    exact = jax.lax.Precision.HIGHEST
    q_latent = jnp.einsum("thd,hdr->thr", appended.q[:, :, :NOPE], heads[:, :NOPE], precision=exact)
    latent, lse = mla_attention(q_latent, appended, meta, SCALE, keys=keys, kernels=kernels)
    absorbed = jnp.einsum("thr,hdr->thd", latent, heads[:, NOPE:], precision=exact)
    rows = appended_rows(appended, meta)
    kv = jnp.dot(rows[:, :RANK], w.T, precision=exact)
    own, own_lse = mla_attention_expanded(appended, rows, kv, meta, SCALE, nope=NOPE, v=V, kernels=kernels)
    return (absorbed, lse), (own, own_lse), appended.cache


def attend(c, w, keys, kernels):
    """Both forms on one step: absorbed over `keys`, expanded over the new tokens, with kv_b per head."""
    return _attend(c.unrotated, c.weight, c.table, c.cache, c.meta, w, keys, kernels)


def textbook(c, w, before_rows=None):
    """Softmax over all visible keys of each query, in float64; before_rows: per sequence, cached rows."""
    q_rope, rows = rows_float64(c)
    heads = np.asarray(w, np.float64).reshape(HEADS, NOPE + V, RANK)
    q = np.asarray(c.unrotated.q, np.float64)
    starts = np.asarray(c.meta.query_start_loc)
    out, lse = np.zeros((c.live, HEADS, V)), np.full((c.live, HEADS), -np.inf)
    for s in range(len(starts) - 1):
        cached = np.zeros((0, RANK + ROPE)) if before_rows is None else before_rows[s]
        for t in range(starts[s], starts[s + 1]):
            seen = np.concatenate([cached, rows[starts[s] : t + 1]])
            key, value = (
                seen[:, :RANK] @ heads[:, :NOPE].swapaxes(1, 2),
                seen[:, :RANK] @ heads[:, NOPE:].swapaxes(1, 2),
            )
            score = (np.einsum("hd,hkd->hk", q[t, :, :NOPE], key) + q_rope[t] @ seen[:, RANK:].T) * SCALE
            weight = np.exp(score - score.max(-1, keepdims=True))
            lse[t] = score.max(-1) + np.log(weight.sum(-1))
            out[t] = np.einsum("hk,hkd->hd", weight / weight.sum(-1, keepdims=True), value)
    return out, lse


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_absorbed_and_expanded_are_the_textbook(rng, layout, kernels):
    c = case(rng, layout=layout)
    w = normal(rng, HEADS * (NOPE + V), RANK)
    expected, expected_lse = textbook(c, w)
    for out, lse in attend(c, w, "all", kernels)[:2]:
        np.testing.assert_allclose(out[: c.live], expected, atol=2e-5)
        np.testing.assert_allclose(lse[: c.live], expected_lse, atol=1e-5)
        # Rows that no sequence owns: 0 and -inf, whatever they held.
        assert not np.asarray(out[c.live :]).any()
        assert np.isneginf(np.asarray(lse[c.live :])).all()


@pytest.mark.parametrize("kernels", KERNELS)
def test_expanded_with_cached_is_absorbed_over_all(rng, kernels):
    """A second chunk: new tokens expanded, older ones absorbed, merged; against one softmax over both."""
    w = normal(rng, HEADS * (NOPE + V), RANK)
    first = case(rng, lens=(5, 3, 0), padding=0)
    cache = attend(first, w, "all", kernels)[2]
    rows = rows_float64(first)[1]
    second = case(rng, lens=(4, 1, 6), before=(5, 3, 0))
    second.cache, second.weight = cache, first.weight
    expected, expected_lse = textbook(second, w, [rows[:5], rows[5:8], rows[:0]])
    (whole, whole_lse), (own, own_lse), _ = attend(second, w, "all", kernels)
    (cached, cached_lse), _, _ = attend(second, w, "cached", kernels)
    merged, merged_lse = merge_attn_states(own, own_lse, cached, cached_lse)
    for out, lse in ((whole, whole_lse), (merged, merged_lse)):
        np.testing.assert_allclose(out[: second.live], expected, atol=2e-5)
        np.testing.assert_allclose(lse[: second.live], expected_lse, atol=1e-5)
    # The third sequence has nothing cached.
    assert np.isneginf(np.asarray(cached_lse[5 : second.live])).all()


@pytest.mark.parametrize("kernels", KERNELS)
def test_half_of_permuted_projections_is_interleaved(rng, kernels):
    """Pairs (2i, 2i+1) become (i, i + P/2) when the rope rows of both projections are reordered alike."""
    w = normal(rng, HEADS * (NOPE + V), RANK)
    pairs = case(rng, before=(2, 0, 5), padding=0)
    pairs.cache = empty_pool(fill=0.0)
    order = np.concatenate([np.arange(0, ROPE, 2), np.arange(1, ROPE, 2)])
    halves = SimpleNamespace(**vars(pairs))
    q, kv_a = pairs.unrotated.q, pairs.unrotated.kv_a
    halves.unrotated = Unrotated(
        q.at[:, :, NOPE:].set(q[:, :, NOPE + order]),
        kv_a.at[:, 2 + RANK : 2 + RANK + ROPE].set(kv_a[:, 2 + RANK + order]),
        2,
    )
    halves.table, halves.cache = rope_table("half"), empty_pool(fill=0.0, layout="half")
    (a, lse_a), (own_a, _), cache_a = attend(pairs, w, "all", kernels)
    (b, lse_b), (own_b, _), cache_b = attend(halves, w, "all", kernels)
    np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(own_a, own_b, atol=1e-5)
    np.testing.assert_allclose(lse_a, lse_b, atol=1e-5)
    np.testing.assert_array_equal(cache_a.kv[..., RANK + order], cache_b.kv[..., RANK:])
    # Without the permutation it is another answer.
    halves.unrotated = pairs.unrotated
    assert np.abs(np.asarray(attend(halves, w, "all", kernels)[0][0]) - np.asarray(a)).max() > 1e-2


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_sequence_without_pages_is_nan_and_others_are_not_touched(rng, kernels):
    c = case(rng, lens=(6, 2, 5), padding=0)
    w = normal(rng, HEADS * (NOPE + V), RANK)
    clean = np.asarray(attend(c, w, "all", kernels)[0][0])
    broken = SimpleNamespace(**vars(c))
    table = c.meta.page_table
    pages = table.pages.at[1, 0].set(table.num_pages)
    broken.meta = dataclasses.replace(c.meta, page_table=dataclasses.replace(table, pages=pages))
    out, lse = attend(broken, w, "all", kernels)[0]
    assert np.isnan(np.asarray(out[6:8])).all()
    assert np.isnan(np.asarray(lse[6:8])).all()
    np.testing.assert_array_equal(out[:6], clean[:6])
    np.testing.assert_array_equal(out[8:], clean[8:])


# merge_attn_states -------------------------------------------------------------------------------------


def states(rng, sets, keys=5):
    """Attention states over `sets` disjoint key sets, and the state over their union, in float64."""
    score, value = rng.standard_normal((sets, 4, HEADS, keys)) * 3, rng.standard_normal((sets, keys, V))

    def over(s, v):
        weight = np.exp(s)
        total = weight.sum(-1)
        return np.einsum("thk,kv->thv", weight, v) / total[..., None], np.log(total)

    parts = [over(score[i], value[i]) for i in range(sets)]
    union = over(np.concatenate(list(score), -1), np.concatenate(list(value), 0))
    return [tuple(jnp.asarray(a, jnp.float32) for a in part) for part in parts], union


def test_merge_is_one_softmax_in_any_order(rng):
    (a, b, c), (out, lse) = states(rng, 3)
    left = merge_attn_states(*merge_attn_states(*a, *b), *c)
    right = merge_attn_states(*a, *merge_attn_states(*b, *c))
    swapped = merge_attn_states(*c, *merge_attn_states(*b, *a))
    for got, got_lse in (left, right, swapped):
        np.testing.assert_allclose(got, out, atol=2e-6)
        np.testing.assert_allclose(got_lse, lse, atol=2e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 0.0])
def test_merge_ignores_what_an_empty_set_holds(rng, poison):
    ((out, lse), _), _ = states(rng, 2)
    empty = jnp.full_like(out, poison), jnp.full_like(lse, -jnp.inf)
    for got, got_lse in (merge_attn_states(out, lse, *empty), merge_attn_states(*empty, out, lse)):
        np.testing.assert_array_equal(got, out)
        np.testing.assert_allclose(got_lse, lse, atol=1e-6)
    got, got_lse = merge_attn_states(*empty, *empty)
    assert not np.asarray(got).any()
    assert np.isneginf(np.asarray(got_lse)).all()


def test_merge_keeps_a_broken_sides_nan(rng):
    ((out, lse), (other, other_lse)), _ = states(rng, 2)
    got, got_lse = merge_attn_states(out.at[1].set(jnp.nan), lse.at[1].set(jnp.nan), other, other_lse)
    assert np.isnan(np.asarray(got[1])).all()
    assert np.isnan(np.asarray(got_lse[1])).all()
    assert np.isfinite(np.asarray(got[jnp.array([0, 2, 3])])).all()


def test_merge_of_far_apart_states_does_not_overflow(rng):
    ((out, lse), (other, other_lse)), _ = states(rng, 2)
    got, got_lse = merge_attn_states(out, lse + 1e4, other, other_lse - 1e4)
    np.testing.assert_array_equal(got, out)
    np.testing.assert_array_equal(got_lse, lse + 1e4)


def test_merge_rounds_once_to_the_first_outputs_dtype(rng):
    ((a, lse_a), (b, lse_b)), _ = states(rng, 2)
    low = [x.astype(jnp.bfloat16) for x in (a, b)]
    got, lse = merge_attn_states(low[0], lse_a, low[1], lse_b)
    assert (got.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    exact, _ = merge_attn_states(low[0].astype(jnp.float32), lse_a, low[1].astype(jnp.float32), lse_b)
    np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))


# Transformations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", KERNELS)
def test_types_survive_jit_scan_tree_map_and_eval_shape(rng, kernels):
    c = case(rng, padding=0)
    eager = append(c, kernels=kernels)

    @jax.jit
    def every_layer(unrotated, cache, meta):
        def layer(cache, number):
            appended = rope_append_latent(
                unrotated,
                c.weight,
                c.table,
                meta.positions,
                cache,
                number,
                meta.slot_mapping,
                eps=EPS,
                kernels=kernels,
            )
            return appended.cache, appended

        return jax.lax.scan(layer, cache, jnp.arange(LAYERS, dtype=jnp.int32))

    cache, stacked = every_layer(c.unrotated, c.cache, c.meta)
    assert isinstance(cache, LatentCache)
    assert isinstance(stacked, Appended)
    np.testing.assert_array_equal(stacked.layer, [0, 1, 2])
    for number in range(LAYERS):
        np.testing.assert_array_equal(cache.kv[number], eager.cache.kv[LAYER])
        np.testing.assert_array_equal(stacked.q_rope[number], eager.q_rope)

    mapped = jax.tree.map(lambda leaf: leaf, eager)
    assert isinstance(mapped, Appended)
    assert mapped.cache.rope_layout == "interleaved"
    shapes = jax.eval_shape(lambda: append(c, kernels=kernels))
    assert jax.tree.structure(shapes) == jax.tree.structure(eager)


@pytest.mark.parametrize("kernels", KERNELS)
def test_attention_under_vmap_over_metadata(rng, kernels):
    """The pool stays one; queries and metadata get a batch axis."""
    c = case(rng, lens=(4, 4, 4), padding=0)
    appended = append(c, kernels=kernels)
    step = advance(c.meta, jnp.ones(3, bool))
    variants = [dataclasses.replace(step, seq_lens=step.seq_lens - drop) for drop in (1, 2, 3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *variants)
    queries = normal(rng, 3, 3, HEADS, RANK)
    rope = jax.tree.map(lambda leaf: leaf, appended)
    short = jax.tree.unflatten(
        jax.tree.structure(rope), [leaf[:3] if leaf.ndim == 3 else leaf for leaf in jax.tree.leaves(rope)]
    )

    def one(q_latent, meta):
        return mla_attention(q_latent, short, meta, SCALE, kernels=kernels)

    out, lse = jax.vmap(one)(queries, stacked)
    for i, meta in enumerate(variants):
        expected, expected_lse = one(queries[i], meta)
        np.testing.assert_array_equal(out[i], expected)
        np.testing.assert_array_equal(lse[i], expected_lse)
    assert np.isfinite(np.asarray(lse)).all()


def test_vmap_over_pools_is_refused(rng):
    c = case(rng)
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), c.cache)
    with pytest.raises(UnsupportedTransformError, match="no vmap rule"):
        jax.vmap(lambda cache: append(c, cache=cache).q_rope)(two)


def test_grad_through_the_pool_is_refused_and_without_it_is_not(rng):
    c = case(rng, padding=0)

    def loss(q, cache, slots):
        return jnp.sum(
            append(c, unrotated=Unrotated(q, c.unrotated.kv_a, 2), cache=cache, slots=slots).q_rope
        )

    with pytest.raises(UnsupportedTransformError, match="pass cache=None to differentiate"):
        jax.grad(loss)(c.unrotated.q, c.cache, c.meta.slot_mapping)
    gradient = np.asarray(jax.grad(loss)(c.unrotated.q, None, None))
    assert not gradient[:, :, :NOPE].any()
    assert np.abs(gradient[:, :, NOPE:]).min() > 0


def test_a_fused_projections_offset_is_checked(rng):
    c = case(rng)
    with pytest.raises(ShapeError, match="argument 'kv_offset'"):
        append(c, unrotated=Unrotated(c.unrotated.q, c.unrotated.kv_a, 4))
    with pytest.raises(ShapeError, match="argument 'kv_offset'"):
        append(c, unrotated=Unrotated(c.unrotated.q, c.unrotated.kv_a, -1))
    with pytest.raises(ShapeError, match="argument 'q_offset'"):
        append(c, unrotated=Unrotated(c.unrotated.q[:, :, : ROPE - 1], c.unrotated.kv_a, 2))
