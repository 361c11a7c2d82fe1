"""What checked mode finds, outside jit and inside, in which words; and what it must not object to."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
from paging_case import ints, pool

from custom_calls.quantized_tensor import QuantizedTensor
from mla_jax.cache import LatentCache
from mla_jax.checking import checked
from mla_jax.errors import CheckError, LayoutError, ShapeError
from mla_jax.paging import AttentionMetadata, PageTable, SlotMapping, advance
from mla_jax.step_checks import _findings, check_step, check_weight_scales

INT_MAX, INT_MIN = 2**31 - 1, -(2**31)
inside = checked(lambda cache, meta: check_step(cache, meta))
CACHE = pool(9, 4)


def good() -> AttentionMetadata:
    """Pages 0-2, 3-5, 6-8; slots 5 and 6, none, 27 to 29, two rows of padding."""
    return AttentionMetadata.extend(
        PageTable.allocate(CACHE, 3, 12), [5, 0, 3], [2, 0, 3], num_tokens=7, checks=True
    )


def pages(*changes: tuple[int, int, int], counts: dict[int, int] | None = None):
    """(sequence, entry, page) put into the table."""

    def change(meta):
        table = meta.page_table
        numbers, ref_counts = np.array(table.pages), np.array(table.ref_counts)
        for sequence, entry, page in changes:
            numbers[sequence, entry] = page
        for page, count in (counts or {}).items():
            ref_counts[page] = count
        table = dataclasses.replace(table, pages=jnp.asarray(numbers), ref_counts=jnp.asarray(ref_counts))
        return dataclasses.replace(meta, page_table=table)

    return change


def slots(*values: int):
    return lambda meta: dataclasses.replace(meta, slot_mapping=SlotMapping(ints(*values), 36, 4))


def field(name: str, *values: int):
    return lambda meta: dataclasses.replace(meta, **{name: ints(*values)})


def both(*changes):
    def change(meta):
        for one in changes:
            meta = one(meta)
        return meta

    return change


TAKEN = "entries of the page table and was taken"
RANGE = "expected 0 <= page < 9, or 9 for none"
MISTAKES = {
    "page-below": (pages((1, 2, -1)), f"sequence 1: page -1 at entry 2: {RANGE}"),
    "page-past-the-sentinel": (pages((1, 2, 10)), f"sequence 1: page 10 at entry 2: {RANGE}"),
    "page-int-max": (pages((2, 0, INT_MAX)), f"sequence 2: page {INT_MAX} at entry 0: {RANGE}"),
    "page-int-min": (pages((0, 0, INT_MIN)), f"sequence 0: page {INT_MIN} at entry 0: {RANGE}"),
    "page-twice": (
        pages((0, 2, 0), counts={0: 2}),
        "sequence 0: page 0 is at entry 0 and at entry 2: expected every page once",
    ),
    "page-was-freed": (
        pages(counts={7: 0}),
        f"sequence 2: page 7 at entry 1: it is in 1 {TAKEN} 0 times: freed, or never taken",
    ),
    "page-of-two": (
        pages((2, 0, 3)),
        f"sequence 1: page 3 at entry 0: it is in 2 {TAKEN} 1 times: freed, or never taken",
    ),
    "rows-descend": (
        field("query_start_loc", 0, 2, 1, 5),
        "sequence 1: query_start_loc says rows 2 to 1: expected ascending numbers in [0, 7]",
    ),
    "rows-before-the-first": (
        field("query_start_loc", -1, 2, 2, 5),
        "sequence 0: query_start_loc says rows -1 to 2: expected ascending numbers in [0, 7]",
    ),
    "rows-past-the-last": (
        field("query_start_loc", 0, 2, 2, 8),
        "sequence 2: query_start_loc says rows 2 to 8: expected ascending numbers in [0, 7]",
    ),
    "length-negative": (field("seq_lens", 7, -1, 6), "sequence 1: length -1: expected 0 to 12 tokens"),
    "length-past-the-table": (field("seq_lens", 13, 0, 6), "sequence 0: length 13: expected 0 to 12 tokens"),
    "length-int-max": (
        field("seq_lens", 7, 0, INT_MAX),
        f"sequence 2: length {INT_MAX}: expected 0 to 12 tokens",
    ),
    "length-without-the-new-tokens": (
        field("seq_lens", 5, 0, 6),
        "sequence 0: position 5 in row 0: expected 3, as the length is 5",
    ),
    "more-rows-than-tokens": (
        both(field("seq_lens", 1, 0, 6), field("positions", -1, 0, 3, 4, 5, 0, 0)),
        "sequence 0: position -1 in row 0: expected -1, as the length is 1",
    ),
    "position-off-by-one": (
        field("positions", 5, 6, 3, 4, 6, 0, 0),
        "sequence 2: position 6 in row 4: expected 5, as the length is 6",
    ),
    "no-page-for-tokens-held": (
        pages((2, 0, 9)),
        "sequence 2: no page at entry 0: expected 2 pages of 4 tokens for its 6 tokens",
    ),
    "no-page-for-the-newest-token": (
        pages((2, 1, 9)),
        "sequence 2: no page at entry 1: expected 2 pages of 4 tokens for its 6 tokens",
    ),
    "slot-of-another-position": (
        slots(5, 7, 27, 28, 29, 36, 36),
        "sequence 0: slot 7 in row 1: expected 6, where position 6 is in page 1",
    ),
    "slot-of-another-sequence": (
        slots(5, 6, 27, 12, 29, 36, 36),
        "sequence 2: slot 12 in row 3: expected 28, where position 4 is in page 7",
    ),
    "token-not-stored": (
        slots(5, 6, 27, 28, 36, 36, 36),
        "sequence 2: slot 36 in row 4: expected 29, where position 5 is in page 7",
    ),
    "first-token-of-a-prompt-not-stored": (
        both(
            field("positions", 5, 6, 0, 1, 2, 0, 0),
            field("seq_lens", 7, 0, 3),
            slots(5, 6, 36, 25, 26, 36, 36),
        ),
        "sequence 2: slot 36 in row 2: expected 24, where position 0 is in page 6",
    ),
    "only-token-of-a-prompt-elsewhere": (
        both(
            field("query_start_loc", 0, 2, 3, 6),
            field("positions", 5, 6, 0, 3, 4, 5, 0),
            field("seq_lens", 7, 1, 6),
            slots(5, 6, 13, 27, 28, 29, 36),
        ),
        "sequence 1: slot 13 in row 2: expected 12, where position 0 is in page 3",
    ),
    "decoded-token-not-stored": (
        both(
            field("query_start_loc", 0, 1, 1, 4),
            field("positions", 6, 3, 4, 5, 0, 0, 0),
            slots(36, 27, 28, 29, 36, 36, 36),
        ),
        "sequence 0: slot 36 in row 0: expected 6, where position 6 is in page 1",
    ),
    "slot-of-padding": (
        slots(5, 6, 27, 28, 29, 36, 13),
        "row 6 belongs to no sequence and would be stored in slot 13 of page 3: expected no slot",
    ),
    "slot-twice": (
        both(pages((2, 1, 1), counts={1: 2}), slots(5, 6, 27, 4, 5, 36, 36)),
        "sequences 0 and 2: both store in slot 5 of page 1: expected a slot for each token",
    ),
    "page-shared": (
        pages((1, 0, 1), counts={1: 2}),
        "sequence 0: stores in page 1, which 2 sequences share: expected a page of its own",
    ),
}


def assert_found(cache, meta, sentence):
    for check in (check_step, inside):
        with pytest.raises(CheckError, match=f"^{re.escape(sentence)}$"):
            check(cache, meta)


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.bug("vllm-project/vllm#39146", "test")
def test_a_mistake_is_named(name):
    change, sentence = MISTAKES[name]
    assert_found(CACHE, change(good()), f"AttentionMetadata: {sentence}")


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_a_scale_of_a_float8_pool_is_named(scale):
    kv = jnp.zeros((3, 9, 4, 2), jnp.float8_e4m3fn)
    scales = jnp.ones((3, 2), jnp.float32).at[1, 1].set(scale)
    assert_found(
        LatentCache(kv, scales, 1, "half"),
        good(),
        f"LatentCache: layer 1: scale 1 (0: latent, 1: RoPE) is {np.float32(scale)}: expected a finite number > 0",
    )
    for cache in (
        LatentCache(kv, jnp.full_like(scales, 1e-30), 1, "half"),
        LatentCache(kv.astype(jnp.float32), scales, 1, "half"),  # nobody reads them
    ):
        check_step(cache, good())
        inside(cache, good())


def test_the_models_context_limits_lengths_as_well():
    check_step(CACHE, good(), max_len=7)
    check_step(CACHE, good(), max_len=100)
    with pytest.raises(CheckError, match="sequence 0: length 7: expected 0 to 6 tokens"):
        check_step(CACHE, good(), max_len=6)
    with pytest.raises(CheckError, match="sequence 2: length 13: expected 0 to 12 tokens"):
        check_step(CACHE, field("seq_lens", 7, 0, 13)(good()), max_len=100)


def legal():
    """Metadata that looks unusual and is right."""
    table = PageTable.empty(CACHE, 3, 12).append(ints(0, 0, 0), ints(5, 1, 4))
    held = AttentionMetadata.extend(table, [5, 1, 4], [0, 0, 0], num_tokens=7, checks=True)
    yield "good", good()
    yield "nothing new", held
    yield "all decode", advance(held)
    stopped = dataclasses.replace(held, page_table=table.free(0))
    yield "a freed sequence is left alone", advance(stopped, jnp.array([False, True, True]))
    one_token = dataclasses.replace(held, page_table=table.free(1))
    yield "one of one token as well", advance(one_token, jnp.array([True, False, True]))
    yield (
        "a freed sequence without rows",
        AttentionMetadata.extend(table.free(0), [5, 1, 4], [0, 1, 0], num_tokens=7),
    )
    forked, _ = table.fork(CACHE, 0, 1, 5)
    yield "a fork", advance(AttentionMetadata.extend(forked, [5, 5, 4], [0, 0, 0], num_tokens=1))
    full = AttentionMetadata.extend(PageTable.allocate(CACHE, 3, 12), [5, 3, 11], [0, 0, 0], num_tokens=1)
    last = advance(full, jnp.array([False, True, True]))
    assert last.slot_mapping.slots[2] == 35
    yield "anything outside the pool is no slot", slots(-2, 15, 35)(last)
    part = dataclasses.replace(table, pages=table.pages[2:])
    yield "some rows of a table", advance(AttentionMetadata.extend(part, [4], [0], num_tokens=1))


def test_what_is_right_is_not_objected_to():
    for name, meta in legal():
        check = inside if meta.num_tokens == 3 else check_step  # every shape compiles once, not twice
        try:
            check(CACHE, meta)
        except CheckError as error:
            raise AssertionError(name) from error


def test_metadata_without_rows_sequences_or_pages():
    table = PageTable.allocate(CACHE, 3, 12)
    empty = AttentionMetadata.extend(table, [12, 0, 3], [0, 0, 0])
    assert empty.num_tokens == 0
    check_step(CACHE, empty)
    nobody = dataclasses.replace(
        empty,
        page_table=dataclasses.replace(table, pages=table.pages[:0]),
        query_start_loc=ints(0),
        seq_lens=jnp.zeros(0, jnp.int32),
    )
    check_step(CACHE, nobody)
    none = pool(0, 4)
    flat = PageTable(jnp.zeros((2, 0), jnp.int32), jnp.zeros(0, jnp.int32), 0, 4)
    meta = AttentionMetadata(ints(0), SlotMapping(ints(0), 0, 4), flat, ints(0, 0, 0), ints(0, 0))
    check_step(none, meta)
    with pytest.raises(CheckError, match="sequence 1: length 1: expected 0 to 0 tokens"):
        check_step(none, dataclasses.replace(meta, seq_lens=ints(0, 1)))


def test_what_is_no_paged_step_is_refused():
    for cache, meta in (
        (CACHE, AttentionMetadata.dense(2, 3)),
        (CACHE, dataclasses.replace(good(), page_table=None)),
        (CACHE, dataclasses.replace(good(), slot_mapping=None)),
        (None, good()),
    ):
        with pytest.raises(
            LayoutError, match="check_step: expected a pool and metadata of a paged step, got a"
        ):
            check_step(cache, meta)
    with pytest.raises(
        LayoutError, match=r"check_step: PageTable was made for .* \(9, 4\), the cache has \(9, 2\)"
    ):
        check_step(pool(9, 2), good())
    with pytest.raises(
        LayoutError, match=r"check_step: SlotMapping was made for .* \(18, 2\), the cache has"
    ):
        check_step(
            CACHE, dataclasses.replace(good(), slot_mapping=SlotMapping(ints(0, 1, 2, 3, 4, 5, 6), 18, 2))
        )
    for name, change in (
        ("page_table", lambda meta: dataclasses.replace(meta.page_table, pages=meta.page_table.pages[:2])),
        ("query_start_loc", lambda meta: meta.query_start_loc[:3]),
        ("slot_mapping", lambda meta: SlotMapping(meta.slot_mapping.slots[:4], 36, 4)),
    ):
        meta = good()
        with pytest.raises(
            ShapeError,
            match=f"check_step: argument 'meta': field '{name}': expected [347] rows .*, got [234]",
        ):
            check_step(CACHE, dataclasses.replace(meta, **{name: change(meta)}))


# Weights -----------------------------------------------------------------------------------------------


def weights(container, scale):
    blocks = {"mxfp4": (1, 32), "fp8_block": (1, 2), "int4_group": (1, 32)}
    data = {
        "mxfp4": jnp.zeros((3, 32), jnp.uint8),
        "fp8_block": jnp.zeros((3, 4), jnp.float8_e4m3fn),
        "int4_group": jnp.zeros((3, 32), jnp.uint8),
    }[container]
    return {"layers": [{"w": QuantizedTensor(data, scale, container, blocks[container])}], "b": jnp.ones(2)}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("container", "dtype"), [("fp8_block", "float32"), ("int4_group", "bfloat16")])
def test_a_scale_of_a_weight_is_named(container, dtype, bad):
    scale = jnp.ones((3, 2), dtype).at[0, 0].set(0)
    check_weight_scales(weights(container, scale))
    with pytest.raises(
        CheckError, match=rf"weight layers.0.w: {container} scale \[2, 1\] is {bad}: expected a finite number"
    ):
        check_weight_scales(weights(container, scale.at[2, 1].set(bad)))


def test_e8m0_has_one_code_that_is_no_number():
    scale = jnp.array([[0, 254], [127, 1], [2, 253]], jnp.uint8)
    check_weight_scales(weights("mxfp4", scale))
    with pytest.raises(
        CheckError, match=r"weight layers.0.w: mxfp4 scale \[1, 0\] is 255 \(e8m0: not a number\): expected"
    ):
        check_weight_scales(weights("mxfp4", scale.at[1, 0].set(np.uint8(255))))


def test_findings_are_compiled_for_shapes_and_not_for_values():
    check_step(CACHE, good())
    before = _findings._cache_size()
    for change, _ in MISTAKES.values():
        with pytest.raises(CheckError):
            check_step(CACHE, change(good()))
    assert _findings._cache_size() == before
