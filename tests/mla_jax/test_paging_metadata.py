"""Slots, metadata of a step, advance: exhaustive in the small, and what is no metadata."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paging_case import ADVANCE, EXTEND, PAGE_SIZES, ints, pool

from mla_jax.errors import LayoutError, PoolExhaustedError, ShapeError
from mla_jax.paging import AttentionMetadata, PageTable, SlotMapping, advance, check_pool

# Slots and metadata ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_slots_are_page_times_size_plus_offset(page_size):
    table = PageTable.empty(pool(9, page_size), 2, 3 * page_size).append(ints(0, 0), ints(page_size + 1, 1))
    for sequence, position in itertools.product(range(-1, 4), range(-2, 4 * page_size)):
        mapping = table.slots(ints(sequence), ints(position))
        inside = 0 <= sequence < 2 and 0 <= position < 3 * page_size
        page = int(table.pages[sequence, position // page_size]) if inside else 9
        expected = page * page_size + position % page_size if page < 9 else 9 * page_size
        assert mapping.slots.tolist() == [expected], (sequence, position)
        if page_size == 64 and position > 70:
            break
    assert (mapping.num_slots, mapping.page_size) == (9 * page_size, page_size)


def test_slots_of_extreme_positions_and_poisoned_pages():
    table = PageTable.allocate(pool(4, 2), 2, 4)
    far = ints(2**31 - 1, -(2**31), 2**30)
    np.testing.assert_array_equal(table.slots(ints(0, 0, 1), far).slots, [8, 8, 8])
    broken = dataclasses.replace(table, pages=ints(-1, 4, 99, -(2**31)).reshape(2, 2))
    mapping = broken.slots(ints(0, 0, 1, 1), ints(0, 2, 0, 2))
    np.testing.assert_array_equal(mapping.slots, [8, 8, 8, 8])


@pytest.mark.bug("sgl-project/sglang#36207", "test")
@pytest.mark.bug("ROCm/aiter#5010", "test")
def test_only_slots_of_the_pool_are_stored():
    mapping = SlotMapping(ints(-(2**31), -1, 0, 7, 8, 2**31 - 1), 8, 2)
    assert mapping.stored.tolist() == [False, False, True, True, False, False]


def test_extend_by_hand():
    table = PageTable.allocate(pool(9, 4), 3, 12)
    meta = AttentionMetadata.extend(table, [5, 0, 3], [2, 0, 3], num_tokens=7)
    np.testing.assert_array_equal(meta.positions, [5, 6, 3, 4, 5, 0, 0])
    # Sequence 0 has pages 0..2, sequence 2 pages 6..8; two rows of padding store nothing.
    np.testing.assert_array_equal(meta.slot_mapping.slots, [5, 6, 27, 28, 29, 36, 36])
    np.testing.assert_array_equal(meta.query_start_loc, [0, 2, 2, 5])
    np.testing.assert_array_equal(meta.seq_lens, [7, 0, 6])
    assert (meta.num_tokens, meta.num_seqs, meta.uniform_length) == (7, 3, None)
    for leaf in jax.tree.leaves(meta):
        assert leaf.dtype == jnp.int32
    assert meta.page_table is table


@pytest.mark.parametrize("page_size", [1, 3])
@pytest.mark.bug("vllm-project/vllm#31282", "test")
def test_extend_exhaustively_equals_a_loop(page_size):
    table = PageTable.allocate(pool(3 * 4, page_size), 3, 4 * page_size)
    extend = jax.jit(AttentionMetadata.extend, static_argnames="num_tokens")
    for before in itertools.product((0, 2), repeat=3):
        for new in itertools.product((0, 1, 2), repeat=3):
            for padding in (0, 3):
                total = sum(new) + padding
                meta = extend(table, ints(*before), ints(*new), num_tokens=total)
                positions, slots = [], []
                for i in range(3):
                    for position in range(before[i], before[i] + new[i]):
                        positions.append(position)
                        page = int(table.pages[i, position // page_size])
                        slots.append(page * page_size + position % page_size)
                assert meta.positions.tolist() == positions + [0] * padding
                assert meta.slot_mapping.slots.tolist() == slots + [12 * page_size] * padding
                assert meta.query_start_loc.tolist() == [0, *itertools.accumulate(new)]
                assert meta.seq_lens.tolist() == [b + n for b, n in zip(before, new, strict=True)]


def test_extend_with_no_new_tokens_at_all():
    table = PageTable.allocate(pool(4, 2), 2, 4)
    meta = AttentionMetadata.extend(table, [3, 0], [0, 0])
    assert meta.num_tokens == 0
    assert meta.seq_lens.tolist() == [3, 0]
    padded = AttentionMetadata.extend(table, [3, 0], [0, 0], num_tokens=2)
    assert padded.slot_mapping.slots.tolist() == [8, 8]


def test_extend_inside_jit_equals_outside():
    table = PageTable.allocate(pool(6, 3), 3, 6)
    inside = jax.jit(lambda t, a, b: AttentionMetadata.extend(t, a, b, num_tokens=5))(
        table, ints(1, 0, 4), ints(2, 0, 1)
    )
    outside = AttentionMetadata.extend(table, [1, 0, 4], [2, 0, 1], num_tokens=5)
    for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(outside), strict=True):
        np.testing.assert_array_equal(a, b)


def test_num_tokens_must_be_given_inside_jit():
    table = PageTable.allocate(pool(4, 2), 2, 4)
    with pytest.raises(
        ShapeError, match="argument 'num_tokens': expected the static number of rows inside jit"
    ):
        jax.jit(AttentionMetadata.extend)(table, ints(0, 0), ints(1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"seq_lens": [0]},
            r"argument 'seq_lens': expected integers of shape \(2,\), got int\d+ of shape \(1,\)",
        ),
        ({"seq_lens": 3}, "argument 'seq_lens'"),
        ({"seq_lens": [0.0, 1.0]}, "argument 'seq_lens': expected integers of shape .* got float"),
        ({"num_new": [[1, 1]]}, "argument 'num_new'"),
        ({"num_new": [True, True]}, "argument 'num_new': expected integers"),
        ({"seq_lens": [-1, 0]}, r"argument 'seq_lens': expected lengths >= 0, got \[-1, 0\]"),
        ({"num_new": [0, -2]}, r"argument 'num_new': expected lengths >= 0, got \[0, -2\]"),
        ({"seq_lens": [0, 4]}, "sequence 1 would hold 5 tokens, the page table has room for 4"),
        ({"num_tokens": 1}, r"argument 'num_tokens': expected at least sum\(num_new\) = 2, got 1"),
    ],
)
def test_extend_names_a_bad_argument(change, message):
    table = PageTable.allocate(pool(4, 2), 2, 4)
    arguments = {"seq_lens": [0, 0], "num_new": [1, 1], **change}
    with pytest.raises(ShapeError, match=f"AttentionMetadata.extend: {message}"):
        AttentionMetadata.extend(table, **arguments)


LOST = [
    # seq_lens, num_new, which sequences have no answer
    ([1, 0, 4], [2, 0, 3], [False, False, True]),  # the last row of the third has no place in T = 4
    ([1, 0, 4], [2, 3, 1], [False, True, True]),
    ([0, 0, 0], [5, 0, 0], [True, True, True]),  # whoever begins past T has no row either
    ([0, 0, 0], [2**31 - 1, 2**31 - 1, 2], [True, True, True]),
    ([-1, 0, 4], [2, 0, 1], [True, False, False]),
    ([1, 2, 4], [1, -2, 1], [False, True, False]),
    ([1, -(2**31), 4], [1, 0, 1], [False, True, False]),
    ([1, 2**31 - 1, 4], [1, 1, 1], [False, True, False]),
    ([1, 6, 4], [1, 1, 1], [False, True, False]),
    ([1, 5, 4], [1, 1, 1], [False, False, False]),
    ([6, 0, 4], [0, 0, 1], [False, False, False]),
]


@pytest.mark.parametrize(("held", "new", "lost"), LOST)
def test_what_extend_cannot_represent_inside_jit_gets_an_impossible_length(held, new, lost):
    """Longer than any row of the table can hold, now and in every later step."""
    table = PageTable.allocate(pool(9, 2), 3, 6)
    meta = EXTEND(table, ints(*held), ints(*new), num_tokens=4)
    for _ in range(3):
        got = np.asarray(meta.seq_lens) > table.capacity
        assert got.tolist() == lost
        meta = ADVANCE(meta, jnp.array(lost))
    # Who has an answer has the one that it would have had alone.
    meta = EXTEND(table, ints(*held), ints(*new), num_tokens=4)
    starts = np.asarray(meta.query_start_loc)
    assert (np.diff(starts) >= 0).all()
    for i in range(3):
        if not lost[i]:
            assert meta.seq_lens[i] == held[i] + new[i]
            rows = slice(int(starts[i]), int(starts[i + 1]))
            assert meta.positions[rows].tolist() == list(range(held[i], held[i] + new[i]))
            own = table.slots(jnp.full(new[i], i, jnp.int32), jnp.arange(held[i], held[i] + new[i]))
            assert meta.slot_mapping.slots[rows].tolist() == own.slots.tolist()


def test_extend_without_pages_says_what_to_call():
    table = PageTable.empty(pool(4, 2), 2, 4)
    with pytest.raises(PoolExhaustedError, match=r"table.append\(seq_lens, num_new\) first"):
        AttentionMetadata.extend(table, [0, 0], [1, 0])
    inside = jax.jit(lambda t: AttentionMetadata.extend(t, ints(0, 0), ints(1, 0), num_tokens=1))(table)
    assert inside.slot_mapping.slots.tolist() == [8]


def test_dense_metadata():
    meta = AttentionMetadata.dense(3, 2)
    assert meta.positions.tolist() == [0, 1, 0, 1, 0, 1]
    assert meta.query_start_loc.tolist() == [0, 2, 4, 6]
    assert meta.seq_lens.tolist() == [2, 2, 2]
    assert (meta.slot_mapping, meta.page_table, meta.uniform_length) == (None, None, 2)
    with pytest.raises(LayoutError, match="advance: argument 'meta': expected metadata of a paged step"):
        advance(meta)


# advance -----------------------------------------------------------------------------------------------


def test_advance_after_a_ragged_prefill():
    table = PageTable.empty(pool(8, 2), 3, 6).append(ints(0, 0, 0), ints(2, 0, 3))
    meta = AttentionMetadata.extend(table, [0, 0, 0], [2, 0, 3], num_tokens=9)
    step = advance(meta)
    assert step.num_tokens == step.num_seqs == 3
    # The sequence without tokens stays as it is and stores nothing.
    assert step.seq_lens.tolist() == [3, 0, 4]
    assert step.positions.tolist() == [2, 0, 3]
    assert step.query_start_loc.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(step.page_table.pages, [[0, 3, 8], [8, 8, 8], [1, 2, 8]])
    assert step.slot_mapping.slots.tolist() == [6, 16, 5]


def test_advance_with_a_mask_moves_only_the_active():
    table = PageTable.allocate(pool(6, 2), 3, 4)
    meta = AttentionMetadata.extend(table, [0, 0, 0], [1, 2, 0])
    step = advance(meta, jnp.array([False, True, True]))
    assert step.seq_lens.tolist() == [1, 3, 1]
    assert step.positions.tolist() == [0, 2, 0]
    assert step.slot_mapping.slots.tolist() == [12, 6, 8]
    still = advance(step, jnp.zeros(3, bool))
    assert still.seq_lens.tolist() == step.seq_lens.tolist()
    assert still.slot_mapping.slots.tolist() == [12, 12, 12]


@pytest.mark.parametrize("active", [np.ones(1, bool), np.ones(3, bool), np.bool_(True), np.array([0, 1])])
def test_advance_refuses_what_is_not_a_mask(active):
    meta = AttentionMetadata.extend(PageTable.allocate(pool(4, 2), 2, 4), [0, 0], [1, 1])
    with pytest.raises(ShapeError, match=r"advance: argument 'active': expected a bool mask of shape \(2,\)"):
        advance(meta, active)


def test_advance_exhausts_the_pool():
    table = PageTable.empty(pool(2, 2), 2, 4).append(ints(0, 0), ints(2, 2))
    meta = AttentionMetadata.extend(table, [0, 0], [2, 2])
    with pytest.raises(
        PoolExhaustedError, match=r"PageTable.append: 2 more pages are needed, 0 of 2 are free"
    ):
        advance(meta)
    inside = jax.jit(advance)(meta)
    assert inside.slot_mapping.slots.tolist() == [4, 4]
    assert inside.seq_lens.tolist() == [3, 3]


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_advance_in_a_while_loop_equals_steps_outside(page_size):
    """Pages are taken inside the loop exactly when a sequence crosses a page boundary."""
    cache = pool(2 * -(-13 // page_size) + 1, page_size)
    table = PageTable.empty(cache, 3, 13).append(ints(0, 0, 0), ints(2, 0, 1))
    meta = AttentionMetadata.extend(table, [0, 0, 0], [2, 0, 1])

    @jax.jit
    def ten_steps(meta):
        return jax.lax.while_loop(
            lambda state: state[0] < 10, lambda s: (s[0] + 1, advance(s[1])), (0, meta)
        )[1]

    looped = ten_steps(advance(meta))
    stepped = advance(meta)
    for _ in range(10):
        stepped = advance(stepped)
    assert jax.tree.structure(looped) == jax.tree.structure(stepped)
    for a, b in zip(jax.tree.leaves(looped), jax.tree.leaves(stepped), strict=True):
        np.testing.assert_array_equal(a, b)
    assert stepped.seq_lens.tolist() == [13, 0, 12]
    assert int(stepped.page_table.num_free()) == cache.num_pages - -(-13 // page_size) - -(-12 // page_size)


# Types -------------------------------------------------------------------------------------------------


@pytest.mark.bug("sgl-project/sglang#25556", "type")
@pytest.mark.bug("sgl-project/sglang#24587", "type")
def test_slots_and_pages_remember_their_pool():
    cache = pool(4, 2)
    check_pool("op", PageTable.empty(cache, 1, 2), cache)
    check_pool("op", SlotMapping(ints(0), 8, 2), cache)
    for other in (SlotMapping(ints(0), 4, 2), SlotMapping(ints(0), 8, 4)):
        with pytest.raises(LayoutError, match=r"op: SlotMapping was made for \(num_slots, page_size\)"):
            check_pool("op", other, cache)
    for other in (pool(5, 2), pool(4, 1), pool(2, 4)):
        with pytest.raises(LayoutError, match=r"op: PageTable was made for \(num_pages, page_size\)"):
            check_pool("op", PageTable.empty(other, 1, 2), cache)


def test_a_page_tables_geometry_is_structure():
    small, large = PageTable.empty(pool(4, 2), 1, 2), PageTable.empty(pool(4, 4), 1, 4)
    assert jax.tree.structure(small) != jax.tree.structure(large)
    assert len(jax.tree.leaves(small)) == 2


def test_metadata_survives_transformations():
    meta = AttentionMetadata.extend(PageTable.allocate(pool(4, 2), 2, 4), [0, 1], [1, 1])
    shapes = jax.eval_shape(advance, meta)
    assert jax.tree.structure(shapes) == jax.tree.structure(advance(meta))
    mapped = jax.tree.map(lambda leaf: leaf, meta)
    assert isinstance(mapped.page_table, PageTable)
    assert isinstance(mapped.slot_mapping, SlotMapping)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), meta, advance(meta))
    steps = jax.vmap(lambda one: advance(one).seq_lens)(stacked)
    assert steps.tolist() == [[2, 3], [3, 4]]
