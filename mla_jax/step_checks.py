"""`check_step`: whether a step's metadata, page table and cache scales can be right, by looking at their values.

One function looks for one kind of mistake and describes the first. They come in an order in which a later one may
take for granted what an earlier one found to hold.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from custom_calls.mla_attention import rows_of_sequences
from custom_calls.quantized_tensor import QuantizedTensor
from mla_jax.cache import LatentCache
from mla_jax.checking import Finding, first_wrong, require
from mla_jax.errors import CheckError, LayoutError, ShapeError
from mla_jax.paging import AttentionMetadata, PageTable, SlotMapping, check_pool

_E8M0_NAN = 255


def check_step(cache: LatentCache | None, meta: AttentionMetadata, *, max_len: int | None = None) -> None:
    """Refuses a step whose metadata contradicts itself or its pool.

    Models call it first in every step whose metadata has `checks=True`; layers and ops that are used on their own
    do not. What has to hold, of a sequence with new tokens wherever no other one is named:

    - Every entry of the page table is a page of the pool or the sentinel, no sequence has a page twice, and no
      page is in more entries than `ref_counts` counts: a page that was freed, or taken without counting it.
    - query_start_loc ascends within [0, T]; every length is in [0, max_len] and within its row of the table.
    - Positions are the last of the sequence, in order, and every page up to the length is there.
    - A row is stored in the slot of its position, in a page that no other sequence shares; no slot is stored
      twice; padding stores nothing.
    - Scales of a float8 pool are finite and above 0.

    A sequence that `advance` was told to leave alone has one row at position 0 that is not stored: its pages may
    be gone.

    Args:
      cache: the pool.
      meta: of a paged step, whatever its `checks`.
      max_len: tokens that a sequence may have, such as the model's context; by default what the table holds.

    Raises:
      CheckError: at once where values are known; inside jit when a `mla_jax.checked` step is run.
      LayoutError: there is no pool, or `meta` is of another one. ShapeError: its fields do not fit together.
    """
    if cache is None or meta.page_table is None or meta.slot_mapping is None:
        raise LayoutError(
            "check_step: expected a pool and metadata of a paged step, got a step without a pool"
        )
    check_pool("check_step", meta.page_table, cache)
    check_pool("check_step", meta.slot_mapping, cache)
    for name, got, expected in (
        ("page_table", meta.page_table.num_seqs, meta.num_seqs),
        ("query_start_loc", meta.query_start_loc.shape[0], meta.num_seqs + 1),
        ("slot_mapping", meta.slot_mapping.slots.shape[0], meta.num_tokens),
    ):
        if got != expected:
            raise ShapeError(
                f"check_step: argument 'meta': field '{name}': expected {expected} rows for {meta.num_seqs} sequences "
                f"and {meta.num_tokens} tokens, got {got}"
            )
    capacity = meta.page_table.capacity
    limit = capacity if max_len is None else min(max_len, capacity)
    is_float8 = cache.kv.dtype.itemsize == 1
    for finding in _findings(cache.scales if is_float8 else None, meta, limit):
        require(finding)


def check_weight_scales(model: Any) -> None:
    """Raises `CheckError` for the first quantised weight with a scale that is not a finite number; outside jit."""
    is_quantized = lambda node: isinstance(node, QuantizedTensor)  # noqa: E731
    leaves, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_quantized)
    for path, leaf in leaves:
        if is_quantized(leaf):
            is_e8m0 = leaf.container == "mxfp4"
            wrong = leaf.scale == np.uint8(_E8M0_NAN) if is_e8m0 else ~jnp.isfinite(leaf.scale)
            if bool(jnp.any(wrong)):
                index = np.unravel_index(int(jnp.argmax(wrong)), wrong.shape)
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise CheckError(
                    f"weight {name}: {leaf.container} scale {[int(i) for i in index]} is {leaf.scale[index]}"
                    f"{' (e8m0: not a number)' if is_e8m0 else ''}: expected a finite number"
                )


@functools.partial(jax.jit, static_argnums=2)
def _findings(scales: Array | None, meta: AttentionMetadata, limit: int) -> list[Finding]:
    table, mapping = meta.page_table, meta.slot_mapping
    assert table is not None
    assert mapping is not None
    starts, ends = meta.query_start_loc[:-1], meta.query_start_loc[1:]
    found = [] if scales is None else [_scales(scales)]
    found += [_pages(table), _repeated_pages(table), _counts(table)]
    found += [_rows(starts, ends, meta.num_tokens), _lengths(meta.seq_lens, limit)]
    if min(meta.num_seqs, meta.num_tokens, table.max_pages, table.num_pages) > 0:
        sequence, owned = rows_of_sequences(meta.query_start_loc, meta.num_tokens)
        left_alone = (ends - starts == 1)[sequence] & (meta.positions == 0) & ~mapping.stored
        works = owned & ~left_alone
        found += [
            _positions(meta, sequence, works),
            _missing_pages(table, meta.seq_lens, sequence, works),
            _padding(mapping, owned),
            _slots(meta, table, mapping, sequence, works),
            _repeated_slots(mapping, sequence),
            _shared_pages(table, mapping, sequence),
        ]
    return found


def _scales(scales: jax.Array) -> Finding:
    return first_wrong(
        ~(jnp.isfinite(scales) & (scales > 0)),
        "LatentCache: layer {layer}: scale {part} (0: latent, 1: RoPE) is {scale}: expected a finite number > 0",
        lambda layer, part: {"layer": layer, "part": part, "scale": scales[layer, part]},
    )


def _pages(table: PageTable) -> Finding:
    return first_wrong(
        (table.pages < 0) | (table.pages > table.num_pages),
        f"AttentionMetadata: sequence {{sequence}}: page {{page}} at entry {{entry}}: expected 0 <= page < "
        f"{table.num_pages}, or {table.num_pages} for none",
        lambda s, e: {"sequence": s, "page": table.pages[s, e], "entry": e},
    )


def _repeated_pages(table: PageTable) -> Finding:
    entry = jnp.arange(table.max_pages, dtype=jnp.int32)
    # Row by row: all rows at once would take num_seqs * num_pages numbers, and a sort compiles for seconds.
    first = jax.lax.map(lambda pages: _first_at(pages, table.num_pages), table.pages)
    return first_wrong(
        (table.pages < table.num_pages) & (first < entry[None, :]),
        "AttentionMetadata: sequence {sequence}: page {page} is at entry {first} and at entry {second}: expected "
        "every page once",
        lambda s, e: {"sequence": s, "page": table.pages[s, e], "first": first[s, e], "second": e},
    )


def _first_at(numbers: jax.Array, size: int) -> jax.Array:
    """(n,) where each of `numbers` comes first among them; what is outside [0, size) may be anywhere."""
    inside = jnp.where(numbers < 0, size, numbers)
    place = jnp.arange(numbers.shape[0], dtype=jnp.int32)
    first = jnp.full((size + 1,), numbers.shape[0], jnp.int32).at[inside].min(place, mode="drop")
    return first[jnp.minimum(inside, size)]


def _counts(table: PageTable) -> Finding:
    pages = table.pages
    entries = jnp.zeros((table.num_pages,), jnp.int32).at[pages].add(1, mode="drop")
    wrong = entries > table.ref_counts
    here = jnp.pad(wrong, (0, 1))[jnp.minimum(pages, table.num_pages)]
    return first_wrong(
        here,
        "AttentionMetadata: sequence {sequence}: page {page} at entry {entry}: it is in {entries} entries of "
        "the page table and was taken {count} times: freed, or never taken",
        lambda s, e: {
            "sequence": s,
            "page": pages[s, e],
            "entry": e,
            "entries": entries[pages[s, e]],
            "count": table.ref_counts[pages[s, e]],
        },
    )


def _rows(starts: jax.Array, ends: jax.Array, num_tokens: int) -> Finding:
    return first_wrong(
        (starts < 0) | (ends < starts) | (ends > num_tokens),
        "AttentionMetadata: sequence {sequence}: query_start_loc says rows {first} to {end}: expected ascending "
        f"numbers in [0, {num_tokens}]",
        lambda s: {"sequence": s, "first": starts[s], "end": ends[s]},
    )


def _lengths(seq_lens: jax.Array, limit: int) -> Finding:
    return first_wrong(
        (seq_lens < 0) | (seq_lens > limit),
        f"AttentionMetadata: sequence {{sequence}}: length {{length}}: expected 0 to {limit} tokens",
        lambda s: {"sequence": s, "length": seq_lens[s]},
    )


def _positions(
    meta: AttentionMetadata, sequence: Int[Array, " tokens"], works: Bool[Array, " tokens"]
) -> Finding:
    # The last row of a sequence is its last token; attention counts back from there.
    row = jnp.arange(meta.num_tokens, dtype=jnp.int32)
    expected = meta.seq_lens[sequence] - meta.query_start_loc[sequence + 1] + row
    return first_wrong(
        works & ((meta.positions != expected) | (expected < 0)),
        "AttentionMetadata: sequence {sequence}: position {position} in row {row}: expected {expected}, as the length "
        "is {length}",
        lambda r: {
            "sequence": sequence[r],
            "position": meta.positions[r],
            "row": r,
            "expected": expected[r],
            "length": meta.seq_lens[sequence[r]],
        },
    )


def _missing_pages(
    table: PageTable, seq_lens: jax.Array, sequence: Int[Array, " tokens"], works: Bool[Array, " tokens"]
) -> Finding:
    working = jnp.zeros((table.num_seqs,), jnp.bool_).at[sequence].max(works)
    needed = jnp.where(working, -(-seq_lens // table.page_size), 0)
    entry = jnp.arange(table.max_pages, dtype=jnp.int32)[None, :]
    return first_wrong(
        (entry < needed[:, None]) & (table.pages == table.num_pages),
        f"AttentionMetadata: sequence {{sequence}}: no page at entry {{entry}}: expected {{needed}} pages of "
        f"{table.page_size} tokens for its {{length}} tokens",
        lambda s, e: {"sequence": s, "entry": e, "needed": needed[s], "length": seq_lens[s]},
    )


def _padding(mapping: SlotMapping, owned: Bool[Array, " tokens"]) -> Finding:
    return first_wrong(
        mapping.stored & ~owned,
        "AttentionMetadata: row {row} belongs to no sequence and would be stored in slot {slot} of page {page}: "
        "expected no slot",
        lambda r: {"row": r, "slot": mapping.slots[r], "page": mapping.slots[r] // mapping.page_size},
    )


def _slots(
    meta: AttentionMetadata,
    table: PageTable,
    mapping: SlotMapping,
    sequence: Int[Array, " tokens"],
    works: Bool[Array, " tokens"],
) -> Finding:
    expected = table.slots(sequence, meta.positions).slots
    return first_wrong(
        works & (mapping.slots != expected),
        "AttentionMetadata: sequence {sequence}: slot {slot} in row {row}: expected {expected}, where position "
        "{position} is in page {page}",
        lambda r: {
            "sequence": sequence[r],
            "slot": mapping.slots[r],
            "row": r,
            "expected": expected[r],
            "position": meta.positions[r],
            "page": expected[r] // mapping.page_size,
        },
    )


def _repeated_slots(mapping: SlotMapping, sequence: Int[Array, " tokens"]) -> Finding:
    first = _first_at(mapping.slots, mapping.num_slots)
    return first_wrong(
        mapping.stored & (first < jnp.arange(mapping.slots.shape[0], dtype=jnp.int32)),
        "AttentionMetadata: sequences {first} and {second}: both store in slot {slot} of page {page}: expected "
        "a slot for each token",
        lambda r: {
            "first": sequence[first[r]],
            "second": sequence[r],
            "slot": mapping.slots[r],
            "page": mapping.slots[r] // mapping.page_size,
        },
    )


def _shared_pages(table: PageTable, mapping: SlotMapping, sequence: Int[Array, " tokens"]) -> Finding:
    page = jnp.where(mapping.stored, mapping.slots // mapping.page_size, 0)
    count = table.ref_counts[page]
    return first_wrong(
        mapping.stored & (count > 1),
        "AttentionMetadata: sequence {sequence}: stores in page {page}, which {count} sequences share: expected "
        "a page of its own",
        lambda r: {"sequence": sequence[r], "page": page[r], "count": count[r]},
    )
