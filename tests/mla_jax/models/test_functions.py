"""`forward`, `prefill` and `decode_step`: every way of feeding the same tokens gives the same logits."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mla_jax.cache import init_cache
from mla_jax.errors import LayoutError, ShapeError
from mla_jax.layers import attention
from mla_jax.models import MLAForCausalLM, decode_step, forward, freeze, prefill
from mla_jax.paging import AttentionMetadata, PageTable, advance

ROWS = 14
"""Static rows of every chunk: one compilation serves every schedule, the rest is padding."""
LENGTHS = (13, 1, 9)
BOUND = 2e-5

run_forward = jax.jit(forward)
run_decode = jax.jit(decode_step)
run_advance = jax.jit(advance)
run_extend = jax.jit(partial(AttentionMetadata.extend, num_tokens=14))


@jax.jit
def run_chunk(model, tokens, cache, table, held, new):
    meta = AttentionMetadata.extend(table, held, new, num_tokens=ROWS)
    return prefill(model, tokens, cache, meta)


def ints(*values):
    return jnp.array(values, jnp.int32)


def pool(config, num_tokens=96, page_size=4, dtype="auto"):
    """NaN everywhere, so that a row that is read before it is written shows."""
    cache = init_cache(config, num_tokens=num_tokens, page_size=page_size, dtype=dtype)
    return cache.with_kv(jnp.full(cache.kv.shape, jnp.nan, jnp.float32).astype(cache.kv.dtype))


def sequences(config, rng, lengths=LENGTHS):
    return [rng.integers(0, config.vocab_size, n).astype(np.int32) for n in lengths]


def all_logits(model, prompts, padding=0):
    """By `forward`: three rows of 17 tokens whatever is asked, so that it is compiled once."""
    tokens = np.full((3, 17), padding, np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)] = prompt
    return np.asarray(run_forward(model, tokens))


def last_logits(model, prompts):
    logits = all_logits(model, prompts)
    return np.stack([logits[i, len(prompt) - 1] for i, prompt in enumerate(prompts)])


def feed(model, prompts, chunks, cache, table, run=run_chunk):
    """Runs the chunks; returns every sequence's logits after its last token, and the pool."""
    held, logits = [0] * len(prompts), [None] * len(prompts)
    for new in chunks:
        parts = [prompt[at : at + n] for prompt, at, n in zip(prompts, held, new, strict=True)]
        tokens = np.full(ROWS, 10**6, np.int32)  # padding: no token of any vocabulary
        flat = np.concatenate(parts)
        tokens[: len(flat)] = flat
        out, cache = run(model, tokens, cache, table, ints(*held), ints(*new))
        for i, n in enumerate(new):
            held[i] += n
            if n:
                logits[i] = np.asarray(out[i])
            else:
                assert not np.asarray(out[i]).any()
    assert held == [len(prompt) for prompt in prompts]
    return np.stack(logits), cache


SCHEDULES = {
    "one_by_one": [(13, 0, 0), (0, 1, 0), (0, 0, 9)],
    "mixed_prefill_and_decode": [(6, 0, 7), (4, 1, 1), (1, 0, 1), (2, 0, 0)],
    "page_boundaries": [(4, 1, 8), (4, 0, 1), (5, 0, 0)],
    "token_by_token": [(1, int(i == 5), int(i < 9)) for i in range(13)],
    "idle_steps": [(0, 0, 9), (0, 0, 0), (12, 1, 0), (1, 0, 0)],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.bug("vllm-project/vllm#26042", "test")
@pytest.mark.bug("ROCm/aiter#2720", "test")
def test_any_chunking_is_the_whole_prompt(model, config, rng, schedule):
    prompts = sequences(config, rng)
    cache = pool(config)
    logits, _ = feed(model, prompts, SCHEDULES[schedule], cache, PageTable.allocate(cache, 3, 16))
    np.testing.assert_allclose(logits, last_logits(model, prompts), rtol=0, atol=BOUND)


def test_random_chunking_on_shuffled_pages(model, config, rng):
    """Pages in any order, pools of odd page sizes: the table is the only thing that knows."""
    prompts = sequences(config, rng)
    cache = pool(config)
    table = PageTable.allocate(cache, 3, 16)
    shuffled = rng.permutation(cache.num_pages).astype(np.int32)
    table = dataclasses.replace(table, pages=jnp.asarray(shuffled)[table.pages])
    expected = last_logits(model, prompts)
    for _ in range(3):
        left, chunks = list(LENGTHS), []
        while sum(left):
            new = [int(rng.integers(0, min(n, 4) + 1)) for n in left]
            chunks.append(tuple(new))
            left = [n - k for n, k in zip(left, new, strict=True)]
        logits, _ = feed(model, prompts, chunks, cache, table)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=BOUND)


def test_expanded_model_is_the_absorbed_one(model, config, rng, monkeypatch):
    """Chunks this small attend absorbed; here every layer is made to expand, with and without cached tokens."""
    prompts = sequences(config, rng)
    cache = pool(config)
    table = PageTable.allocate(cache, 3, 16)
    assert not attention.expanded_is_cheaper(config, ROWS // 3)
    chunks = SCHEDULES["mixed_prefill_and_decode"]
    absorbed, absorbed_cache = feed(model, prompts, chunks, cache, table)
    monkeypatch.setattr(attention, "expanded_is_cheaper", lambda *_: True)
    expand = jax.jit(lambda *step: run_chunk.__wrapped__(*step))  # a new function: jit would find the old one
    expanded, expanded_cache = feed(model, prompts, chunks, cache, table, expand)
    np.testing.assert_allclose(expanded, absorbed, rtol=0, atol=BOUND)
    np.testing.assert_allclose(expanded_cache.kv, absorbed_cache.kv, rtol=0, atol=BOUND)
    assert (expanded != absorbed).any()  # otherwise it was the same form twice


def test_batches_of_forward_are_independent(model, config, rng):
    prompts = sequences(config, rng, (17, 17, 17))
    together = all_logits(model, prompts)
    for i, prompt in enumerate(prompts):
        np.testing.assert_allclose(run_forward(model, prompt[None])[0], together[i], rtol=0, atol=BOUND)


def test_decode_of_one_is_decode_of_three(native_model, config, rng):
    """The same pool, rows of the same table: bitwise the same for the native kernels, and only they promise it."""
    prompts = sequences(config, rng)
    cache = pool(config)
    table = PageTable.allocate(cache, 3, 16)
    _, cache = feed(native_model, prompts, SCHEDULES["page_boundaries"], cache, table)
    meta = AttentionMetadata.extend(table, list(LENGTHS), [0, 0, 0], num_tokens=3)
    tokens = ints(3, 1, 36)
    together, after = run_decode(native_model, tokens, cache, advance(meta))
    for i in range(3):
        own = dataclasses.replace(table, pages=table.pages[i : i + 1])
        alone_meta = advance(AttentionMetadata.extend(own, [LENGTHS[i]], [0], num_tokens=1))
        alone, alone_after = run_decode(native_model, tokens[i : i + 1], cache, alone_meta)
        np.testing.assert_array_equal(alone[0], together[i])
        slot = alone_meta.slot_mapping.slots[0]
        rows = [pool.kv.reshape(2, -1, 22)[:, slot] for pool in (alone_after, after)]
        np.testing.assert_array_equal(*rows)


@pytest.mark.bug("vllm-project/vllm#37682", "test")
def test_inactive_and_empty_rows_do_not_disturb_the_others(model, config, rng):
    prompts = sequences(config, rng, (6, 3, 0))
    cache = pool(config)
    table = PageTable.allocate(cache, 3, 16)
    tokens = np.zeros(ROWS, np.int32)
    tokens[:9] = np.concatenate(prompts)
    _, cache = run_chunk(model, tokens, cache, table, ints(0, 0, 0), ints(6, 3, 0))
    meta = AttentionMetadata.extend(table, [6, 3, 0], [0, 0, 0], num_tokens=3)
    clean, _ = run_decode(model, ints(1, 2, 3), cache, advance(meta))
    # The tokens of inactive rows are nonsense.
    logits, after = run_decode(
        model, ints(1, -7, 10**6), cache, advance(meta, jnp.array([True, False, False]))
    )
    np.testing.assert_allclose(logits[0], clean[0], rtol=0, atol=BOUND)
    np.testing.assert_allclose(
        clean[1], last_logits(model, [np.append(prompts[1], np.int32(2))])[0], rtol=0, atol=BOUND
    )
    written = np.isfinite(np.asarray(after.kv)) & ~np.isfinite(np.asarray(cache.kv))
    assert written.any(axis=(0, 3)).sum() == 1  # one token slot


# Cache precision ---------------------------------------------------------------------------------------


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-10), ("bfloat16", 2e-4), ("fp8", 2e-2)])
def test_low_precision_caches(model, config, rng, dtype, bound):
    """1 - cosine of each sequence's logits after two chunks; measured up to 3e-5 for bfloat16 and 4e-3 for fp8."""
    prompts = sequences(config, rng)
    cache = pool(config, dtype=dtype)
    logits, after = feed(
        model, prompts, SCHEDULES["page_boundaries"], cache, PageTable.allocate(cache, 3, 16)
    )
    assert after.kv.dtype == cache.kv.dtype
    assert np.isfinite(logits).all()
    distance = 1 - cosine(logits, last_logits(model, prompts))
    assert distance.max() < bound
    if dtype != "float32":
        assert distance.max() > 1e-9  # otherwise the rows were not rounded at all


# Forks -------------------------------------------------------------------------------------------------


def test_forked_continuation_is_a_sequence_from_scratch(model, config, rng):
    """Shared pages and a copied tail: what either does later never shows in the other."""
    prompt, ours, theirs = sequences(config, rng, (6, 5, 5))
    cache = pool(config)
    table = PageTable.empty(cache, 3, 16).append(ints(0, 0, 0), ints(6, 0, 0))
    tokens = np.zeros(ROWS, np.int32)
    tokens[:6] = prompt
    _, cache = run_chunk(model, tokens, cache, table, ints(0, 0, 0), ints(6, 0, 0))
    table, cache = jax.jit(PageTable.fork)(table, cache, 0, 2, 6)
    np.testing.assert_array_equal(table.ref_counts[:4], [2, 1, 1, 0])
    meta = AttentionMetadata.extend(table, [6, 0, 6], [0, 0, 0], num_tokens=3)
    for mine, other in zip(ours, theirs, strict=True):
        meta = advance(meta)
        logits, cache = run_decode(model, ints(mine, 0, other), cache, meta)
    for row, continuation in ((0, ours), (2, theirs)):
        whole = np.concatenate([prompt, continuation])
        np.testing.assert_allclose(logits[row], last_logits(model, [whole])[0], rtol=0, atol=BOUND)


# What has no answer is NaN, and nobody else's -----------------------------------------------------------


def test_out_of_vocabulary_tokens_are_nan(model, config, rng):
    good = sequences(config, rng, (17,))[0]
    bad = [np.where(np.arange(17) == 2, token, good).astype(np.int32) for token in (config.vocab_size, -1)]
    logits = all_logits(model, [good, *bad])
    clean = all_logits(model, [good, good, good])
    assert np.isnan(logits[1:, 2:]).all()
    np.testing.assert_allclose(logits[0], clean[0], rtol=0, atol=BOUND)
    np.testing.assert_allclose(logits[1:, :2], clean[1:, :2], rtol=0, atol=BOUND)


def test_right_padding_changes_nothing_before_it(model, config, rng):
    prompts = sequences(config, rng)
    clean = all_logits(model, prompts)
    for padding in (config.vocab_size - 1, -1, 2**31 - 1):
        padded = all_logits(model, prompts, padding)
        for i, prompt in enumerate(prompts):
            np.testing.assert_array_equal(padded[i, : len(prompt)], clean[i, : len(prompt)])


def test_one_request_of_a_prefill_with_a_bad_token_does_not_spoil_the_others(model, config, rng):
    prompts = sequences(config, rng, (5, 3, 4))
    cache = pool(config)
    table = PageTable.allocate(cache, 3, 16)
    tokens = np.zeros(ROWS, np.int32)
    tokens[:12] = np.concatenate(prompts)
    clean, _ = run_chunk(model, tokens, cache, table, ints(0, 0, 0), ints(5, 3, 4))
    tokens[6] = -1
    logits, cache = run_chunk(model, tokens, cache, table, ints(0, 0, 0), ints(5, 3, 4))
    assert np.isnan(np.asarray(logits[1])).all()
    np.testing.assert_allclose(logits[ints(0, 2)], clean[ints(0, 2)], rtol=0, atol=BOUND)
    meta = advance(AttentionMetadata.extend(table, [5, 3, 4], [0, 0, 0], num_tokens=3))
    after, _ = run_decode(model, ints(1, 2, 3), cache, meta)
    assert np.isfinite(np.asarray(after)[[0, 2]]).all()
    assert np.isnan(np.asarray(after)[1]).all()


def test_a_pool_that_ran_dry_inside_jit_gives_nan_for_that_sequence_only(model, config, rng):
    """Sequences 0 and 1 want a second page, and one page is left."""
    cache = pool(config)
    table = PageTable.empty(cache, 3, 16).append(ints(0, 0, 0), ints(4, 4, 0))
    prompts = sequences(config, rng, (4, 4))
    tokens = np.zeros(ROWS, np.int32)
    tokens[:8] = np.concatenate(prompts)
    _, cache = run_chunk(model, tokens, cache, table, ints(0, 0, 0), ints(4, 4, 0))
    dry = dataclasses.replace(table, ref_counts=jnp.ones_like(table.ref_counts).at[7].set(0))
    meta = AttentionMetadata.extend(dry, [4, 4, 0], [0, 0, 0], num_tokens=3)
    logits, _ = run_decode(model, ints(5, 6, 0), cache, jax.jit(advance)(meta))
    whole = np.append(prompts[0], np.int32(5))
    np.testing.assert_allclose(logits[0], last_logits(model, [whole])[0], rtol=0, atol=BOUND)
    assert np.isnan(np.asarray(logits[1])).all()


def test_a_sequence_that_outgrows_its_row_inside_jit_is_nan(model, config, rng):
    """Free pages do not help: the row of the table is full, and its newest token is stored nowhere."""
    cache = pool(config)
    table = PageTable.allocate(cache, 3, 16)
    prompts = sequences(config, rng, (16, 3, 1))
    _, cache = feed(model, prompts, [(10, 3, 1), (6, 0, 0)], cache, table)
    meta = AttentionMetadata.extend(table, [16, 3, 1], [0, 0, 0], num_tokens=3)
    logits, _ = run_decode(model, ints(5, 6, 7), cache, jax.jit(advance)(meta))
    assert np.isnan(np.asarray(logits[0])).all()
    assert np.isfinite(np.asarray(logits[1:])).all()
    again, _ = run_chunk(model, np.zeros(ROWS, np.int32), cache, table, ints(12, 3, 1), ints(5, 1, 1))
    assert np.isnan(np.asarray(again[0])).all()
    assert np.isfinite(np.asarray(again[1:])).all()


def test_a_sequence_beyond_the_context_is_nan(native_model, config):
    """A table's last page may reach past the context: those positions have no angle, or need the indexer."""
    short = dataclasses.replace(native_model, config=dataclasses.replace(config, index_topk=10))
    cache = pool(config)
    cache = cache.with_kv(jnp.zeros_like(cache.kv))
    table = PageTable.allocate(cache, 3, 12)
    for held, is_nan in ((9, False), (10, True)):
        meta = AttentionMetadata.extend(table, [held, 4, 0], [0, 0, 0], num_tokens=3)
        logits, _ = run_decode(short, ints(1, 2, 3), cache, advance(meta))
        assert np.isnan(np.asarray(logits[0])).all() == is_nan
        assert np.isfinite(np.asarray(logits[1])).all()


@pytest.mark.parametrize("step", [prefill, decode_step])
def test_a_sequence_beyond_the_context_is_refused_where_lengths_are_known(native_model, config, step):
    short = dataclasses.replace(
        native_model, config=dataclasses.replace(config, model_type="deepseek_v32", index_topk=10)
    )
    cache = pool(config)
    table = PageTable.allocate(cache, 3, 12)
    for held, fits in ((9, True), (10, False)):
        meta = advance(AttentionMetadata.extend(table, [held, 4, 0], [0, 0, 0], num_tokens=3))
        run = partial(step, short, ints(1, 2, 3), cache, meta)
        if fits:
            jax.eval_shape(run)
            continue
        sentence = f"{step.__name__}: 11 tokens exceed the model's context of 10: deepseek_v32 attends to its"
        for traced in (run, lambda run=run: jax.eval_shape(run)):
            with pytest.raises(ShapeError, match=sentence):
                traced()


@pytest.mark.parametrize(
    ("held", "new", "lost"),
    [
        ((5, 3, 0), (9, 3, 4), [False, False, True]),  # 16 rows, of which 14 were planned
        ((5, 3, 0), (9, 6, 1), [False, True, True]),
        ((6, 3, 0), (2**30, 1, 1), [True, True, True]),
        ((-1, 3, 0), (3, 1, 1), [True, False, False]),
        ((6, 3, 1), (1, -2, 1), [False, True, False]),
        ((6, -5, 1), (1, 5, 0), [False, True, False]),
        ((6, 3, 2**31 - 1), (1, 1, 1), [False, False, True]),
    ],
)
def test_sequences_that_the_rows_do_not_hold_are_nan_now_and_later(model, config, rng, held, new, lost):
    """T is static: inside jit nothing can refuse more new tokens than it, or lengths that are none."""
    cache = pool(config)
    cache = cache.with_kv(jnp.asarray(rng.standard_normal(cache.kv.shape), jnp.float32))
    table = PageTable.allocate(cache, 3, 16)
    logits, after = run_chunk(model, np.ones(ROWS, np.int32), cache, table, ints(*held), ints(*new))
    empty = [n == 0 for n in new]
    assert np.isnan(np.asarray(logits)).all(axis=1).tolist() == lost
    finite = np.isfinite(np.asarray(logits)).all(axis=1)
    assert finite.tolist() == [not one for one in lost]
    assert not np.asarray(logits)[np.array(empty) & finite].any()
    meta = run_extend(table, ints(*held), ints(*new))
    for _ in range(2):
        meta = run_advance(meta, jnp.ones(3, bool))
        logits, after = run_decode(model, ints(1, 2, 3), after, meta)
        assert np.isnan(np.asarray(logits)).all(axis=1).tolist() == lost


def test_more_tokens_than_no_rows_at_all_are_nan(native_model, config):
    cache = pool(config)
    table = PageTable.allocate(cache, 2, 8)

    @jax.jit
    def step(new):
        meta = AttentionMetadata.extend(table, ints(0, 0), new, num_tokens=0)
        return prefill(native_model, jnp.zeros(0, jnp.int32), cache, meta)[0]

    assert np.isnan(np.asarray(step(ints(0, 1)))).all(axis=1).tolist() == [False, True]


@pytest.mark.parametrize(
    ("new", "own"),
    [
        ((3, 0, 0), [False, False, False]),
        ((0, 1, 2), [False, False, False]),
        ((1, 0, 2), [True, False, False]),
        ((1, 1, 1), [True, True, True]),
        ((1, 1, 0), [True, True, False]),
        ((0, 0, 0), [False, False, False]),
    ],
)
def test_a_prefills_metadata_of_as_many_rows_as_sequences(model, config, rng, new, own):
    """Row i has to be sequence i's: refused where it can be seen, NaN inside jit, right where it is."""
    cache = pool(config)
    table = PageTable.allocate(cache, 3, 16)
    prompts = sequences(config, rng, (5, 6, 4))
    tokens = np.zeros(ROWS, np.int32)
    tokens[:12] = np.concatenate([prompts[0][:4], prompts[1][:5], prompts[2][:3]])
    _, cache = run_chunk(model, tokens, cache, table, ints(0, 0, 0), ints(4, 5, 3))
    meta = AttentionMetadata.extend(table, [4, 5, 3], list(new), num_tokens=3)
    last = jnp.array([prompt[-1] for prompt in prompts])
    if not all(own):
        message = rf"decode_step: argument 'meta': expected one row for each of 3 sequences, got \[{new[0]}, "
        with pytest.raises(ShapeError, match=message + r".*call mla_jax.advance\(meta\) after a prefill"):
            decode_step(model, last, cache, meta)
    logits = np.asarray(run_decode(model, last, cache, meta)[0])
    assert np.isnan(logits).all(axis=1).tolist() == [not one for one in own]
    expected = last_logits(model, prompts)
    np.testing.assert_allclose(logits[own], expected[own], rtol=0, atol=BOUND)


def test_empty_batches(model, config):
    assert run_forward(model, np.zeros((0, 3), np.int32)).shape == (0, 3, config.vocab_size)
    assert run_forward(model, np.zeros((2, 0), np.int32)).shape == (2, 0, config.vocab_size)
    cache = pool(config)
    meta = AttentionMetadata.extend(PageTable.allocate(cache, 3, 16), [4, 0, 0], [0, 0, 0])
    logits, after = jax.jit(prefill)(model, np.zeros(0, np.int32), cache, meta)
    np.testing.assert_array_equal(logits, np.zeros((3, config.vocab_size)))
    np.testing.assert_array_equal(after.kv, cache.kv)


# Errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [prefill, decode_step])
def test_errors_name_argument_expected_and_got(native_model, config, step):
    cache = pool(config)
    table = PageTable.allocate(cache, 3, 16)
    meta = advance(AttentionMetadata.extend(table, [1, 1, 1], [0, 0, 0], num_tokens=3))
    good = {"model": native_model, "tokens": ints(1, 2, 3), "cache": cache, "meta": meta}
    name = step.__name__
    deeper = dataclasses.replace(
        config, num_hidden_layers=3, mlp_layer_types=("dense",) * 3, router=None, n_routed_experts=0
    )
    three_layers = init_cache(deeper, num_tokens=96, page_size=4)
    long = PageTable.empty(cache, 3, config.max_position_embeddings + 4)
    for change, error, message in (
        (
            {"model": {"params": 1}},
            LayoutError,
            "argument 'model': expected MLAForCausalLM or FrozenModel, got dict",
        ),
        (
            {"tokens": ints(1, 2)},
            ShapeError,
            rf"{name}: argument 'tokens': expected shape \(3,\) .* got \(2,\)",
        ),
        (
            {"tokens": ints(1, 2, 3)[None]},
            ShapeError,
            f"{name}: argument 'tokens': expected integers of shape",
        ),
        ({"tokens": jnp.ones(3)}, ShapeError, f"{name}: argument 'tokens': expected integers .* got float32"),
        ({"cache": cache.kv}, LayoutError, f"{name}: argument 'cache': expected LatentCache, got"),
        ({"cache": three_layers}, ShapeError, f"{name}: argument 'cache': expected 2 layers, got 3"),
        (
            {"meta": AttentionMetadata.dense(3, 1)},
            LayoutError,
            f"{name}: argument 'meta': expected AttentionMetadata with",
        ),
        (
            {"meta": dataclasses.replace(meta, page_table=long)},
            ShapeError,
            f"{name}: argument 'meta': the page table lets a sequence grow to 100 tokens, the model's context is 96",
        ),
        ({"cache": pool(config, num_tokens=100)}, LayoutError, "SlotMapping was made for"),
    ):
        with pytest.raises(error, match=message):
            jax.eval_shape(partial(step, **{**good, **change}))
    jax.eval_shape(partial(step, **good))


def test_decode_with_a_prefills_metadata_says_what_to_call(native_model, config):
    cache = pool(config)
    meta = AttentionMetadata.extend(PageTable.allocate(cache, 2, 8), [0, 0], [3, 2])
    with pytest.raises(
        ShapeError, match=r"one row for each of 2 sequences, got 5 rows; call mla_jax.advance\(meta\)"
    ):
        decode_step(native_model, jnp.zeros(5, jnp.int32), cache, meta)


def test_forward_names_wrong_tokens_and_too_many_of_them(native_model, config):
    for wrong in (jnp.zeros(3, jnp.int32), jnp.zeros((1, 2, 3), jnp.int32), jnp.zeros((1, 3), jnp.float32)):
        with pytest.raises(
            ShapeError, match=r"forward: argument 'tokens': expected integers of shape \(B, S\)"
        ):
            forward(native_model, wrong)
    jax.eval_shape(partial(forward, native_model), jax.ShapeDtypeStruct((1, 96), jnp.int32))
    with pytest.raises(ShapeError, match="forward: 97 tokens exceed the model's context of 96"):
        jax.eval_shape(partial(forward, native_model), jax.ShapeDtypeStruct((1, 97), jnp.int32))


def test_sparse_attention_models_refuse_what_the_indexer_would_have_to_choose(config):
    v32 = dataclasses.replace(config, model_type="deepseek_v32", index_topk=32)
    model = freeze(MLAForCausalLM.abstract(v32, kernels="native"))
    jax.eval_shape(forward, model, jax.ShapeDtypeStruct((1, 32), jnp.int32))
    reason = r"context .* 32: deepseek_v32 attends to its index_topk = 32 best tokens only.*indexer"
    with pytest.raises(ShapeError, match=f"forward: 33 tokens exceed the model's {reason}"):
        jax.eval_shape(forward, model, jax.ShapeDtypeStruct((1, 33), jnp.int32))
    cache = pool(v32)
    for step in (prefill, decode_step):
        fits = advance(AttentionMetadata.extend(PageTable.allocate(cache, 1, 32), [1], [0], num_tokens=1))
        jax.eval_shape(step, model, ints(1), cache, fits)
        beyond = advance(AttentionMetadata.extend(PageTable.allocate(cache, 1, 33), [1], [0], num_tokens=1))
        with pytest.raises(ShapeError, match=reason):
            jax.eval_shape(step, model, ints(1), cache, beyond)


def test_callers_cache_stays_valid_without_donation(native_model, config):
    cache = pool(config)
    meta = AttentionMetadata.extend(PageTable.allocate(cache, 2, 8), [0, 0], [3, 2])
    _, after = jax.jit(prefill)(native_model, jnp.zeros(5, jnp.int32), cache, meta)
    assert np.isnan(np.asarray(cache.kv)).all()
    assert np.isfinite(np.asarray(after.kv)).any()
