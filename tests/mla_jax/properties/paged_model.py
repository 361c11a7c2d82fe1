"""The tiny model behind a pool, driven step by step: what the properties are stated about.

Shapes are few and fixed, so that examples do not compile: a step has ROWS rows, a batch SEQS sequences of at most
MAX_LEN tokens, and only the page size varies. The pool has exactly the pages that full sequences need, so that
pages are handed on all the time; nobody's pages are NaN.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from tiny_model import CONFIG

from mla_jax import models, paging
from mla_jax.cache import LatentCache, init_cache
from mla_jax.checking import checked
from mla_jax.models import FrozenModel
from mla_jax.paging import AttentionMetadata, PageTable

ROWS, SEQS, MAX_LEN = 20, 3, 16
PAGE_SIZES = (1, 3, 16)
BOUND = 1e-4
"""Absolute, on logits of up to 8: what the project holds float32 logits to (the goldens of transformers as well)."""

NOBODY = 10**6
"""The token of rows that no sequence owns: in no vocabulary, so that whoever reads such a row sees NaN."""

Logged = list[tuple[int, tuple[int, ...], np.ndarray]]


@dataclass(frozen=True)
class Programs:
    """A batch's compiled steps. Made anew by `programs`, so that a fault that is planted then is compiled in."""

    append: Callable[..., PageTable]
    free: Callable[..., PageTable]
    fork: Callable[..., tuple[PageTable, LatentCache]]
    prefill: Callable[..., tuple[jax.Array, LatentCache]]
    decode: Callable[..., tuple[jax.Array, LatentCache, PageTable]]


def programs(checks: bool = False) -> Programs:
    """The library's own steps under jit."""
    jit_step: Any = checked if checks else jax.jit

    def prefill(model: Any, tokens: Any, cache: Any, table: PageTable, held: Any, new: Any) -> Any:
        meta = AttentionMetadata.extend(table, held, new, num_tokens=ROWS, checks=checks)
        return models.prefill(model, tokens, cache, meta)

    def decode(model: Any, tokens: Any, cache: Any, table: PageTable, held: Any, active: Any) -> Any:
        before = AttentionMetadata.extend(table, held, jnp.zeros_like(held), num_tokens=1, checks=checks)
        meta = paging.advance(before, active)
        return *models.decode_step(model, tokens, cache, meta), meta.page_table

    return Programs(
        append=jax.jit(lambda table, *lengths: table.append(*lengths)),
        free=jax.jit(lambda table, released: table.free(released)),
        fork=jax.jit(lambda table, *rest: table.fork(*rest)),
        prefill=jit_step(prefill),
        decode=jit_step(decode),
    )


class Batch:
    """Sequences in a pool, what they hold, and every logits row that a step returned for one of them."""

    def __init__(self, model: FrozenModel, run: Programs, page_size: int, seqs: int = SEQS) -> None:
        self.model, self.run = model, run
        max_pages = -(-MAX_LEN // page_size)
        self.cache = init_cache(CONFIG, num_tokens=SEQS * max_pages * page_size, page_size=page_size)
        self.table = PageTable.empty(self.cache, seqs, MAX_LEN)
        self.tokens: list[list[int]] = [[] for _ in range(seqs)]
        self.logged: Logged = []
        self._poison()

    def lens(self) -> jax.Array:
        return jnp.array([len(tokens) for tokens in self.tokens], jnp.int32)

    def step(self, new: Sequence[Sequence[int]]) -> None:
        """A ragged step: new[i] more tokens for sequence i, prompts and single tokens alike."""
        held, counts = self.lens(), jnp.array([len(tokens) for tokens in new], jnp.int32)
        flat = np.full(ROWS, NOBODY, np.int32)
        flat[: int(counts.sum())] = [token for tokens in new for token in tokens]
        self.table = self.run.append(self.table, held, counts)
        logits, self.cache = self.run.prefill(self.model, flat, self.cache, self.table, held, counts)
        self._log(new, logits)

    def decode(self, new: Sequence[Sequence[int]]) -> None:
        """A decode step: new[i] is sequence i's one token, or nothing."""
        active = np.array([len(tokens) == 1 for tokens in new])
        tokens = np.array([tokens[0] if tokens else NOBODY for tokens in new], np.int32)
        logits, self.cache, self.table = self.run.decode(
            self.model, tokens, self.cache, self.table, self.lens(), active
        )
        self._log(new, logits)

    def fork(self, source: int, target: int, length: int) -> None:
        self.table, self.cache = self.run.fork(self.table, self.cache, source, target, length)
        self.tokens[target] = self.tokens[source][:length]

    def free(self, sequence: int) -> None:
        self.table = self.run.free(self.table, sequence)
        self.tokens[sequence] = []
        self._poison()

    def rows(self, sequence: int) -> np.ndarray:
        """(layers, tokens, width): what the pool holds of a sequence, copied."""
        return self._flat(self.cache)[:, self._slots(sequence)]

    def put_back(self, sequence: int, tokens: list[int], rows: np.ndarray) -> None:
        """A sequence without pages gets its tokens and rows back, wherever pages are free now."""
        lengths = [len(tokens) if i == sequence else 0 for i in range(len(self.tokens))]
        self.table = self.run.append(self.table, jnp.zeros_like(self.lens()), jnp.array(lengths, jnp.int32))
        self.tokens[sequence] = list(tokens)
        flat = self._flat(self.cache)
        flat[:, self._slots(sequence)] = rows
        self.cache = self.cache.with_kv(jnp.asarray(flat.reshape(self.cache.kv.shape)))

    def by_prefix(self) -> dict[tuple[int, int], np.ndarray]:
        """(sequence, length) -> its logits after that many tokens; the last, where it got there twice."""
        return {(sequence, len(tokens)): logits for sequence, tokens, logits in self.logged}

    def _log(self, new: Sequence[Sequence[int]], logits: Any) -> None:
        rows = np.asarray(logits)
        for i, tokens in enumerate(new):
            if tokens:
                self.tokens[i] += tokens
                self.logged.append((i, tuple(self.tokens[i]), rows[i]))

    def _slots(self, sequence: int) -> np.ndarray:
        position = np.arange(len(self.tokens[sequence]))
        page = np.asarray(self.table.pages)[sequence, position // self.table.page_size]
        return page * self.table.page_size + position % self.table.page_size

    def _poison(self) -> None:
        kv = np.array(self.cache.kv)
        kv[:, np.asarray(self.table.ref_counts) == 0] = np.nan
        self.cache = self.cache.with_kv(jnp.asarray(kv))

    @staticmethod
    def _flat(cache: LatentCache) -> np.ndarray:
        return np.array(cache.kv).reshape(cache.num_layers, cache.num_slots, -1)


_forward = jax.jit(models.forward)


def teacher_forced(model: FrozenModel, sequences: Iterable[tuple[int, ...]]) -> list[np.ndarray]:
    """Logits after the last token of each, by `forward`: no pool, no pages, no positions but 0, 1, 2 ..."""
    wanted = list(sequences)
    found = []
    for begin in range(0, len(wanted), SEQS):
        padded = np.zeros((SEQS, MAX_LEN), np.int32)
        some = wanted[begin : begin + SEQS]
        for i, tokens in enumerate(some):
            padded[i, : len(tokens)] = tokens
        logits = np.asarray(_forward(model, padded))
        found += [logits[i, len(tokens) - 1] for i, tokens in enumerate(some)]
    return found


def assert_teacher_forced(batch: Batch) -> None:
    """Every logits row that any step returned is what `forward` says of those tokens."""
    expected = teacher_forced(batch.model, [tokens for _, tokens, _ in batch.logged])
    for (_, _, logits), forced in zip(batch.logged, expected, strict=True):
        np.testing.assert_allclose(logits, forced, rtol=0, atol=BOUND)


def assert_same_bits(first: np.ndarray, second: np.ndarray) -> None:
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, second)


# What is drawn -----------------------------------------------------------------------------------------

page_sizes = st.sampled_from(PAGE_SIZES)
token = st.integers(0, CONFIG.vocab_size - 1)


def token_lists(shortest: int, longest: int) -> st.SearchStrategy[list[int]]:
    return st.lists(token, min_size=shortest, max_size=longest)


prompts = st.tuples(token_lists(1, 8), token_lists(1, 5), token_lists(1, 5))
"""One prompt a sequence; ROWS holds them all."""

masks = st.tuples(st.booleans(), st.booleans(), st.booleans())


def decodes(most: int) -> st.SearchStrategy[list[list[list[int]]]]:
    """Decode steps: for each sequence a token or none."""
    return st.lists(st.tuples(*[token_lists(0, 1)] * SEQS).map(list), min_size=1, max_size=most)


@st.composite
def cuts(draw: Any, whole: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    """Ragged steps that feed `whole`: chunks of any length, one sequence's prefill beside another's single token."""
    left, steps = [list(tokens) for tokens in whole], []
    while any(left):
        sizes = [draw(st.integers(0, min(len(tokens), 6))) for tokens in left]
        if not any(sizes):
            sizes = [min(len(tokens), 1) for tokens in left]
        steps.append([tokens[:size] for tokens, size in zip(left, sizes, strict=True)])
        left = [tokens[size:] for tokens, size in zip(left, sizes, strict=True)]
    return steps


natives = functools.cache(programs)
"""The programs without a fault, compiled once for every file."""
