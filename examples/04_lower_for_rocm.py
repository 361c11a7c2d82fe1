"""Lowers a decode step for AMD GPUs from a host without one. Usage: python examples/04_lower_for_rocm.py MODEL

Ops whose ROCm kernel is not built lower to their pure-JAX reference, with a warning for each.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import mla_jax

config = mla_jax.ModelConfig.from_file(Path(sys.argv[1]) / "config.json")
model = mla_jax.freeze(mla_jax.MLAForCausalLM.abstract(config))  # shapes only, no weights are read

cache = jax.eval_shape(lambda: mla_jax.init_cache(config, num_tokens=1024, page_size=64))
table = jax.eval_shape(
    lambda: mla_jax.PageTable.empty(mla_jax.init_cache(config, num_tokens=1024, page_size=64), 4, 256)
)
lengths = jax.ShapeDtypeStruct((4,), jnp.int32)


def step(model, tokens, cache, table, seq_lens):
    meta = mla_jax.AttentionMetadata.extend(table, seq_lens, jnp.ones_like(seq_lens), num_tokens=4)
    return mla_jax.decode_step(model, tokens, cache, meta)


traced = jax.jit(step, donate_argnames=("cache",)).trace(model, lengths, cache, table, lengths)
lowered = traced.lower(lowering_platforms=("rocm",))
text = lowered.as_text()
print(
    f"lowered for rocm: {len(text.splitlines())} lines of StableHLO, {text.count('custom_call')} custom calls"
)
