"""A sequence that lost its pages and got others is the sequence that never did.

Two ways back: its rows were saved and are put where pages are free now (the same bits), or its tokens are
prefilled again (the same values).
"""

import dataclasses

import numpy as np
from hypothesis import strategies as st
from paged_model import BOUND, SEQS, Batch, assert_same_bits, natives, page_sizes, programs, prompts, token
from properties_of import holds, is_falsified

from mla_jax.paging import PageTable

STEPS = 6
DRAWN = {
    "page_size": page_sizes,
    "prompts": prompts,
    "tokens": st.lists(st.tuples(*[token] * SEQS), min_size=STEPS, max_size=STEPS),
    "victim": st.integers(0, SEQS - 1),
    "when": st.tuples(st.integers(0, STEPS - 2), st.integers(1, STEPS - 1)),
    "saved": st.booleans(),
}


def resumed_is_never_preempted(model, run):
    """The victim loses its pages before step `when[0]`; the others do `when[1]` steps, and may take them."""

    def check(page_size, prompts, tokens, victim, when, saved):
        begin, steps_out = when
        usual, preempted = Batch(model, run, page_size), Batch(model, run, page_size)
        for batch in (usual, preempted):
            batch.step(prompts)
        for new in tokens:
            usual.decode([[one] for one in new])

        for i in range(STEPS + steps_out):
            own = i if i < begin else i - steps_out  # which of its tokens is next, where it is there
            if i == begin:
                held, rows = list(preempted.tokens[victim]), preempted.rows(victim)
                preempted.free(victim)
            if i == begin + steps_out:
                if saved:
                    preempted.put_back(victim, held, rows)
                else:
                    preempted.step([held if s == victim else [] for s in range(SEQS)])
            present = not begin <= i < begin + steps_out
            new = [[tokens[i][s]] if i < STEPS else [] for s in range(SEQS)]
            new[victim] = [tokens[own][victim]] if present else []
            preempted.decode(new)
        expected, got = usual.by_prefix(), preempted.by_prefix()
        assert expected.keys() == got.keys()
        for (s, length), logits in expected.items():
            if s == victim and not saved and length >= len(held):
                np.testing.assert_allclose(got[s, length], logits, rtol=0, atol=BOUND)
            else:
                assert_same_bits(got[s, length], logits)

    return check


def test_resumed_is_never_preempted(model):
    holds(resumed_is_never_preempted(model, natives()), **DRAWN)


def test_a_stale_page_of_a_resumed_sequence_is_found(model, monkeypatch):
    free = PageTable.free

    def but_the_first(self, released):
        after = free(self, released)
        return dataclasses.replace(after, pages=after.pages.at[:, 0].set(self.pages[:, 0]))

    monkeypatch.setattr(PageTable, "free", but_the_first)
    is_falsified(resumed_is_never_preempted(model, programs()), **DRAWN)
