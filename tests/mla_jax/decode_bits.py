"""Decode steps whose logits may depend on nothing but a row's own tokens, in every storage of the weights.

The model is wide enough for its kernels to share their work out. `python decode_bits.py` prints a JSON object: the
threads of XLA's pool, which are decided once a process, and digests of the logits.
"""

import dataclasses
import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.linear import INVARIANT_ROWS
from mla_jax.bench_weights import random_weights
from mla_jax.cache import LatentCache, init_cache
from mla_jax.models import FrozenModel, MLAForCausalLM, decode_step, freeze
from mla_jax.paging import AttentionMetadata, PageTable, advance
from mla_jax.parameters import ParamInfo, parameter_table, with_storage
from mla_jax.quant import MXFP4, Storage
from mla_jax.rope import RopeTable
from mla_jax.weight_layout import WeightLayout, in_weight_layout

sys.path.append(str(Path(__file__).parent))
from tiny_model import CONFIG as TINY

STORAGES = {
    "bfloat16": None,
    "mxfp4": MXFP4,
    "mxfp4_vnni": MXFP4,
    "fp8_block": Storage("fp8_block", (64, 32)),
    "int4_group": Storage("int4_group", (1, 32), "bfloat16"),
}
LAYOUTS: dict[str, WeightLayout] = {"mxfp4_vnni": "vnni"}
"""Of storages whose weights, but for kv_b_proj, are not held in rows."""

CONFIG = dataclasses.replace(
    TINY,
    dtype="bfloat16",
    vocab_size=515,
    hidden_size=256,
    num_attention_heads=4,
    q_lora_rank=96,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    intermediate_size=320,
    moe_intermediate_size=96,
    rope=dataclasses.replace(TINY.rope, dim=16),
    max_position_embeddings=1024,
)
SEQS, MAX_LEN, STEPS = 70, 768, 2
LENS = np.array([0, 1, 15, 16, 17, 63, 64, 511, 512, 640, *range(20, 140, 2)], np.int32)
"""Tokens that the sequences hold: at the edges of pages and past a split of the keys (512)."""

ROWS = min(SEQS, INVARIANT_ROWS)
"""The largest batch here in which a row is what it is alone."""

# What is compared is each kernel's own order of sums; XLA need not work on the rest.
FAST = {"xla_backend_optimization_level": 0}


@functools.cache
def model_of(storage: str) -> FrozenModel:
    """Random weights, all linear layers but the output head in this storage, on native kernels."""
    kind = STORAGES[storage]
    table = with_storage(
        parameter_table(CONFIG), lambda info: None if info.sources[0].name.startswith("lm_head") else kind
    )
    rope = RopeTable.from_config(CONFIG.rope, CONFIG.max_position_embeddings)
    params = jax.tree.map(
        lambda info, weight: in_weight_layout(weight, info, LAYOUTS.get(storage, "row_major")),
        table,
        random_weights(table, "bfloat16"),
        is_leaf=lambda node: isinstance(node, ParamInfo),
    )
    made = freeze(MLAForCausalLM(CONFIG, params, rope))
    return dataclasses.replace(made, kernels="native")


@functools.cache
def _rows() -> np.ndarray:
    """(layers, sequences, tokens, width): what the sequences hold."""
    shape = (CONFIG.num_hidden_layers, SEQS, MAX_LEN, CONFIG.kv_lora_rank + CONFIG.qk_rope_head_dim)
    return np.random.default_rng(5).standard_normal(shape, np.float32)


@functools.cache
def pool_of(page_size: int, dtype: str) -> tuple[LatentCache, PageTable]:
    """Every sequence's rows on pages in no order; nobody's slots, and those that nothing was stored in, are NaN."""
    pages_each = -(-(int(LENS.max()) + STEPS) // page_size)
    empty = init_cache(CONFIG, num_tokens=SEQS * pages_each * page_size, page_size=page_size, dtype=dtype)
    table = PageTable.empty(empty, SEQS, pages_each * page_size)
    order = np.random.default_rng(page_size).permutation(SEQS * pages_each).reshape(SEQS, pages_each)
    table = dataclasses.replace(table, pages=jnp.asarray(order, jnp.int32))
    flat = np.full((CONFIG.num_hidden_layers, empty.num_slots, _rows().shape[-1]), np.nan, np.float32)
    for sequence, held in enumerate(LENS):
        position = np.arange(held)
        slots = order[sequence, position // page_size] * page_size + position % page_size
        flat[:, slots] = _rows()[:, sequence, :held]
    return empty.with_kv(jnp.asarray(flat.reshape(empty.kv.shape), empty.kv.dtype)), table


@functools.partial(jax.jit, compiler_options=FAST)
def _decode(model: FrozenModel, tokens: jax.Array, cache: LatentCache, meta: AttentionMetadata) -> Any:
    meta = advance(meta)
    logits, cache = decode_step(model, tokens, cache, meta)
    return logits, cache, meta


def decode(model: FrozenModel, rows: Any, page_size: int, cache_dtype: str = "auto") -> np.ndarray:
    """(steps, rows, vocab): the logits of these sequences in one batch, each fed tokens of its own."""
    cache, table = pool_of(page_size, cache_dtype)
    rows = np.asarray(rows)
    table = dataclasses.replace(table, pages=table.pages[rows])
    none = np.zeros(len(rows), np.int32)
    meta = AttentionMetadata.extend(table, LENS[rows], none, num_tokens=len(rows))
    found = []
    for step in range(STEPS):
        tokens = (7 * rows + 11 * step) % CONFIG.vocab_size
        logits, cache, meta = _decode(model, tokens.astype(np.int32), cache, meta)
        found.append(np.asarray(logits))
    return np.stack(found)


def eigen_threads() -> int:
    """Threads of the pool that XLA gives to kernels, by the names that they have."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return sum("XLAEigen" in name for name in names)


def digests() -> dict[str, str]:
    """What `decode` says of every storage, for many rows and for one."""
    found = {}
    for storage in STORAGES:
        for rows in (range(ROWS), [9]):
            logits = decode(model_of(storage), rows, 16)
            assert np.isfinite(logits).all()
            found[f"{storage} {len(rows)}"] = hashlib.sha256(logits.tobytes()).hexdigest()
    return found


if __name__ == "__main__":
    print(json.dumps({"digests": digests(), "threads": eigen_threads()}))
