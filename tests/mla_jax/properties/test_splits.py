"""One split is n splits: the keys of a query, cut anywhere, attended apart and merged by their logsumexp.

The kernel cuts keys every 512 from key 0, whoever is beside them and however many threads there are; that fixed size
is what makes a batch's rows independent, so there is no number of splits to choose. Up to three of its splits are
compared here with cuts anywhere else, so that what is merged inside and what is merged outside check each other.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from properties_of import holds, is_falsified

from custom_calls.mla_attention import mla_attention
from mla_jax import latent

HEADS, RANK, ROPE, PAGE_SIZE, MAX_PAGES = 3, 24, 8, 16, 96
MAX_KEYS, PARTS = PAGE_SIZE * MAX_PAGES, 4

DRAWN = {
    "seed": st.integers(0, 2**32 - 1),
    "keys": st.one_of(st.integers(1, MAX_KEYS), st.sampled_from([1, 511, 512, 513, 1024, 1025, MAX_KEYS])),
    "cuts": st.lists(st.integers(0, MAX_PAGES), min_size=PARTS - 1, max_size=PARTS - 1).map(sorted),
    "peak": st.sampled_from([1.0, 30.0]),  # of the scores: even weights, or nearly all of it on one key
}

BOUND = 1e-5
"""Of the largest value: the bound of every op's float32 results (op_base.py)."""


@functools.partial(jax.jit, static_argnames=("keys", "kernels"))
def attend(q_latent, q_rope, kv, pages, starts, lengths, keys, kernels="native"):
    return mla_attention(
        q_latent, q_rope, kv, jnp.int32(0), jnp.ones(2, jnp.float32), pages, starts, lengths,
        softmax_scale=1.0, keys=keys, kernels=kernels,
    )  # fmt: skip


def query_and_pool(seed, keys, peak):
    """One query, a pool whose pages are shuffled, and NaN in it wherever the query must not look."""
    rng = np.random.default_rng(seed)
    q = (peak * rng.standard_normal((1, HEADS, RANK + ROPE)) / np.sqrt(RANK + ROPE)).astype(np.float32)
    kv = np.full((1, MAX_PAGES, PAGE_SIZE, RANK + ROPE), np.nan, np.float32)
    pages = rng.permutation(MAX_PAGES).astype(np.int32)
    position = np.arange(keys)
    rows = rng.standard_normal((keys, RANK + ROPE)).astype(np.float32)
    kv[0, pages[position // PAGE_SIZE], position % PAGE_SIZE] = rows
    return q[..., :RANK], q[..., RANK:], kv, pages


def one_split_is_n_splits(attend):
    def check(seed, keys, cuts, peak):
        q_latent, q_rope, kv, pages = query_and_pool(seed, keys, peak)
        start = np.array([0, 1], np.int32)
        whole, whole_logsumexp = attend(
            q_latent, q_rope, kv, pages[None], start, np.array([keys], np.int32), "all"
        )
        out, logsumexp = jnp.zeros_like(whole), jnp.full_like(whole_logsumexp, -jnp.inf)
        edges = [0, *cuts, MAX_PAGES]
        for first, end in itertools.pairwise(edges):
            # Every part is a sequence of its own, whose one query stands behind its keys and sees them all.
            own = np.full((1, MAX_PAGES + 1), MAX_PAGES, np.int32)
            own[0, : end - first] = pages[first:end]
            count = min(max(keys - first * PAGE_SIZE, 0), (end - first) * PAGE_SIZE)
            part = attend(q_latent, q_rope, kv, own, start, np.array([count + 1], np.int32), "cached")
            out, logsumexp = latent.merge_attn_states(out, logsumexp, *part)
        largest = float(np.abs(whole).max())
        np.testing.assert_allclose(out, whole, rtol=0, atol=BOUND * max(largest, 1.0))
        np.testing.assert_allclose(logsumexp, whole_logsumexp, rtol=BOUND, atol=BOUND)

    return check


@pytest.mark.parametrize("kernels", ["native", "reference"])  # the reference merges every 128 keys
def test_one_split_is_n_splits(kernels):
    holds(one_split_is_n_splits(functools.partial(attend, kernels=kernels)), **DRAWN)


def test_a_split_is_the_same_bits_alone_and_in_a_crowd():
    """Few queries: every split is a task, merged in a second pass. Many: a task takes a query through its splits."""
    crowd = 40

    def check(seed, keys, cuts, peak):
        del cuts
        q_latent, q_rope, kv, pages = query_and_pool(seed, keys, peak)
        alone = attend(
            q_latent, q_rope, kv, pages[None], np.array([0, 1], np.int32), np.array([keys], np.int32), "all"
        )
        together = attend(
            np.repeat(q_latent, crowd, axis=0),
            np.repeat(q_rope, crowd, axis=0),
            kv,
            np.repeat(pages[None], crowd, axis=0),
            np.arange(crowd + 1, dtype=np.int32),
            np.full(crowd, keys, np.int32),
            "all",
        )
        for one, many in zip(alone, together, strict=True):
            assert np.isfinite(np.asarray(one)).all()
            for row in np.asarray(many):
                np.testing.assert_array_equal(row, one[0])

    holds(check, **DRAWN)


def test_a_combine_that_ignores_the_logsumexp_is_found(monkeypatch):
    merge = latent.merge_attn_states

    def evenly(out_a, logsumexp_a, out_b, logsumexp_b):
        some = jnp.where(jnp.isneginf(logsumexp_b), logsumexp_b, jnp.zeros_like(logsumexp_b))
        held = jnp.where(jnp.isneginf(logsumexp_a), logsumexp_a, jnp.zeros_like(logsumexp_a))
        return merge(out_a, held, out_b, some)

    monkeypatch.setattr(latent, "merge_attn_states", evenly)
    is_falsified(one_split_is_n_splits(attend), **DRAWN)


def test_a_split_without_its_last_key_is_found():
    def one_key_short(*arguments):
        *most, lengths, keys = arguments
        return attend(*most, np.maximum(lengths - (keys == "cached"), 1), keys)

    is_falsified(one_split_is_n_splits(one_key_short), **DRAWN)
