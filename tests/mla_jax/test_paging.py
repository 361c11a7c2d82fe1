"""Paging against plain Python models: who owns which page, where each token goes, and who may not see what."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from paging_case import EXTEND, FORK, JITTED, PAGE_SIZES, ints, pool

from mla_jax.cache import LatentCache
from mla_jax.errors import LayoutError, PoolExhaustedError, ShapeError
from mla_jax.paging import AttentionMetadata, PageTable, advance


class PythonTable:
    """What PageTable does, with lists: free pages are taken in ascending order, row by row."""

    def __init__(self, num_pages: int, page_size: int, num_seqs: int, max_pages: int) -> None:
        self.num_pages, self.page_size, self.max_pages = num_pages, page_size, max_pages
        self.rows: list[list[int]] = [[] for _ in range(num_seqs)]

    def used(self) -> Counter:
        return Counter(page for row in self.rows for page in row)

    def free_pages(self) -> list[int]:
        return [page for page in range(self.num_pages) if page not in self.used()]

    def needed(self, held: int, new: int) -> int:
        return -(-(held + new) // self.page_size) if new > 0 else 0

    def can_append(self, lens: list[int], new: list[int]) -> bool:
        want = [self.needed(*pair) for pair in zip(lens, new, strict=True)]
        missing = sum(max(w - len(row), 0) for w, row in zip(want, self.rows, strict=True))
        return max(want) <= self.max_pages and missing <= len(self.free_pages())

    def append(self, lens: list[int], new: list[int]) -> None:
        spare = iter(self.free_pages())
        for row, held, extra in zip(self.rows, lens, new, strict=True):
            for _ in range(self.needed(held, extra) - len(row)):
                row.append(next(spare))

    def fork(self, source: int, target: int, length: int) -> bool:
        """False where no page is free for the tail."""
        self.rows[target] = []
        whole, tail = divmod(length, self.page_size)
        spare = self.free_pages()
        if tail and not spare:
            return False
        self.rows[target] = self.rows[source][:whole] + ([spare[0]] if tail else [])
        return True

    def check(self, table: PageTable) -> None:
        expected = np.full((len(self.rows), self.max_pages), self.num_pages)
        for i, row in enumerate(self.rows):
            expected[i, : len(row)] = row
        np.testing.assert_array_equal(table.pages, expected)
        used = self.used()
        np.testing.assert_array_equal(table.ref_counts, [used[page] for page in range(self.num_pages)])
        assert int(table.num_free()) == len(self.free_pages())


# Construction -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("max_len", [1, 3, 16, 17, 64, 65])
def test_empty_and_allocate(page_size, max_len):
    max_pages = -(-max_len // page_size)
    cache = pool(2 * max_pages + 1, page_size)
    empty = PageTable.empty(cache, 2, max_len)
    PythonTable(cache.num_pages, page_size, 2, max_pages).check(empty)
    assert (empty.num_seqs, empty.max_pages, empty.capacity) == (2, max_pages, max_pages * page_size)
    assert empty.capacity >= max_len

    table = PageTable.allocate(cache, 2, max_len)
    np.testing.assert_array_equal(table.pages, np.arange(2 * max_pages).reshape(2, max_pages))
    np.testing.assert_array_equal(table.ref_counts, [1] * (2 * max_pages) + [0])
    assert table.ref_counts.dtype == table.pages.dtype == jnp.int32


def test_allocate_takes_the_last_page_and_refuses_the_one_after():
    assert int(PageTable.allocate(pool(6, 4), 2, 12).num_free()) == 0
    with pytest.raises(
        PoolExhaustedError, match="2 sequences of 12 tokens need 6 pages of 4 tokens, the pool has 5"
    ):
        PageTable.allocate(pool(5, 4), 2, 12)


@pytest.mark.parametrize("bad", [0, -3, 2.0, True, None])
@pytest.mark.parametrize("argument", ["num_seqs", "max_len"])
def test_table_sizes_are_positive_integers(argument, bad):
    sizes = {"num_seqs": 2, "max_len": 4, argument: bad}
    for make in (PageTable.empty, PageTable.allocate):
        with pytest.raises(ShapeError, match=f"argument '{argument}': expected an integer >= 1"):
            make(pool(4, 4), **sizes)


def test_a_table_has_as_many_slots_as_int32_can_number():
    assert PageTable.empty(pool(4, 64), 1, 2**31 - 64).capacity == 2**31 - 64
    for max_len in (2**31 - 63, 2**31, 2**40):
        with pytest.raises(
            ShapeError, match=rf"argument 'max_len': expected at most 2147483646 .* of 64, got {max_len}"
        ):
            PageTable.empty(pool(4, 64), 1, max_len)


# append, free, fork: exhaustive in the small ----------------------------------------------------------


@pytest.mark.parametrize("page_size", [1, 3])
def test_append_exhaustively_over_small_lengths(page_size):
    """Every pair of (held, new) over two sequences: pages, counts, and refusal exactly when it must."""
    grow = jax.jit(lambda table, lens, new: table.append(lens, new))
    lengths = range(2 * page_size + 2)
    refused = 0
    for num_pages, held_a, held_b in itertools.product((3, 4), lengths, (0, 1, page_size)):
        cache = pool(num_pages, page_size)
        model = PythonTable(num_pages, page_size, 2, 3)
        start = PageTable.empty(cache, 2, 3 * page_size)
        if not model.can_append([0, 0], [held_a, held_b]):
            continue
        model.append([0, 0], [held_a, held_b])
        start = grow(start, ints(0, 0), ints(held_a, held_b))
        model.check(start)
        for new in itertools.product((0, 1, page_size + 1), repeat=2):
            again = PythonTable(num_pages, page_size, 2, 3)
            again.rows = [list(row) for row in model.rows]
            held = [held_a, held_b]
            if again.can_append(held, list(new)):
                again.append(held, list(new))
                again.check(grow(start, ints(*held), ints(*new)))
            else:
                refused += 1
                with pytest.raises(PoolExhaustedError, match=r"PageTable.append: \d+ more pages are needed"):
                    start.append(ints(*held), ints(*new))
    assert refused > 10


def test_negative_growth_is_refused_and_inside_jit_allocates_nothing():
    table = PageTable.empty(pool(4, 2), 2, 4)
    for argument, lengths in (("seq_lens", [(3, -1), (1, 0)]), ("num_new", [(3, 3), (-1, 0)])):
        with pytest.raises(
            ShapeError, match=rf"PageTable.append: argument '{argument}': expected lengths >= 0, got \["
        ):
            table.append(*(ints(*pair) for pair in lengths))
    grown = jax.jit(PageTable.append)(table, ints(3, 3), ints(-1, 0))
    np.testing.assert_array_equal(grown.ref_counts, [0, 0, 0, 0])


def test_numbers_beyond_int32_are_not_wrapped():
    """JAX turns NumPy's 2^32 + 1 into 1."""
    table, big = PageTable.allocate(pool(4, 2, fill=0.0), 2, 4), np.array([2**32 + 1, 0])
    for call, argument in (
        (lambda: table.append(big, [0, 0]), "seq_lens"),
        (lambda: table.append([0, 0], big), "num_new"),
        (lambda: AttentionMetadata.extend(table, big, [0, 0]), "seq_lens"),
        (lambda: table.fork(pool(4, 2), big[0], 0, 1), "source"),
        (lambda: table.fork(pool(4, 2), 0, big[0], 1), "target"),
        (lambda: table.fork(pool(4, 2), 0, 1, 2**33), "seq_len"),
        (lambda: table.free(big[0]), "released"),
        (lambda: table.free(2**40), "released"),
    ):
        with pytest.raises(ShapeError, match=f"argument '{argument}': expected (an )?in"):
            call()


def test_append_fills_holes_that_free_left_behind():
    table = PageTable.allocate(pool(6, 2), 3, 4).free(1)
    np.testing.assert_array_equal(table.ref_counts, [1, 1, 0, 0, 1, 1])
    regrown = table.append(ints(4, 0, 4), ints(0, 3, 0))
    np.testing.assert_array_equal(regrown.pages, [[0, 1], [2, 3], [4, 5]])


def test_append_exhausted_inside_jit_leaves_the_sentinel():
    table = PageTable.empty(pool(3, 2), 2, 6)
    grown = jax.jit(lambda t: t.append(ints(0, 0), ints(4, 4)))(table)
    np.testing.assert_array_equal(grown.pages, [[0, 1, 3], [2, 3, 3]])
    np.testing.assert_array_equal(grown.ref_counts, [1, 1, 1])
    slots = grown.slots(ints(1, 1, 1, 1), ints(0, 1, 2, 3))
    np.testing.assert_array_equal(slots.slots, [4, 5, 6, 6])
    # Pages of tokens that are said to be held are never replaced: what they held is gone. New tokens get theirs.
    np.testing.assert_array_equal(grown.free(0).append(ints(0, 4), ints(0, 1)).pages, [[3, 3, 3], [2, 3, 0]])


def test_a_partly_filled_page_that_is_gone_is_not_replaced_by_an_empty_one():
    table = PageTable.empty(pool(3, 2), 1, 4)
    np.testing.assert_array_equal(table.append(ints(1), ints(1)).pages, [[3, 3]])
    np.testing.assert_array_equal(table.append(ints(1), ints(2)).pages, [[3, 0]])


def test_append_beyond_a_rows_capacity_is_refused_even_with_free_pages():
    table = PageTable.empty(pool(9, 2), 1, 4)
    with pytest.raises(
        PoolExhaustedError, match=r"append: 3 more pages .* 9 of 9 are free .* at most 2 pages of 2 tokens"
    ):
        table.append(ints(0), ints(5))
    grown = jax.jit(lambda t: t.append(ints(0), ints(5)))(table)
    np.testing.assert_array_equal(grown.pages, [[0, 1]])


@pytest.mark.parametrize(
    "bad", [np.zeros(1, np.int32), np.zeros(3, np.int32), np.int32(1), np.zeros(2, np.float32)]
)
@pytest.mark.parametrize("argument", ["seq_lens", "num_new"])
def test_append_names_a_bad_argument(argument, bad):
    lengths = {"seq_lens": ints(0, 0), "num_new": ints(1, 1), argument: bad}
    with pytest.raises(
        ShapeError, match=rf"PageTable.append: argument '{argument}': expected integers of shape \(2,\)"
    ):
        PageTable.empty(pool(4, 2), 2, 4).append(**lengths)


def test_free_by_index_and_by_mask():
    table = PageTable.allocate(pool(6, 1), 3, 2)
    by_index, by_mask = table.free(2), table.free(jnp.array([False, False, True]))
    for freed in (by_index, by_mask, jax.jit(lambda t, i: t.free(i))(table, jnp.int32(2))):
        np.testing.assert_array_equal(freed.pages, [[0, 1], [2, 3], [6, 6]])
        np.testing.assert_array_equal(freed.ref_counts, [1, 1, 1, 1, 0, 0])
    # Freeing twice is freeing once: the row has no pages any more.
    np.testing.assert_array_equal(by_index.free(2).ref_counts, by_index.ref_counts)
    assert int(table.free(jnp.ones(3, bool)).num_free()) == 6


@pytest.mark.parametrize("row", [-1, 3, 99, -(2**31), 2**31 - 1])
def test_free_of_no_sequence_is_refused_and_inside_jit_frees_nothing(row):
    table = PageTable.allocate(pool(6, 1), 3, 2)
    for index in (row, np.int64(row), ints(row)[0]):
        with pytest.raises(
            ShapeError, match=rf"argument 'released': expected an index in \[0, 3\), got {row}"
        ):
            table.free(index)
    freed = jax.jit(PageTable.free)(table, row)
    np.testing.assert_array_equal(freed.pages, table.pages)
    np.testing.assert_array_equal(freed.ref_counts, table.ref_counts)


@pytest.mark.parametrize(
    "released", [np.zeros(2, bool), np.array([0, 2]), np.array([[True, False, False]]), 1.0, np.bool_(True)]
)
def test_free_refuses_what_is_neither_index_nor_mask(released):
    with pytest.raises(
        ShapeError, match=r"argument 'released': expected an index or a bool mask of shape \(3,\)"
    ):
        PageTable.allocate(pool(3, 1), 3, 1).free(released)


@pytest.mark.parametrize("page_size", [1, 3, 4])
def test_fork_exhaustively_over_lengths(page_size):
    """Every source length, with a target that had pages of its own: sharing, the tail's copy, counts."""
    fork = jax.jit(lambda table, cache, source, target, length: table.fork(cache, source, target, length))
    max_len = 3 * page_size
    for length in range(max_len + 1):
        cache = pool(8, page_size, layers=2)
        stamped = jnp.arange(cache.kv.size, dtype=jnp.float32).reshape(cache.kv.shape)
        cache = cache.with_kv(stamped)
        model = PythonTable(8, page_size, 3, 3)
        table = PageTable.empty(cache, 3, max_len)
        lens = [length, 2, 1]
        model.append([0, 0, 0], lens)
        table = table.append(ints(0, 0, 0), ints(*lens))
        assert model.fork(0, 2, length)
        for run in (PageTable.fork, fork):
            forked, copied = run(table, cache, 0, 2, length)
            model.check(forked)
            before, after = np.asarray(cache.kv), np.asarray(copied.kv)
            changed = [page for page in range(8) if not np.array_equal(before[:, page], after[:, page])]
            tail = length % page_size
            assert changed == ([model.rows[2][-1]] if tail else [])
            if tail:
                np.testing.assert_array_equal(
                    after[:, model.rows[2][-1]], before[:, model.rows[0][length // page_size]]
                )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float8_e4m3fn])
def test_fork_copies_bits(dtype):
    """NaN and negative zero included, and no other page is rewritten through another type."""
    cache = pool(5, 4, layers=2)
    unsigned = {4: jnp.uint32, 2: jnp.uint16, 1: jnp.uint8}[jnp.dtype(dtype).itemsize]
    count = np.arange(cache.kv.size, dtype=np.uint32).reshape(cache.kv.shape)
    codes = jnp.asarray((count * 2654435761) >> 3, jnp.uint32).astype(unsigned)
    cache = cache.with_kv(jax.lax.bitcast_convert_type(codes, dtype))
    table = PageTable.empty(cache, 2, 16).append(ints(0, 0), ints(6, 0))
    _, copied = jax.jit(PageTable.fork)(table, cache, 0, 1, 6)
    after = np.asarray(jax.lax.bitcast_convert_type(copied.kv, unsigned))
    expected = np.array(codes)
    expected[:, 2] = expected[:, 1]
    np.testing.assert_array_equal(after, expected)


def test_fork_of_an_earlier_point_shares_only_what_came_before():
    cache = pool(8, 4, fill=1.0)
    table = PageTable.empty(cache, 2, 16).append(ints(0, 0), ints(14, 0))
    forked, _ = table.fork(cache, 0, 1, 6)
    np.testing.assert_array_equal(forked.pages, [[0, 1, 2, 3], [0, 4, 8, 8]])
    np.testing.assert_array_equal(forked.ref_counts, [2, 1, 1, 1, 1, 0, 0, 0])


def test_shared_pages_are_free_only_after_their_last_owner():
    cache = pool(4, 2, fill=0.0)
    table = PageTable.empty(cache, 3, 4).append(ints(0, 0, 0), ints(4, 0, 0))
    table, cache = table.fork(cache, 0, 1, 4)
    table, cache = table.fork(cache, 1, 2, 4)
    for released, expected in ((0, 2), (2, 1), (1, 0)):
        table = table.free(released)
        np.testing.assert_array_equal(table.ref_counts, [expected, expected, 0, 0])


def test_fork_without_a_free_page():
    cache = pool(2, 2, fill=5.0)
    table = PageTable.empty(cache, 2, 4).append(ints(0, 0), ints(3, 0))
    with pytest.raises(
        PoolExhaustedError, match=r"PageTable.fork: the tail page needs one free page, 0 of 2 are free"
    ):
        table.fork(cache, 0, 1, 3)
    forked, copied = jax.jit(lambda t, c: t.fork(c, 0, 1, 3))(table, cache)
    np.testing.assert_array_equal(forked.pages, [[0, 1], [0, 2]])
    np.testing.assert_array_equal(forked.ref_counts, [2, 1])
    np.testing.assert_array_equal(copied.kv, cache.kv)
    # A whole number of pages needs none.
    forked, _ = table.fork(cache, 0, 1, 2)
    np.testing.assert_array_equal(forked.pages, [[0, 1], [0, 2]])


@pytest.mark.parametrize(
    ("source", "target", "length"),
    [
        (-1, 1, 3),
        (3, 1, 3),
        (0, -1, 3),
        (0, 3, 3),
        (0, -3, 3),
        (0, 2**31 - 1, 3),
        (1, 1, 3),
        (0, 1, -1),
        (0, 1, 7),
    ],
)
def test_an_impossible_fork_is_refused_and_inside_jit_makes_nobody_readable(source, target, length):
    """A target that exists loses its pages; nothing else changes, and no page is lost or owned twice."""
    cache = pool(9, 2)
    cache = cache.with_kv(jnp.arange(cache.kv.size, dtype=jnp.float32).reshape(cache.kv.shape))
    table = PageTable.empty(cache, 3, 6).append(ints(0, 0, 0), ints(5, 2, 1))
    with pytest.raises(
        ShapeError,
        match=rf"expected two different rows in \[0, 3\) and a length in \[0, 6\], got source {source}, "
        rf"target {target}, seq_len {length}",
    ):
        table.fork(cache, source, target, length)
    forked, copied = FORK(table, cache, source, target, length)
    np.testing.assert_array_equal(copied.kv, cache.kv)
    expected = table.free(target) if 0 <= target < 3 and target != source else table
    np.testing.assert_array_equal(forked.pages, expected.pages)
    np.testing.assert_array_equal(forked.ref_counts, expected.ref_counts)


@pytest.mark.parametrize("bad", [1.0, True, np.zeros(1, np.int32), "1"])
@pytest.mark.parametrize("argument", ["source", "target", "seq_len"])
def test_fork_names_a_bad_argument(argument, bad):
    cache = pool(4, 2)
    numbers = {"source": 0, "target": 1, "seq_len": 1, argument: bad}
    with pytest.raises(ShapeError, match=f"PageTable.fork: argument '{argument}': expected an integer, got"):
        PageTable.empty(cache, 2, 4).fork(cache, **numbers)


def test_fork_of_an_unallocated_tail_does_not_hand_out_a_strangers_rows():
    """An entry without a page stays without one: reading it is NaN, never another sequence's rows."""
    cache = pool(5, 2, fill=7.0)
    table = PageTable.empty(cache, 3, 6).append(ints(0, 0, 0), ints(2, 2, 0))
    for run in (PageTable.fork, jax.jit(PageTable.fork)):
        forked, copied = run(table, cache, 0, 2, 3)
        np.testing.assert_array_equal(forked.pages[2], [0, 5, 5])
        np.testing.assert_array_equal(forked.ref_counts, [2, 1, 0, 0, 0])
        np.testing.assert_array_equal(copied.kv, cache.kv)


def test_fork_refuses_another_pools_table():
    table = PageTable.empty(pool(4, 2), 2, 4)
    with pytest.raises(
        LayoutError, match=r"PageTable.fork: PageTable was made for \(num_pages, page_size\) = \(4, 2\)"
    ):
        table.fork(pool(2, 4), 0, 1, 1)


# Random histories against the Python model -------------------------------------------------------------


def read(table: PageTable, cache: LatentCache, sequence: int, length: int) -> list[float]:
    """The rows of a sequence as the attention op would find them."""
    pages, kv = np.asarray(table.pages)[sequence], np.asarray(cache.kv)
    position = np.arange(length)
    page = pages[position // table.page_size]
    assert ((page >= 0) & (page < table.num_pages)).all()
    return kv[0, page, position % table.page_size, 0].tolist()


class PagingMachine(RuleBasedStateMachine):
    """allocate, append, free, fork and advance in any order; each token is a number of its own."""

    page_size = 3
    num_seqs, max_pages, num_pages = 3, 3, 7

    @initialize()
    def start(self) -> None:
        self.cache = pool(self.num_pages, self.page_size)
        self.table = PageTable.empty(self.cache, self.num_seqs, self.max_pages * self.page_size)
        self.model = PythonTable(self.num_pages, self.page_size, self.num_seqs, self.max_pages)
        self.tokens: list[list[float]] = [[] for _ in range(self.num_seqs)]
        self.count = 0

    def run(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Outside jit for one page size, inside for the others: hundreds of small ops are slow one by one."""
        return function if self.page_size == 3 else JITTED[function]

    def lens(self) -> list[int]:
        return [len(row) for row in self.tokens]

    def store(self, meta: AttentionMetadata, new: list[int]) -> None:
        """Writes as rope_append_latent does: row by row, a slot outside the pool is dropped."""
        rows = np.arange(self.count, self.count + meta.num_tokens, dtype=np.float32)
        flat = np.array(self.cache.kv).reshape(-1, 2)
        slots, row = np.asarray(meta.slot_mapping.slots), 0
        live = [slot for slot in slots.tolist() if 0 <= slot < meta.slot_mapping.num_slots]
        assert len(set(live)) == len(live) == sum(new)
        for i, extra in enumerate(new):
            for _ in range(extra):
                self.tokens[i].append(float(rows[row]))
                flat[slots[row]] = rows[row]
                row += 1
        self.count += meta.num_tokens
        self.cache = self.cache.with_kv(jnp.asarray(flat.reshape(self.cache.kv.shape)))

    @rule(share=st.tuples(*[st.floats(0, 1)] * 3))
    def append(self, share: tuple[float, ...]) -> None:
        most = self.max_pages * self.page_size * 2 // 3
        new = [round(part * most) for part in share]
        lens = self.lens()
        if not self.model.can_append(lens, new):
            with pytest.raises(PoolExhaustedError):
                self.table.append(ints(*lens), ints(*new))
            return
        self.model.append(lens, new)
        self.table = self.run(PageTable.append)(self.table, ints(*lens), ints(*new))
        # One static T for every history, so that nothing is compiled twice; the rest is padding.
        extend = AttentionMetadata.extend if self.page_size == 3 else EXTEND
        self.store(extend(self.table, ints(*lens), ints(*new), num_tokens=3 * most), new)

    @rule(active=st.tuples(*[st.booleans()] * 3))
    def decode(self, active: tuple[bool, ...]) -> None:
        lens, new = self.lens(), [int(on) for on in active]
        held = EXTEND(self.table, ints(*lens), ints(0, 0, 0), num_tokens=1)
        if not self.model.can_append(lens, new):
            with pytest.raises(PoolExhaustedError):
                advance(held, jnp.array(active))
            return
        self.model.append(lens, new)
        meta = self.run(advance)(held, jnp.array(active))
        self.table = meta.page_table
        np.testing.assert_array_equal(meta.seq_lens, np.add(lens, new))
        slots = np.asarray(meta.slot_mapping.slots)
        assert [bool(slot == meta.slot_mapping.num_slots) for slot in slots] == [not on for on in active]
        rows = np.arange(self.count, self.count + 3, dtype=np.float32)
        flat = np.array(self.cache.kv).reshape(-1, 2)
        for i in range(3):
            if active[i]:
                self.tokens[i].append(float(rows[i]))
                flat[slots[i]] = rows[i]
        self.count += 3
        self.cache = self.cache.with_kv(jnp.asarray(flat.reshape(self.cache.kv.shape)))

    @rule(released=st.integers(0, 2))
    def free(self, released: int) -> None:
        self.table = self.run(PageTable.free)(self.table, released)
        self.model.rows[released] = []
        self.tokens[released] = []

    @precondition(lambda self: any(self.tokens))
    @rule(pair=st.permutations([0, 1, 2]), part=st.floats(0, 1))
    def fork(self, pair: list[int], part: float) -> None:
        source, target = pair[:2]
        length = round(part * len(self.tokens[source]))
        rows = [list(row) for row in self.model.rows]
        if not self.model.fork(source, target, length):
            self.model.rows = rows
            with pytest.raises(PoolExhaustedError):
                self.table.fork(self.cache, source, target, length)
            return
        fork = self.run(PageTable.fork)
        self.table, self.cache = fork(self.table, self.cache, source, target, length)
        self.tokens[target] = self.tokens[source][:length]

    @invariant()
    def pages_are_the_models(self) -> None:
        self.model.check(self.table)

    @invariant()
    def every_sequence_reads_its_own_tokens(self) -> None:
        for i, tokens in enumerate(self.tokens):
            assert read(self.table, self.cache, i, len(tokens)) == tokens


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.bug("vllm-project/vllm#39146", "test")
def test_random_histories(page_size):
    machine = type("Machine", (PagingMachine,), {"page_size": page_size})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=14,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
