"""Any history of steps, decodes, forks and frees: nobody's tokens ever show in another sequence."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from paged_model import (
    MAX_LEN,
    SEQS,
    Batch,
    assert_teacher_forced,
    decodes,
    natives,
    page_sizes,
    programs,
    token_lists,
)  # fmt: skip
from properties_of import holds, is_falsified

from mla_jax.paging import PageTable

operations = st.one_of(
    st.tuples(st.just("step"), st.tuples(*[token_lists(0, 6)] * SEQS)),
    st.tuples(st.just("decode"), decodes(1).map(lambda steps: steps[0])),
    st.tuples(st.just("fork"), st.tuples(st.permutations(range(SEQS)), st.integers(0, MAX_LEN))),
    st.tuples(st.just("free"), st.integers(0, SEQS - 1)),
)
DRAWN = {
    "page_size": page_sizes,
    "start": st.tuples(*[token_lists(1, 6)] * SEQS),
    "history": st.lists(operations, min_size=3, max_size=14),
}


def play(batch, start, history):
    """Runs what is drawn as far as it fits: nobody grows past MAX_LEN, nobody without tokens decodes."""
    batch.step(start)
    for name, what in history:
        room = [MAX_LEN - len(tokens) for tokens in batch.tokens]
        if name == "step":
            batch.step([tokens[: room[i]] for i, tokens in enumerate(what)])
        elif name == "decode":
            batch.decode([tokens[: room[i]] if batch.tokens[i] else [] for i, tokens in enumerate(what)])
        elif name == "fork":
            (source, target, _), length = what
            batch.fork(source, target, min(length, len(batch.tokens[source])))
        else:
            batch.free(what)


def a_history_is_teacher_forced(model, run):
    def check(page_size, start, history):
        batch = Batch(model, run, page_size)
        play(batch, start, history)
        assert_teacher_forced(batch)

    return check


@pytest.mark.bug("vllm-project/vllm#39146", "test")
def test_a_history_is_teacher_forced(model):
    holds(a_history_is_teacher_forced(model, natives()), **DRAWN)


def test_checked_steps_never_object_and_compute_the_same(model):
    def check(start, history):
        found = []
        for run in (natives(), natives(checks=True)):
            batch = Batch(model, run, 3)
            play(batch, start, history)
            found.append(batch.logged)
        for (_, _, logits), (_, _, other) in zip(*found, strict=True):
            np.testing.assert_array_equal(logits, other)

    holds(check, start=DRAWN["start"], history=DRAWN["history"])


def test_a_page_freed_while_a_fork_holds_it_is_found(model, monkeypatch):
    free = PageTable.free

    def for_everyone(self, released):
        after = free(self, released)
        return dataclasses.replace(
            after, ref_counts=jnp.where(after.ref_counts < self.ref_counts, 0, after.ref_counts)
        )

    monkeypatch.setattr(PageTable, "free", for_everyone)
    is_falsified(a_history_is_teacher_forced(model, programs()), **DRAWN)


def test_a_tail_page_shared_by_a_fork_is_found(model, monkeypatch):
    fork = PageTable.fork

    def with_tail(self, cache, source, target, length):
        after, cache = fork(self, cache, source, target, length)
        entry = jnp.arange(self.max_pages, dtype=jnp.int32)
        shared = jnp.where(entry * self.page_size < length, after.pages[source], self.num_pages)
        return dataclasses.replace(after, pages=after.pages.at[target].set(shared)), cache

    monkeypatch.setattr(PageTable, "fork", with_tail)
    is_falsified(a_history_is_teacher_forced(model, programs()), **DRAWN)
