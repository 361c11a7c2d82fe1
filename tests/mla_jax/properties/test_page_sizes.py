"""Any page size gives the same bits: it decides where rows lie, never what is computed from them."""

import dataclasses

import jax.numpy as jnp
import pytest
from hypothesis import strategies as st
from paged_model import PAGE_SIZES, Batch, assert_same_bits, decodes, natives, programs, prompts
from properties_of import holds, is_falsified

from mla_jax.paging import PageTable

DRAWN = {"sizes": st.permutations(PAGE_SIZES), "prompts": prompts, "decodes": decodes(5)}


def any_page_size_is_any_other(model, run):
    def check(sizes, prompts, decodes):
        found = []
        for page_size in sizes[:2]:
            batch = Batch(model, run, page_size)
            batch.step(prompts)
            for new in decodes:
                batch.decode(new)
            found.append(batch.logged)
        for (_, tokens, logits), (_, same_tokens, other) in zip(*found, strict=True):
            assert tokens == same_tokens
            assert_same_bits(logits, other)

    return check


@pytest.mark.bug("sgl-project/sglang#25556", "test")
@pytest.mark.bug("ROCm/aiter#2996", "test")
def test_any_page_size_is_any_other(model):
    holds(any_page_size_is_any_other(model, natives()), **DRAWN)


def test_pages_taken_for_tokens_are_found(model, monkeypatch):
    slots = PageTable.slots

    def page_numbers(self, sequence, positions):
        mapping = slots(self, sequence, positions)
        page, offset = mapping.slots // self.page_size, mapping.slots % self.page_size
        return dataclasses.replace(mapping, slots=jnp.where(mapping.stored, page + offset, mapping.num_slots))

    monkeypatch.setattr(PageTable, "slots", page_numbers)
    is_falsified(any_page_size_is_any_other(model, programs()), **DRAWN)
