"""`decode_steps`: the tokens, rows and lengths of single steps, whoever stops when."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mla_jax import verify
from mla_jax.cache import init_cache
from mla_jax.checking import checked
from mla_jax.errors import CheckError, LayoutError, ShapeError
from mla_jax.models import MLAForCausalLM, decode_loop, decode_step, decode_steps, freeze
from mla_jax.models.decode_loop import NO_TOKEN
from mla_jax.paging import AttentionMetadata, PageTable, advance
from mla_jax.testing import assert_in_place

ROWS, MAX_LEN = 3, 24
HELD = (5, 0, 3)
FIRST = (11, 12, 13)


def ints(*values):
    return jnp.array(values, jnp.int32)


@pytest.fixture
def pool(config):
    """Rows 0 and 2 hold tokens; NaN wherever nothing was stored."""
    cache = init_cache(config, num_tokens=ROWS * MAX_LEN, page_size=4)
    table = PageTable.allocate(cache, ROWS, MAX_LEN)
    kv = np.full(cache.kv.shape, np.nan, np.float32)
    rng = np.random.default_rng(4)
    for row, held in enumerate(HELD):
        for position in range(held):
            page = int(table.pages[row, position // 4])
            kv[:, page, position % 4] = rng.standard_normal((kv.shape[0], kv.shape[-1]))
    return cache.with_kv(jnp.asarray(kv)), table


def draw(logits, active, carry):
    """The likeliest token but two; a row goes on until its own number of tokens."""
    count, left = carry
    tokens = jax.lax.top_k(logits, 3)[1][:, 2]
    left = left - active.astype(jnp.int32)
    return tokens, left > 0, (count + 1, left)


@partial(jax.jit, static_argnames=("num_steps", "reserved"))
def several(model, tokens, cache, table, held, left, limit, *, num_steps, reserved=True):
    meta = AttentionMetadata.held(table, held)
    carry = (jnp.int32(0), left)
    return decode_steps(
        model, tokens, cache, meta, draw, carry, num_steps=num_steps, limit=limit, reserved=reserved
    )  # fmt: skip


@jax.jit
def one_more(model, tokens, cache, meta, active):
    meta = advance(meta, active)
    logits, cache = decode_step(model, tokens, cache, meta)
    return jax.lax.top_k(logits, 3)[1][:, 2].astype(jnp.int32), cache, meta


def by_single_steps(model, cache, table, left, steps):
    """What `several` should give: a program a step, with rows left out as they end."""
    left, tokens, meta = np.array(left), ints(*FIRST), AttentionMetadata.held(table, ints(*HELD))
    active, drawn = np.array(HELD) > 0, np.full((steps, ROWS), NO_TOKEN, np.int32)
    for step in range(steps):
        if not active.any():
            break
        new, cache, meta = one_more(model, tokens, cache, meta, active)
        tokens = jnp.where(active, new, tokens)
        drawn[step] = np.where(active, new, NO_TOKEN)
        left = left - active
        active = active & (left > 0)
    return drawn, tokens, active, cache, meta


@pytest.mark.parametrize("left", [(9, 9, 9), (2, 9, 4), (1, 1, 1)])
def test_several_steps_are_single_steps(model, pool, left):
    """The bits of every row stored; the row without tokens and those that ended store nothing."""
    cache, table = pool
    got = several(model, ints(*FIRST), cache, table, ints(*HELD), ints(*left), 6, num_steps=6)
    drawn, tokens, active, after, meta = by_single_steps(model, cache, table, left, 6)
    np.testing.assert_array_equal(got.tokens, drawn)
    np.testing.assert_array_equal(got.next_tokens, tokens)
    np.testing.assert_array_equal(got.active, active)
    np.testing.assert_array_equal(got.meta.seq_lens, meta.seq_lens)
    np.testing.assert_array_equal(got.cache.kv, after.kv)
    stored = (~np.isnan(np.asarray(got.cache.kv)).all(-1)).sum() // after.num_layers
    assert stored == sum(HELD) + (drawn != NO_TOKEN).sum()


@pytest.mark.parametrize(
    ("left", "limit", "taken"),
    [
        ((9, 9, 9), 6, 6),
        ((2, 9, 4), 6, 4),
        ((9, 9, 9), 2, 2),
        ((9, 9, 9), 0, 0),
        ((9, 9, 9), -1, 0),
        ((9, 9, 9), 7, 6),
    ],
)
def test_it_ends_with_the_last_sequence_or_the_limit(native_model, pool, left, limit, taken):
    cache, table = pool
    got = several(native_model, ints(*FIRST), cache, table, ints(*HELD), ints(*left), limit, num_steps=6)
    assert int(got.carry[0]) == taken
    assert (np.asarray(got.tokens)[taken:] == NO_TOKEN).all()
    assert got.meta.seq_lens.tolist() == [
        held + min(n, taken) if held else 0 for held, n in zip(HELD, left, strict=True)
    ]
    if taken == 0:
        assert got.next_tokens.tolist() == list(FIRST)
        np.testing.assert_array_equal(got.cache.kv, cache.kv)


def test_blocks_follow_each_other(native_model, pool):
    """`next_tokens`, `meta`, `active` and the carry are all that the next block needs."""
    cache, table = pool
    whole = several(native_model, ints(*FIRST), cache, table, ints(*HELD), ints(5, 9, 9), 6, num_steps=6)

    @jax.jit
    def on(before):
        return decode_steps(
            native_model, before.next_tokens, before.cache, before.meta, draw, before.carry,
            num_steps=6, limit=3, active=before.active, reserved=True,
        )  # fmt: skip

    half = several(native_model, ints(*FIRST), cache, table, ints(*HELD), ints(5, 9, 9), 3, num_steps=6)
    rest = on(half)
    np.testing.assert_array_equal(np.concatenate([half.tokens[:3], rest.tokens[:3]]), whole.tokens)
    np.testing.assert_array_equal(rest.cache.kv, whole.cache.kv)
    np.testing.assert_array_equal(rest.active, whole.active)


def test_one_step_has_no_loop(native_model, pool):
    cache, table = pool
    args = (native_model, ints(*FIRST), cache, table, ints(*HELD), ints(9, 9, 9))
    assert "while" not in several.lower(*args, None, num_steps=1).as_text()
    assert "while" in several.lower(*args, None, num_steps=2).as_text()
    single = several(*args, None, num_steps=1)
    looped = several(*args, 1, num_steps=6)
    np.testing.assert_array_equal(single.tokens[0], looped.tokens[0])
    np.testing.assert_array_equal(single.cache.kv, looped.cache.kv)


def test_pages_are_taken_unless_they_are_reserved(native_model, config):
    cache = init_cache(config, num_tokens=32, page_size=4)
    table = PageTable.empty(cache, ROWS, 12).append(ints(0, 0, 0), ints(3, 0, 4))
    args = (native_model, ints(*FIRST), cache, table, ints(3, 0, 4), ints(9, 9, 9), 5)
    taking = several(*args, num_steps=6, reserved=False)
    assert (taking.tokens[:5, ::2] != NO_TOKEN).all()
    assert (taking.meta.page_table.pages < 8).sum(axis=1).tolist() == [2, 0, 3]
    assert int(taking.meta.page_table.num_free()) == 3
    without = several(*args, num_steps=6, reserved=True)
    np.testing.assert_array_equal(without.meta.page_table.pages, table.pages)
    stored = np.asarray((without.cache.kv != 0).any(-1)).sum() // config.num_hidden_layers
    assert stored == 1  # position 3 of the first sequence: no other new token has a page


def test_the_pool_is_updated_in_place(native_model, config):
    """No copy of it in the loop or around it."""
    cache = init_cache(config, num_tokens=8192, page_size=4)
    table = PageTable.allocate(cache, ROWS, MAX_LEN)
    jitted = jax.jit(several.__wrapped__, donate_argnames="cache", static_argnames=("num_steps", "reserved"))
    args = (native_model, ints(*FIRST), cache, table, ints(*HELD), ints(9, 9, 9), 5)
    report = assert_in_place(jitted, *args, num_steps=6)
    assert report.alias_bytes >= cache.nbytes
    assert report.temp_bytes < cache.nbytes // 4


def test_no_weight_is_converted_before_the_loop(config):
    """XLA:CPU gathers bfloat16 through float32, and would keep the whole embedding in it, made once a program."""
    wide = dataclasses.replace(config, vocab_size=8191, dtype="bfloat16")
    model = freeze(MLAForCausalLM.abstract(wide, kernels="native"))
    cache = jax.eval_shape(lambda: init_cache(wide, num_tokens=64, page_size=4))
    table = jax.eval_shape(lambda: PageTable.empty(init_cache(wide, num_tokens=64, page_size=4), ROWS, 24))
    row = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    compiled = several.lower(model, row, cache, table, row, row, 5, num_steps=6).compile()
    logits = ROWS * wide.vocab_size * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * logits < wide.vocab_size * wide.hidden_size * 4


def test_the_steps_of_a_block_are_proven(native_model, pool):
    cache, table = pool
    args = (native_model, ints(*FIRST), cache, table, ints(*HELD), ints(9, 9, 9), 5)
    found = verify.check(partial(several.__wrapped__, num_steps=6), *args, strict=True)
    assert len(found) == native_model.config.num_hidden_layers


def test_an_nnx_model_is_taken_as_well(native_model, pool):
    cache, table = pool
    args = (ints(*FIRST), cache, table, ints(*HELD), ints(9, 9, 9), 3)
    plain = several(native_model, *args, num_steps=6)
    module = several(native_model.thaw(), *args, num_steps=6)
    np.testing.assert_array_equal(plain.tokens, module.tokens)


def test_a_checked_block_says_what_is_wrong(native_model, pool):
    cache, table = pool
    step = checked(
        lambda model, tokens, cache, table, held: decode_steps(
            model, tokens, cache, AttentionMetadata.held(table, held, checks=True), draw,
            (jnp.int32(0), ints(9, 9, 9)), num_steps=4, reserved=True,
        ).tokens
    )  # fmt: skip
    args = (native_model, ints(*FIRST), cache)
    expected = several(*args, table, ints(*HELD), ints(9, 9, 9), 4, num_steps=6).tokens
    np.testing.assert_array_equal(step(*args, table, ints(*HELD)), expected[:4])
    shared = dataclasses.replace(table, pages=table.pages.at[2, 1].set(table.pages[0, 1]))
    with pytest.raises(CheckError, match="page 1 at entry 1: it is in 2 entries"):
        step(*args, shared, ints(*HELD))
    # The third new token of the first sequence asks for its third page, in the loop.
    lacking = dataclasses.replace(table, pages=table.pages.at[0, 2].set(table.num_pages))
    with pytest.raises(CheckError, match="sequence 0: no page at entry 2 for the new token at position 8"):
        step(*args, lacking, ints(*HELD))


def refusals():
    yield {"num_steps": 0}, ShapeError, "argument 'num_steps': expected an integer >= 1, got 0"
    yield {"num_steps": 2.0}, ShapeError, "argument 'num_steps': expected an integer >= 1, got 2.0"
    yield {"num_steps": True}, ShapeError, "argument 'num_steps': expected an integer >= 1, got True"
    yield {"tokens": jnp.ones(3)}, ShapeError, r"decode_steps: argument 'tokens': expected integers of shape"
    yield {"tokens": ints(1, 2)}, ShapeError, r"expected shape \(3,\) as the metadata, got \(2,\)"
    yield {"meta": AttentionMetadata.dense(3, 1)}, LayoutError, "expected AttentionMetadata with a page table"
    yield {"meta": None}, LayoutError, "expected AttentionMetadata with a page table"
    yield (
        {"active": jnp.ones(2, bool)},
        ShapeError,
        r"argument 'active': expected a bool mask of shape \(3,\)",
    )
    yield {"active": ints(1, 1, 1)}, ShapeError, "argument 'active': expected a bool mask"
    yield {"limit": 1.5}, ShapeError, "argument 'limit': expected an integer, got float32 of shape"
    yield (
        {"limit": ints(1, 2)},
        ShapeError,
        r"argument 'limit': expected an integer, got int32 of shape \(2,\)",
    )
    floats = lambda logits, active, carry: (logits[:, 0], active, carry)  # noqa: E731
    yield {"draw": floats}, ShapeError, "decode_steps: draw: argument 'tokens': expected integers of shape"
    few = lambda logits, active, carry: (ints(1, 2), active, carry)  # noqa: E731
    yield {"draw": few}, ShapeError, r"draw: expected tokens of shape \(3,\), got \(2,\)"
    number = lambda logits, active, carry: (ints(1, 2, 3), ints(1, 1, 1), carry)  # noqa: E731
    yield (
        {"draw": number},
        ShapeError,
        r"draw: expected a bool mask of shape \(3,\) of who goes on, got int32",
    )


@pytest.mark.parametrize(("change", "error", "message"), list(refusals()))
def test_mistakes_are_refused(native_model, pool, change, error, message):
    cache, table = pool
    last = lambda logits, active, carry: (jnp.argmax(logits, -1).astype(jnp.int32), active, carry)  # noqa: E731
    arguments = {
        "tokens": ints(*FIRST), "meta": AttentionMetadata.held(table, ints(*HELD)), "draw": last, "num_steps": 2
    }  # fmt: skip
    with pytest.raises(error, match=message):
        decode_loop.decode_steps(native_model, cache=cache, **arguments | change)
