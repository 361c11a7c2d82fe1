"""Paging as values: page tables, slot mappings and the metadata of one step, with pure functions.

Page-granular and token-granular numbers are different types, each with its page size and its sentinel
(one past the last valid number), so that one cannot be read as the other. Everything here runs inside
jit as well as outside.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from mla_jax.cache import MAX_SLOTS, LatentCache
from mla_jax.checking import check_flag, first_wrong, known, require
from mla_jax.errors import LayoutError, PoolExhaustedError, ShapeError
from mla_jax.pytree import pytree


@pytree(data=("slots",), static=("num_slots", "page_size"))
@dataclass(frozen=True)
class SlotMapping:
    """Token-granular: the pool row that each new token is stored in.

    slots: (T,) int32, page * page_size + offset in the page; `num_slots` (or anything else outside
    [0, num_slots)) stores nothing.
    """

    slots: Int[Array, " tokens"]
    num_slots: int
    page_size: int

    @property
    def stored(self) -> Bool[Array, " tokens"]:
        """(T,) whether each new token is stored."""
        return (self.slots >= 0) & (self.slots < self.num_slots)


@pytree(data=("pages", "ref_counts"), static=("num_pages", "page_size"))
@dataclass(frozen=True)
class PageTable:
    """Page-granular: the pages of each sequence in order of position, and how often each page is used.

    Attributes:
      pages: (num_seqs, max_pages) int32; `num_pages` marks an entry without a page.
      ref_counts: (num_pages,) int32; 0 is free, above 1 is shared by forked sequences.
    """

    pages: Int[Array, "num_seqs max_pages"]
    ref_counts: Int[Array, " num_pages"]
    num_pages: int
    page_size: int

    @property
    def num_seqs(self) -> int:
        """Rows of the table, in use or not."""
        return self.pages.shape[0]

    @property
    def max_pages(self) -> int:
        """Pages that one sequence can have."""
        return self.pages.shape[1]

    @property
    def capacity(self) -> int:
        """Tokens that one sequence can have."""
        return self.max_pages * self.page_size

    @staticmethod
    def empty(cache: LatentCache, num_seqs: int, max_len: int) -> "PageTable":
        """A table of `num_seqs` sequences without pages, each able to grow to `max_len` tokens."""
        for name, value in (("num_seqs", num_seqs), ("max_len", max_len)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ShapeError(f"PageTable: argument '{name}': expected an integer >= 1, got {value!r}")
        max_pages = -(-max_len // cache.page_size)
        if max_pages * cache.page_size > MAX_SLOTS:
            raise ShapeError(
                f"PageTable: argument 'max_len': expected at most {MAX_SLOTS} tokens in whole pages of "
                f"{cache.page_size}, got {max_len}"
            )
        return PageTable(
            pages=jnp.full((num_seqs, max_pages), cache.num_pages, jnp.int32),
            ref_counts=jnp.zeros((cache.num_pages,), jnp.int32),
            num_pages=cache.num_pages,
            page_size=cache.page_size,
        )

    @staticmethod
    def allocate(cache: LatentCache, num_seqs: int, max_len: int) -> "PageTable":
        """A table in which every sequence already owns pages for `max_len` tokens.

        Raises:
          PoolExhaustedError: the pool has fewer pages than that.
        """
        table = PageTable.empty(cache, num_seqs, max_len)
        needed = num_seqs * table.max_pages
        if needed > cache.num_pages:
            raise PoolExhaustedError(
                f"PageTable.allocate: {num_seqs} sequences of {max_len} tokens need {needed} pages of "
                f"{cache.page_size} tokens, the pool has {cache.num_pages}"
            )
        pages = jnp.arange(needed, dtype=jnp.int32).reshape(table.pages.shape)
        used = (jnp.arange(cache.num_pages, dtype=jnp.int32) < needed).astype(jnp.int32)
        return replace(table, pages=pages, ref_counts=used)

    def num_free(self) -> Int[Array, ""]:
        """Pages that nobody uses."""
        return jnp.sum(self.ref_counts == 0, dtype=jnp.int32)

    def append(self, seq_lens: Any, num_new: Any) -> "PageTable":
        """Gives every sequence the pages that it needs to hold num_new[i] tokens after seq_lens[i].

        Args:
          seq_lens: (num_seqs,) int32 tokens held so far.
          num_new: (num_seqs,) int32 tokens to come; 0 allocates nothing.

        Returns:
          The table with free pages taken in ascending order.

        Raises:
          ShapeError: seq_lens or num_new are not (num_seqs,) integers, or, outside jit, not all >= 0. Inside
          jit a negative num_new allocates nothing, and `AttentionMetadata.extend` gives such a sequence NaN.
          PoolExhaustedError: outside jit, when the pool or a row of the table is too small. Inside jit
          the entry stays without a page: its tokens are not stored and attention to them is NaN.
        """
        held = _lengths("PageTable.append", "seq_lens", seq_lens, self.num_seqs)
        new = _lengths("PageTable.append", "num_new", num_new, self.num_seqs)
        total = held + new
        needed = jnp.where(total > held, -(-total // self.page_size), 0)
        entry = jnp.arange(self.max_pages, dtype=jnp.int32)[None, :]
        # Pages of tokens that are already held are not replaced: a sequence that lost them stays unreadable.
        first = (-(-held // self.page_size))[:, None]
        missing = (entry >= first) & (entry < needed[:, None]) & (self.pages >= self.num_pages)
        # The i-th missing entry takes the i-th free page; beyond the last free page it stays empty.
        rank = jnp.cumsum(missing.reshape(-1).astype(jnp.int32), dtype=jnp.int32).reshape(missing.shape) - 1
        free = self.ref_counts == 0
        order = jnp.cumsum(free.astype(jnp.int32), dtype=jnp.int32) - 1
        numbers = jnp.arange(self.num_pages, dtype=jnp.int32)
        by_rank = jnp.full((self.num_pages,), self.num_pages, jnp.int32)
        by_rank = by_rank.at[jnp.where(free, order, self.num_pages)].set(numbers, mode="drop")
        in_reach = missing & (rank < self.num_pages)
        taken = jnp.where(in_reach, by_rank[jnp.clip(rank, 0, self.num_pages - 1)], self.num_pages)
        _refuse_when_known(
            jnp.any(missing & (taken >= self.num_pages)) | jnp.any(needed > self.max_pages),
            lambda: (
                f"PageTable.append: {_shortage(needed, self)} more pages are needed, "
                f"{int(self.num_free())} of {self.num_pages} are free and a sequence holds at most "
                f"{self.max_pages} pages of {self.page_size} tokens"
            ),
        )
        pages = jnp.where(missing, taken, self.pages)
        counts = self.ref_counts.at[taken.reshape(-1)].add(1, mode="drop")
        return replace(self, pages=pages, ref_counts=counts)

    def free(self, released: Any) -> "PageTable":
        """Takes all pages from the sequences in `released`: an index, or a (num_seqs,) bool mask.

        A sequence that is freed reads as NaN until it gets pages again. Freeing one without pages changes
        nothing.

        Raises:
          ShapeError: neither an index nor a mask; outside jit, an index outside [0, num_seqs). Inside jit
          such an index frees nothing.
        """
        mask = _as_mask(released, self.num_seqs)
        leaving = jnp.where(mask[:, None], self.pages, self.num_pages)
        counts = self.ref_counts.at[leaving.reshape(-1)].add(-1, mode="drop")
        return replace(self, pages=jnp.where(mask[:, None], self.num_pages, self.pages), ref_counts=counts)

    def fork(
        self, cache: LatentCache, source: Any, target: Any, seq_len: Any
    ) -> tuple["PageTable", LatentCache]:
        """Makes sequence `target` continue from the `seq_len` tokens of `source`.

        Whole pages are shared; the partly filled tail page is copied, because both sequences will write
        into it. `target`'s own pages are released first. With the cache donated, one page is copied.

        Args:
          cache: the pool that the table belongs to.
          source, target: () int32 rows of the table, different from each other.
          seq_len: () int32 tokens of `source` so far.

        Returns:
          (table, cache).

        Raises:
          ShapeError: outside jit, two equal rows, a row outside [0, num_seqs) or a length outside
          [0, capacity]. Inside jit a `target` that is no row, or is `source`, changes nothing; for any other
          mistake `target` is left without pages, so that attention to it is NaN.
          PoolExhaustedError: outside jit, when no page is free for the tail. Inside jit target's entry stays
          without a page.
        """
        check_pool("PageTable.fork", self, cache)
        rows, capacity = self.num_seqs, self.capacity
        source = _scalar("PageTable.fork", "source", source)
        target = _scalar("PageTable.fork", "target", target)
        length = _scalar("PageTable.fork", "seq_len", seq_len)
        writes = (target >= 0) & (target < rows) & (target != source)
        reads = (source >= 0) & (source < rows) & (length >= 0) & (length <= capacity)
        possible = writes & reads
        if known(possible) and not bool(possible):
            raise ShapeError(
                f"PageTable.fork: expected two different rows in [0, {rows}) and a length in [0, {capacity}], "
                f"got source {int(source)}, target {int(target)}, seq_len {int(length)}"
            )
        table = self.free((jnp.arange(rows, dtype=jnp.int32) == target) & writes)
        whole, tail = length // self.page_size, length % self.page_size
        entry = jnp.arange(self.max_pages, dtype=jnp.int32)
        own = jnp.where(possible, table.pages[jnp.clip(source, 0, rows - 1)], self.num_pages)
        last = own[jnp.clip(whole, 0, self.max_pages - 1)]
        # A tail that never got a page is not copied: target's entry stays without one as well.
        has_tail = (tail > 0) & (last < self.num_pages)
        free = table.ref_counts == 0
        spare = jnp.where(jnp.any(free), jnp.argmax(free).astype(jnp.int32), self.num_pages)
        _refuse_when_known(
            has_tail & (spare >= self.num_pages),
            lambda: f"PageTable.fork: the tail page needs one free page, 0 of {self.num_pages} are free",
        )
        copy_to = jnp.where(has_tail, spare, self.num_pages)
        copied = jnp.where(entry == whole, copy_to, self.num_pages)
        pages = jnp.where(entry < whole, own, copied)
        counts = table.ref_counts.at[pages].add(1, mode="drop")
        row = jnp.where(writes, target, rows)  # past the last: dropped
        table = replace(table, pages=table.pages.at[row].set(pages, mode="drop"), ref_counts=counts)
        copy_from = jnp.clip(last, 0, self.num_pages - 1)
        return table, cache.with_kv(_copy_page(cache.kv, copy_from, copy_to))

    def slots(self, sequence: jax.Array, positions: jax.Array) -> SlotMapping:
        """The token slots of (sequence, position) pairs; the sentinel where there is no page."""
        entry = positions // self.page_size
        inside = (positions >= 0) & (entry < self.max_pages) & (sequence >= 0) & (sequence < self.num_seqs)
        row = jnp.clip(sequence, 0, self.num_seqs - 1)
        page = self.pages[row, jnp.clip(entry, 0, self.max_pages - 1)]
        live = inside & (page >= 0) & (page < self.num_pages)
        num_slots = self.num_pages * self.page_size
        return SlotMapping(
            slots=jnp.where(live, page * self.page_size + positions % self.page_size, num_slots),
            num_slots=num_slots,
            page_size=self.page_size,
        )


@pytree(
    data=("positions", "slot_mapping", "page_table", "query_start_loc", "seq_lens"),
    static=("uniform_length", "checks"),
)
@dataclass(frozen=True)
class AttentionMetadata:
    """Everything that one ragged step needs to know about its T rows and S sequences.

    Attributes:
      positions: (T,) int32 position of each new token in its sequence.
      slot_mapping: where each new token is stored; None without a pool.
      page_table: the sequences' pages; None without a pool.
      query_start_loc: (S + 1,) int32, first row of each sequence; rows from the last entry on are padding.
      seq_lens: (S,) int32 tokens of each sequence, this step's included.
      uniform_length: rows of every sequence where that is static (dense batches), else None.
      checks: static: a model's step looks for contradictions first, see `mla_jax.check_step`; inside jit the step
        has to be `mla_jax.checked`. False compiles to what it would without the field.

    Raises:
      ConfigError: `checks` is no bool.
    """

    positions: Int[Array, " tokens"]
    slot_mapping: SlotMapping | None
    page_table: PageTable | None
    query_start_loc: Int[Array, " num_seqs_plus_1"]
    seq_lens: Int[Array, " num_seqs"]
    uniform_length: int | None = None
    checks: bool = False

    def __post_init__(self) -> None:
        check_flag(self.checks)

    @property
    def num_tokens(self) -> int:
        """T, padding included."""
        return self.positions.shape[0]

    @property
    def num_seqs(self) -> int:
        """S, sequences without rows included."""
        return self.seq_lens.shape[0]

    @staticmethod
    def dense(batch: int, length: int) -> "AttentionMetadata":
        """`batch` whole sequences of `length` tokens, without a pool."""
        return AttentionMetadata(
            positions=jnp.tile(jnp.arange(length, dtype=jnp.int32), batch),
            slot_mapping=None,
            page_table=None,
            query_start_loc=jnp.arange(batch + 1, dtype=jnp.int32) * length,
            seq_lens=jnp.full((batch,), length, jnp.int32),
            uniform_length=length,
        )

    @staticmethod
    def held(table: PageTable, seq_lens: Any, *, checks: bool = False) -> "AttentionMetadata":
        """What sequences hold between two steps: of no step itself, for `advance`.

        Args:
          table: the sequences' pages.
          seq_lens: (num_seqs,) int32 tokens that each sequence holds.
          checks: checked mode, in the steps that `advance` makes of it.

        Raises:
          ConfigError: `checks` is no bool. ShapeError: seq_lens are not (num_seqs,) integers, or not all >= 0.
        """
        lengths = _lengths("AttentionMetadata.held", "seq_lens", seq_lens, table.num_seqs)
        return AttentionMetadata(
            positions=lengths,
            slot_mapping=None,
            page_table=table,
            query_start_loc=jnp.arange(table.num_seqs + 1, dtype=jnp.int32),
            seq_lens=lengths,
            checks=checks,
        )

    @staticmethod
    def extend(
        table: PageTable,
        seq_lens: Any,
        num_new: Any,
        *,
        num_tokens: int | None = None,
        checks: bool = False,
    ) -> "AttentionMetadata":
        """Metadata of a step that adds num_new[i] tokens to sequence i.

        Args:
          table: has pages for seq_lens + num_new tokens (`allocate`, or `append` by hand).
          seq_lens: (num_seqs,) int32 tokens that each sequence holds before this step.
          num_new: (num_seqs,) int32 new tokens of each sequence, 0 for none.
          num_tokens: T, the static number of rows, padding included; sum(num_new) by default, which
            inside jit is not known and must be given.
          checks: checked mode, here and in the steps that `advance` makes of it.

        Raises:
          ConfigError: `checks` is no bool.
          ShapeError: on shapes, on negative lengths, on lengths that the table cannot hold, or on a T that is
          unknown or too small. Inside jit, where values are not known, such a sequence gets a length that no
          row of the table can hold: its logits are NaN, in this step and in those that `advance` makes of it.
        """
        op = "AttentionMetadata.extend"
        before = _lengths(op, "seq_lens", seq_lens, table.num_seqs)
        new = _lengths(op, "num_new", num_new, table.num_seqs)
        if num_tokens is None:
            if not known(new):
                raise ShapeError(
                    f"{op}: argument 'num_tokens': expected the static number of rows inside jit, where "
                    "sum(num_new) is not known, got None"
                )
            num_tokens = int(np.asarray(new).sum(dtype=np.int64))
        if known(before) and known(new):
            _check_lengths(table, np.asarray(before, np.int64), np.asarray(new, np.int64), num_tokens)
        # Bounded before it is summed: what was not checked must not overflow into a plausible number.
        counted = jnp.clip(new, 0, num_tokens + 1)
        starts = jnp.concatenate([jnp.zeros((1,), jnp.int32), jnp.cumsum(counted, dtype=jnp.int32)])
        lost = (before < 0) | (new < 0) | (new > table.capacity - before) | (starts[1:] > num_tokens)
        rows = jnp.arange(num_tokens, dtype=jnp.int32)
        sequence = jnp.searchsorted(starts, rows, side="right").astype(jnp.int32) - 1
        owned = rows < starts[-1]
        row = jnp.clip(sequence, 0, table.num_seqs - 1)
        positions = jnp.where(owned, before[row] + rows - starts[row], 0)
        # Padding asks for the row past the table, which has no page: the sentinel slot.
        mapping = table.slots(jnp.where(owned, row, table.num_seqs), positions)
        _refuse_when_known(
            jnp.any(owned & ~mapping.stored),
            lambda: (
                f"{op}: the table has no pages for some of the new tokens; call "
                "table.append(seq_lens, num_new) first"
            ),
        )
        lens = jnp.where(lost, table.capacity + 1, before + new)
        meta = AttentionMetadata(positions, mapping, table, starts, lens, checks=checks)
        if checks:
            _require_pages(op, meta, owned, row)
        return meta


def advance(
    meta: AttentionMetadata, active: Bool[Array, " num_seqs"] | None = None, *, reserved: bool = False
) -> AttentionMetadata:
    """Metadata of the next decode step: one new token for each sequence, row i for sequence i.

    Args:
      meta: metadata of the step before, a prefill's or a decode step's.
      active: (num_seqs,) bool; the other sequences keep their length, store nothing and their row's
        result is to be ignored. By default the sequences that hold at least one token.
      reserved: static: the table has the pages already (`PageTable.allocate`, or `append` by hand), so none is
        looked for, which costs time with the size of pool and table. A token without a page is not stored, and its
        sequence's result is NaN.

    Returns:
      Metadata with T = num_seqs. Pages are taken from the pool where a sequence needs a new one, unless `reserved`.

    Raises:
      LayoutError: `meta` has no pool. ShapeError: `active` is not such a mask.
      PoolExhaustedError: as `PageTable.append`.
      CheckError: in checked mode, inside jit, where `PageTable.append` could not refuse.
    """
    if meta.page_table is None:
        raise LayoutError("advance: argument 'meta': expected metadata of a paged step, got a dense one")
    grows = meta.seq_lens > 0 if active is None else jnp.asarray(active)
    if grows.shape != (meta.num_seqs,) or grows.dtype != jnp.bool_:
        raise ShapeError(
            f"advance: argument 'active': expected a bool mask of shape ({meta.num_seqs},), got "
            f"{grows.dtype} of shape {grows.shape}"
        )
    table = meta.page_table if reserved else meta.page_table.append(meta.seq_lens, grows.astype(jnp.int32))
    sequence = jnp.arange(meta.num_seqs, dtype=jnp.int32)
    positions = jnp.where(grows, meta.seq_lens, 0)
    after = AttentionMetadata(
        positions=positions,
        slot_mapping=table.slots(jnp.where(grows, sequence, meta.num_seqs), positions),
        page_table=table,
        query_start_loc=jnp.arange(meta.num_seqs + 1, dtype=jnp.int32),
        seq_lens=meta.seq_lens + grows.astype(jnp.int32),
        checks=meta.checks,
    )
    if meta.checks:
        _require_pages("advance", after, grows, sequence)
    return after


def _require_pages(op: str, meta: AttentionMetadata, new: jax.Array, sequence: jax.Array) -> None:
    """Checked mode: the pool had a page for every row that brings a new token.

    Without one such a row looks like one that is left alone, so that nobody could tell later.
    """
    table, mapping = meta.page_table, meta.slot_mapping
    assert table is not None
    assert mapping is not None
    if table.max_pages == 0 or meta.num_tokens == 0:
        return
    entry = jnp.clip(meta.positions // table.page_size, 0, table.max_pages - 1)
    empty = table.pages[sequence, entry] == table.num_pages
    require(
        first_wrong(
            new & ~mapping.stored & empty,
            f"{op}: sequence {{sequence}}: no page at entry {{entry}} for the new token at position {{position}}",
            lambda row: {"sequence": sequence[row], "entry": entry[row], "position": meta.positions[row]},
        )
    )


def check_pool(op: str, paging: SlotMapping | PageTable, cache: LatentCache) -> None:
    """Raises `LayoutError` unless slots or pages were made for a pool of this geometry."""
    if isinstance(paging, SlotMapping):
        got, expected = (paging.num_slots, paging.page_size), (cache.num_slots, cache.page_size)
        unit = "(num_slots, page_size)"
    else:
        got, expected = (paging.num_pages, paging.page_size), (cache.num_pages, cache.page_size)
        unit = "(num_pages, page_size)"
    if got != expected:
        raise LayoutError(
            f"{op}: {type(paging).__name__} was made for {unit} = {got}, the cache has {expected}"
        )


def _copy_page(kv: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
    """The pool with page `source` of every layer copied to `target`, if that is a page; in place under donation.

    XLA:CPU would convert all of a bfloat16 or float8 pool to update one page of it, and would copy any pool
    whose page is read where it is written: hence integers, a barrier between the two, and a branch.
    """
    unsigned = jnp.dtype(f"uint{8 * kv.dtype.itemsize}")
    page = jax.lax.optimization_barrier(jax.lax.dynamic_slice_in_dim(kv, source, 1, axis=1))

    def write(pool: jax.Array) -> jax.Array:
        pool_codes, codes = (jax.lax.bitcast_convert_type(array, unsigned) for array in (pool, page))
        updated = jax.lax.dynamic_update_slice_in_dim(pool_codes, codes, target, axis=1)
        return jax.lax.bitcast_convert_type(updated, kv.dtype)

    return jax.lax.cond(target < kv.shape[1], write, lambda pool: pool, kv)


def _refuse_when_known(failed: Any, message: Any) -> None:
    if known(failed) and bool(failed):
        raise PoolExhaustedError(message())


def _as_mask(released: Any, num_seqs: int) -> jax.Array:
    value = released if isinstance(released, jax.Array) else np.asarray(released)
    if value.dtype == jnp.bool_ and value.shape == (num_seqs,):
        return jnp.asarray(value)
    if value.shape == () and jnp.issubdtype(value.dtype, jnp.integer):
        if known(value) and not 0 <= int(value) < num_seqs:
            raise ShapeError(
                f"PageTable.free: argument 'released': expected an index in [0, {num_seqs}), got {int(value)}"
            )
        return jnp.arange(num_seqs, dtype=jnp.int32) == jnp.asarray(value).astype(jnp.int32)
    raise ShapeError(
        f"PageTable.free: argument 'released': expected an index or a bool mask of shape ({num_seqs},), "
        f"got {value.dtype} of shape {value.shape}"
    )


def _scalar(op: str, name: str, value: Any) -> jax.Array:
    number = _int32(op, name, value, "an integer")
    if number.shape != ():
        raise ShapeError(f"{op}: argument '{name}': expected an integer, got shape {number.shape}")
    return number


def _lengths(op: str, name: str, value: Any, num_seqs: int) -> jax.Array:
    """(num_seqs,) int32; not negative where that is known."""
    lengths = _int32(op, name, value, f"integers of shape ({num_seqs},)")
    if lengths.shape != (num_seqs,):
        raise ShapeError(
            f"{op}: argument '{name}': expected integers of shape ({num_seqs},), got {lengths.dtype} of "
            f"shape {lengths.shape}"
        )
    if known(lengths) and (np.asarray(lengths) < 0).any():
        raise ShapeError(
            f"{op}: argument '{name}': expected lengths >= 0, got {np.asarray(lengths).tolist()}"
        )
    return lengths


def _int32(op: str, name: str, value: Any, expected: str) -> jax.Array:
    # JAX would wrap NumPy's int64 to int32 without a word.
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ShapeError(
            f"{op}: argument '{name}': expected {expected}, got {array.dtype} of shape {array.shape}"
        )
    if isinstance(array, np.ndarray) and (array.astype(np.int32) != array).any():
        raise ShapeError(f"{op}: argument '{name}': expected {expected} in int32, got {array.tolist()}")
    return jnp.asarray(array).astype(jnp.int32)


def _shortage(needed: jax.Array, table: PageTable) -> int:
    held = jnp.sum(table.pages < table.num_pages, axis=1, dtype=jnp.int32)
    return int(jnp.sum(jnp.maximum(needed - held, 0)))


def _check_lengths(table: PageTable, before: np.ndarray, new: np.ndarray, num_tokens: int) -> None:
    too_long = np.flatnonzero(before + new > table.capacity)
    if too_long.size:
        i = int(too_long[0])
        raise ShapeError(
            f"AttentionMetadata.extend: sequence {i} would hold {int(before[i] + new[i])} tokens, the page "
            f"table has room for {table.capacity} ({table.max_pages} pages of {table.page_size})"
        )
    if int(new.sum()) > num_tokens:
        raise ShapeError(
            f"AttentionMetadata.extend: argument 'num_tokens': expected at least sum(num_new) = "
            f"{int(new.sum())}, got {num_tokens}"
        )
