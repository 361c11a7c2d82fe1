"""An own decode loop over the pytrees: prefill, then 32 steps in one jit, all on the device.

Usage: python examples/02_decode_loop.py MODEL
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import mla_jax

model, config = mla_jax.load(sys.argv[1])
model = mla_jax.freeze(model)  # weights as a plain pytree: the cheapest thing to hand to jit

prompts = [np.array([5, 17, 300]), np.array([42, 8, 9, 10, 11])]
cache = mla_jax.init_cache(config, num_tokens=256, page_size=16)
table = mla_jax.PageTable.allocate(cache, num_seqs=2, max_len=64)
lengths = np.array([len(p) for p in prompts])
meta = mla_jax.AttentionMetadata.extend(table, np.zeros(2, np.int32), lengths)

prefill = jax.jit(mla_jax.prefill, donate_argnames="cache")
logits, cache = prefill(model, np.concatenate(prompts), cache=cache, meta=meta)


def generate(model, token, cache, meta):
    def step(carry, _):
        token, cache, meta = carry
        logits, cache = mla_jax.decode_step(model, token, cache, meta)
        token = mla_jax.sample(logits, jax.random.key(0), temperature=0.0)
        return (token, cache, mla_jax.advance(meta)), token

    (_, cache, _), tokens = jax.lax.scan(step, (token, cache, mla_jax.advance(meta)), length=32)
    return tokens, cache


first = jnp.argmax(logits, axis=-1).astype(jnp.int32)
tokens, cache = jax.jit(generate, donate_argnames="cache")(model, first, cache=cache, meta=meta)
print(np.concatenate([first[None], tokens]).T)
