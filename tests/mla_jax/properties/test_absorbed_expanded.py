"""Absorbed attention is expanded attention: the same product, associated the other way, over any mixed step."""

import numpy as np
from hypothesis import strategies as st
from paged_model import BOUND, Batch, cuts, programs, prompts
from properties_of import holds, is_falsified

from mla_jax.layers import attention

DRAWN = {"prompts_and_steps": prompts.flatmap(lambda p: st.tuples(st.just(p), cuts(p)))}
PAGE_SIZE = 3


def absorbed_is_expanded(model, absorbed, expanded):
    def check(prompts_and_steps):
        batches = []
        for run in (absorbed, expanded):
            batch = Batch(model, run, PAGE_SIZE)
            for new in prompts_and_steps[1]:
                batch.step(new)
            batches.append(batch)
        for (_, _, logits), (_, _, other) in zip(batches[0].logged, batches[1].logged, strict=True):
            np.testing.assert_allclose(logits, other, rtol=0, atol=BOUND)

    return check


def both(model, monkeypatch):
    """The two forms, each compiled while every layer is made to choose it."""
    found = []
    for expand in (False, True):
        monkeypatch.setattr(attention, "expanded_is_cheaper", lambda *_, expand=expand: expand)
        run = programs()
        Batch(model, run, PAGE_SIZE).step([[1], [2], [3]])
        found.append(run)
    return found


def test_absorbed_is_expanded(model, monkeypatch):
    forms = both(model, monkeypatch)
    holds(absorbed_is_expanded(model, *forms), **DRAWN)
    logits = []
    for run in forms:
        batch = Batch(model, run, PAGE_SIZE)
        batch.step([[1, 2, 3], [4], [5]])
        logits.append(batch.logged[0][2])
    assert (logits[0] != logits[1]).any()  # otherwise it was the same form twice


def test_expanded_attention_with_another_scale_is_found(model, monkeypatch):
    expand = attention.mla_attention_expanded

    def without_mscale(appended, rows, kv, meta, softmax_scale, **sizes):
        return expand(appended, rows, kv, meta, appended.q.shape[-1] ** -0.5, **sizes)

    monkeypatch.setattr(attention, "mla_attention_expanded", without_mscale)
    is_falsified(absorbed_is_expanded(model, *both(model, monkeypatch)), **DRAWN)


def test_a_merge_that_ignores_the_logsumexp_is_found(model, monkeypatch):
    merge = attention.merge_attn_states
    monkeypatch.setattr(
        attention,
        "merge_attn_states",
        lambda own, own_logsumexp, cached, _: merge(own, own_logsumexp, cached, own_logsumexp),
    )
    is_falsified(absorbed_is_expanded(model, *both(model, monkeypatch)), **DRAWN)
