"""Any batch composition: what a sequence says depends on its own tokens, not on its row or on who is beside it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from paged_model import (
    BOUND,
    SEQS,
    Batch,
    assert_same_bits,
    decodes,
    natives,
    programs,
    prompts,
    token_lists,
)  # fmt: skip
from properties_of import holds, is_falsified

from mla_jax.paging import PageTable

DRAWN = {
    "mine": token_lists(2, 8),
    "others": prompts,
    "row": st.integers(0, SEQS - 1),
    "decodes": decodes(5),
}


def a_sequence_is_alone(model, run):
    """Its own tokens come in the same steps; the other rows are empty, or are drawn. Decoding gives the same bits."""

    def check(mine, others, row, decodes):
        alone, among = Batch(model, run, 3, seqs=1), Batch(model, run, 3)
        prompt, rest = mine[:-1], mine[-1:]
        alone.step([prompt])
        among.step([prompt if i == row else other for i, other in enumerate(others)])
        # The prompt's rows lie elsewhere in the step: the same sums in tiles of other rows.
        np.testing.assert_allclose(
            among.by_prefix()[row, len(prompt)], alone.logged[0][2], rtol=0, atol=BOUND
        )
        among.cache = among.cache.with_kv(_with_rows(among, row, alone.rows(0)))
        for new in decodes:
            alone.decode([rest])
            among.decode([rest if i == row else tokens for i, tokens in enumerate(new)])
            assert_same_bits(alone.logged[-1][2], among.by_prefix()[row, len(alone.tokens[0])])

    return check


def _with_rows(batch, sequence, rows):
    """The pool with a sequence's prompt as another batch has it, to the bit."""
    flat = batch._flat(batch.cache)
    flat[:, batch._slots(sequence)] = rows
    return jnp.asarray(flat.reshape(batch.cache.kv.shape))


@pytest.mark.bug("sgl-project/sglang#36207", "test")
def test_a_sequence_is_alone(model):
    holds(a_sequence_is_alone(model, natives()), **DRAWN)


def test_padding_in_a_neighbours_slot_is_found(model, monkeypatch):
    slots = PageTable.slots

    def reserved(self, sequence, positions):
        mapping = slots(self, sequence, positions)
        return dataclasses.replace(mapping, slots=jnp.where(mapping.stored, mapping.slots, 0))

    monkeypatch.setattr(PageTable, "slots", reserved)
    is_falsified(a_sequence_is_alone(model, programs()), **DRAWN)
