"""Bits of a decode step: any batch, page size and number of threads; and what chunks of a prefill may change."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import decode_bits
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_bits import CONFIG, FAST, LAYOUTS, ROWS, SEQS, STORAGES, decode, model_of

from mla_jax.cache import init_cache
from mla_jax.models import prefill
from mla_jax.paging import AttentionMetadata, PageTable

PAGE_SIZES = (1, 16, 64, 256)
BATCHES = {
    "empty": [0],
    "of a page": [3],
    "past a split": [9],
    "backwards": range(ROWS - 1, ROWS - 18, -1),
}
THREADS = (1, 2, 4)
PROMPT, CHUNK = 90, 30

# Weights, and what the pool holds.
KINDS = [*((storage, "auto") for storage in STORAGES), ("fp8_block", "fp8")]


def _exact(model):
    """The same weights, computed with in float32."""
    params = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, model.params
    )
    return dataclasses.replace(
        model, params=params, config=dataclasses.replace(model.config, dtype="float32")
    )


@pytest.mark.parametrize(("storage", "cache_dtype"), KINDS)
def test_any_batch(storage, cache_dtype):
    model = model_of(storage)
    among = decode(model, range(ROWS), 16, cache_dtype)
    assert np.isfinite(among).all()
    assert len({row.tobytes() for row in among[0]}) == ROWS
    for batch in BATCHES.values():
        np.testing.assert_array_equal(decode(model, batch, 16, cache_dtype), among[:, batch])


@pytest.mark.parametrize("storage", ["bfloat16", "mxfp4", "mxfp4_vnni"])
def test_batches_that_go_to_another_product(storage):
    """Past `INVARIANT_ROWS` rows products sum in another order. The bound: a row is nearer to itself in the smaller
    batch than that is to the same weights in float32, but for few rows in which a router's near tie goes another way.
    """
    model = model_of(storage)
    among, most = decode(model, range(ROWS), 16), decode(model, range(SEQS), 16)
    exact = decode(_exact(model), range(ROWS), 16)
    moved, own = (np.linalg.norm(other, axis=(0, 2)) for other in (most[:, :ROWS] - among, among - exact))
    assert np.isfinite(moved).all()
    assert np.count_nonzero(moved > own) <= ROWS // 16


@pytest.mark.parametrize(("storage", "cache_dtype"), KINDS)
def test_any_page_size(storage, cache_dtype):
    found = [decode(model_of(storage), range(ROWS), page_size, cache_dtype) for page_size in PAGE_SIZES]
    for logits in found[1:]:
        np.testing.assert_array_equal(logits, found[0])


def test_any_number_of_threads(tmp_path):
    found = {}
    for threads in THREADS:
        environment = os.environ | {
            "NPROC": str(threads),  # of XLA's pool, decided once a process
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        done = subprocess.run(
            [sys.executable, decode_bits.__file__], env=environment, cwd=tmp_path,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        said = json.loads(done.stdout)
        assert said["threads"] == threads
        found[threads] = said["digests"]
    # The two layouts of MXFP4 may agree.
    assert len(set(found[1].values())) >= 2 * (len(STORAGES) - len(LAYOUTS))
    for threads in THREADS:
        assert found[threads] == found[1]


@functools.partial(jax.jit, compiler_options=FAST)
def _prefill(model, tokens, cache, meta):
    return prefill(model, tokens, cache, meta)


def _logits_after(model, chunk):
    """The prompt's last logits, where it comes `chunk` tokens at a time."""
    cache = init_cache(model.config, num_tokens=PROMPT, page_size=16)
    table = PageTable.allocate(cache, 1, PROMPT)
    tokens = np.random.default_rng(2).integers(0, CONFIG.vocab_size, PROMPT, np.int32)
    for held in range(0, PROMPT, chunk):
        meta = AttentionMetadata.extend(table, [held], [chunk], num_tokens=chunk)
        logits, cache = _prefill(model, tokens[held : held + chunk], cache, meta)
    return np.asarray(logits[0], np.float64)


@pytest.mark.parametrize("storage", STORAGES)
def test_chunks_cost_less_than_the_rounding_of_bfloat16(storage):
    """The bound of a chunked prefill: nearer to the whole one than that is to the same weights in float32."""
    model = model_of(storage)
    whole = _logits_after(model, PROMPT)
    rounding = np.linalg.norm(whole - _logits_after(_exact(model), PROMPT))
    assert 0 < rounding < 0.1 * np.linalg.norm(whole)
    assert np.linalg.norm(_logits_after(model, CHUNK) - whole) <= rounding
