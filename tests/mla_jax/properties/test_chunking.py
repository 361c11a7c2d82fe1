"""Any chunking is the whole prefill, for sequences that share steps: prompts in pieces beside single tokens."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from paged_model import BOUND, Batch, cuts, natives, page_sizes, programs, prompts
from properties_of import holds, is_falsified

from mla_jax.paging import AttentionMetadata

DRAWN = {
    "page_size": page_sizes,
    "prompts_and_steps": prompts.flatmap(lambda p: st.tuples(st.just(p), cuts(p))),
}


def any_chunking_is_the_whole(model, run):
    def check(page_size, prompts_and_steps):
        prompts, steps = prompts_and_steps
        whole, cut = Batch(model, run, page_size), Batch(model, run, page_size)
        whole.step(prompts)
        for new in steps:
            cut.step(new)
        for batch in (whole, cut):  # what later tokens find in the pool
            batch.decode([[1], [2], [3]])
        expected, got = whole.by_prefix(), cut.by_prefix()
        for key, logits in expected.items():
            np.testing.assert_allclose(got[key], logits, rtol=0, atol=BOUND)

    return check


@pytest.mark.bug("vllm-project/vllm#26042", "test")
def test_any_chunking_is_the_whole(model):
    holds(any_chunking_is_the_whole(model, natives()), **DRAWN)


def test_a_token_lost_at_a_chunks_boundary_is_found(model, monkeypatch):
    extend = AttentionMetadata.extend

    def over_the_last_token(table, held, new, **more):
        return extend(table, jnp.where((held > 0) & (new > 0), held - 1, held), new, **more)

    monkeypatch.setattr(AttentionMetadata, "extend", staticmethod(over_the_last_token))
    is_falsified(any_chunking_is_the_whole(model, programs()), **DRAWN)
