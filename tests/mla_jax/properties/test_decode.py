"""Decoding is teacher forcing: whichever sequences go on, each logits row is `forward`'s of the same tokens."""

import dataclasses

import jax.numpy as jnp
from paged_model import MAX_LEN, Batch, assert_teacher_forced, decodes, natives, page_sizes, programs, prompts
from properties_of import holds, is_falsified

from mla_jax import paging

DRAWN = {"page_size": page_sizes, "prompts": prompts, "decodes": decodes(7)}


def decode_is_teacher_forced(model, run):
    def check(page_size, prompts, decodes):
        batch = Batch(model, run, page_size)
        batch.step(prompts)
        for new in decodes:
            batch.decode(new)
        assert max(batch.lens()) <= MAX_LEN
        assert_teacher_forced(batch)

    return check


def test_decode_is_teacher_forced(model):
    holds(decode_is_teacher_forced(model, natives()), **DRAWN)


def test_a_position_off_by_one_is_found(model, monkeypatch):
    advance = paging.advance

    def one_further(meta, active):
        after = advance(meta, active)
        return dataclasses.replace(after, positions=jnp.where(active, after.positions + 1, 0))

    monkeypatch.setattr(paging, "advance", one_further)
    is_falsified(decode_is_teacher_forced(model, programs()), **DRAWN)


def test_a_length_without_the_newest_token_is_found(model, monkeypatch):
    advance = paging.advance
    monkeypatch.setattr(
        paging,
        "advance",
        lambda meta, active: dataclasses.replace(advance(meta, active), seq_lens=meta.seq_lens),
    )
    is_falsified(decode_is_teacher_forced(model, programs()), **DRAWN)
