"""`prefill` and `decode_step` in checked mode; and that nothing is left of it where it is off."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mla_jax import paging, verify
from mla_jax.cache import init_cache
from mla_jax.checking import checked
from mla_jax.errors import CheckError, LayoutError
from mla_jax.models import causal_lm, decode_step, functions, prefill
from mla_jax.paging import AttentionMetadata, PageTable, advance
from mla_jax.testing import assert_in_place

ROWS = 6


def ints(*values):
    return jnp.array(values, jnp.int32)


def prompt(model, tokens, cache, table, held, new, **more):
    meta = AttentionMetadata.extend(table, held, new, num_tokens=ROWS, **more)
    return prefill(model, tokens, cache, meta)


def one_more(model, tokens, cache, table, held, new, **more):
    """`advance` in place of `new`: both steps take the same arguments."""
    del new
    meta = AttentionMetadata.extend(table, held, jnp.zeros_like(held), num_tokens=1, **more)
    return decode_step(model, tokens, cache, advance(meta))


STEPS = {"prefill": (prompt, ROWS), "decode_step": (one_more, 3)}


@pytest.fixture
def arguments(native_model, config):
    cache = init_cache(config, num_tokens=48, page_size=4)
    table = PageTable.allocate(cache, 3, 16)
    return lambda rows: (native_model, jnp.ones(rows, jnp.int32), cache, table, ints(5, 3, 0), ints(3, 0, 2))


# Off ---------------------------------------------------------------------------------------------------


def instructions(lowered):
    """Of the compiled module, without the tables of source lines: who called for it is not part of it."""
    lines = lowered.compile().as_text().splitlines()
    return [re.sub(r"metadata={[^}]*}", "", line) for line in lines if line.startswith(("  ", "%", "ENTRY"))]


@pytest.mark.parametrize("name", STEPS)
def test_off_is_the_module_without_it(arguments, monkeypatch, name):
    """Not a word of the lowered module and not an instruction of the compiled one is there for checks."""
    step, rows = STEPS[name]
    given = arguments(rows)

    def lowered(**more):
        function = partial(step, **more)
        function.__name__ = name  # otherwise the modules would be called differently
        return jax.jit(function).lower(*given)

    unasked, off = lowered(), lowered(checks=False)

    def never(*_, **__):
        raise AssertionError("a check was made where none was asked for")

    for module, function in (
        (causal_lm, "check_step"),
        (functions, "require"),
        (paging, "require"),
        (paging, "first_wrong"),
    ):
        monkeypatch.setattr(module, function, never)
    without = lowered(checks=False)
    assert unasked.as_text() == off.as_text() == without.as_text()
    assert "check" not in unasked.as_text()
    assert instructions(unasked) == instructions(off) != []
    monkeypatch.undo()
    on = checked(partial(step, checks=True)).lower(*given).as_text()
    assert len(on) > len(off.as_text())


def test_off_holds_for_what_advance_makes(arguments):
    *_, table, held, new = arguments(3)

    def text(**more):
        def step(table, held, new):
            return advance(AttentionMetadata.extend(table, held, new, num_tokens=ROWS, **more))

        return jax.jit(step).lower(table, held, new).as_text()

    assert text() == text(checks=False)


# On ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_on_computes_the_same_and_names_what_is_wrong(arguments, name):
    step, rows = STEPS[name]
    model, tokens, cache, table, held, new = arguments(rows)
    plain, run = jax.jit(step), checked(step, static_argnames="checks")
    expected = plain(model, tokens, cache, table, held, new)
    found = run(model, tokens, cache, table, held, new, checks=True)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)

    broken = dataclasses.replace(table, pages=table.pages.at[0, 3].set(99))
    sentence = "^AttentionMetadata: sequence 0: page 99 at entry 3: expected 0 <= page < 12, or 12 for none$"
    for call in (partial(run, checks=True), partial(step, checks=True)):  # inside jit and outside
        with pytest.raises(CheckError, match=sentence):
            call(model, tokens, cache, broken, held, new)
    plain(model, tokens, cache, broken, held, new)

    if name == "prefill":  # the page of a new token is as wrong, and not missing
        broken = dataclasses.replace(table, pages=table.pages.at[0, 1].set(-7))
        with pytest.raises(CheckError, match="sequence 0: page -7 at entry 1: expected 0 <= page < 12"):
            run(model, tokens, cache, broken, held, new, checks=True)


def test_a_length_past_the_models_context_is_named(arguments):
    model, tokens, cache, table, *_ = arguments(ROWS)
    short = dataclasses.replace(model, config=dataclasses.replace(model.config, index_topk=13)).thaw()
    for held, fits in ((11, True), (12, False)):
        meta = AttentionMetadata.extend(table, [held, 3, 0], [2, 0, 2], num_tokens=ROWS, checks=True)
        if fits:
            short(tokens, cache, meta)
            continue
        with pytest.raises(CheckError, match="sequence 0: length 14: expected 0 to 13 tokens"):
            short(tokens, cache, meta)


def test_a_step_without_a_pool_has_nothing_to_check(native_model):
    meta = dataclasses.replace(AttentionMetadata.dense(1, 2), checks=True)
    with pytest.raises(LayoutError, match="check_step: expected a pool and metadata of a paged step"):
        native_model.thaw()(ints(1, 2), None, meta)


@pytest.mark.parametrize("name", STEPS)
def test_under_plain_jit_a_checked_step_is_refused(arguments, name):
    step, rows = STEPS[name]
    with pytest.raises(ValueError, match="checkify"):
        jax.jit(partial(step, checks=True)).lower(*arguments(rows))


def test_a_prefills_metadata_in_a_decode_step_is_named(arguments):
    model, tokens, cache, table, held, _ = arguments(3)

    @checked
    def step(tokens, cache, table, held, new):
        meta = AttentionMetadata.extend(table, held, new, num_tokens=3, checks=True)
        return decode_step(model, tokens, cache, meta)

    step(tokens, cache, table, held, ints(1, 1, 1))
    with pytest.raises(
        CheckError,
        match=r"decode_step: sequence 1: expected one row, its own, got rows 1 to 1; call mla_jax.advance\(meta\)",
    ):
        step(tokens, cache, table, held, ints(1, 0, 2))


def test_a_scale_of_the_pool_is_named(native_model, config, arguments):
    _, tokens, _, table, held, new = arguments(ROWS)
    scales = jnp.ones((2, 2), jnp.float32).at[1, 0].set(jnp.nan)
    cache = init_cache(config, num_tokens=48, page_size=4, dtype="fp8", scales=scales)
    with pytest.raises(CheckError, match=r"LatentCache: layer 1: scale 0 \(0: latent, 1: RoPE\) is nan"):
        prompt(native_model, tokens, cache, table, held, new, checks=True)


@pytest.mark.parametrize("name", STEPS)
def test_a_checked_step_still_rotates_and_stores_once_and_in_place(native_model, config, name):
    step, rows = STEPS[name]
    cache = init_cache(config, num_tokens=4096, page_size=4)
    table = PageTable.allocate(cache, 3, 16)
    given = (native_model, jnp.ones(rows, jnp.int32), cache, table, ints(5, 3, 0), ints(3, 0, 2))
    verify.check(partial(step, checks=True), *given, strict=True)
    if name == "decode_step":  # a compilation of seconds
        assert_in_place(checked(partial(step, checks=True), donate_argnums=2), *given)


def test_a_checked_decode_loop_stops_at_the_first_mistake(arguments):
    """`while_loop` and `advance` carry checked metadata; the pool of one spare page runs dry in the loop."""
    model, _, cache, table, held, _ = arguments(3)
    tight = dataclasses.replace(table, ref_counts=table.ref_counts.at[10:].set(1))

    @checked
    def loop(cache, table, held, steps):
        meta = AttentionMetadata.extend(table, held, jnp.zeros_like(held), num_tokens=1, checks=True)

        def body(carry):
            count, tokens, cache, meta = carry
            logits, cache = decode_step(model, tokens, cache, meta)
            return count + 1, jnp.argmax(logits, -1).astype(jnp.int32), cache, advance(meta)

        start = (jnp.int32(0), ints(1, 2, 3), cache, advance(meta, jnp.array([True, True, True])))
        return jax.lax.while_loop(lambda carry: carry[0] < steps, body, start)[3].seq_lens

    np.testing.assert_array_equal(loop(cache, tight, held, 3), [9, 7, 4])
    lost = dataclasses.replace(tight, pages=tight.pages.at[1, 2].set(12).at[2, 2].set(12))
    lost = dataclasses.replace(lost, ref_counts=jnp.ones_like(lost.ref_counts))
    np.testing.assert_array_equal(loop(cache, lost, held, 3), [9, 7, 4])
    with pytest.raises(
        CheckError, match="sequence 1: no page at entry 2: expected 3 pages of 4 tokens for its 9"
    ):
        loop(cache, lost, held, 6)
