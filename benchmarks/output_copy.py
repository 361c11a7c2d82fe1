"""What a copy between the value half of `absorb` and o_proj would cost.

`absorb` writes (tokens, heads, v_head_dim), which o_proj reads as (tokens, heads * v_head_dim) without a copy. A
batched product that writes (heads, tokens, v_head_dim) leaves a transposition to somebody: here to XLA, in front
of the same o_proj. MXFP4 weights, bfloat16 activations; the two programs take turns in one run.

Usage: python benchmarks/output_copy.py
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from cpu_ops import interleaved_ms

from custom_calls.absorb import absorb
from custom_calls.linear import linear
from mla_jax.quant import MXFP4, random_tensor

RANK, NOPE, V_DIM = 512, 128, 128
ROUNDS = 51


def programs(
    heads: int, hidden: int
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """From attention's (T, heads, RANK) to (T, hidden): as it is, and with the copy."""
    keys = jax.random.split(jax.random.key(0))
    kv_b = random_tensor(MXFP4, (heads * (NOPE + V_DIM), RANK), keys[0], RANK**-0.5)
    o_proj = random_tensor(MXFP4, (hidden, heads * V_DIM), keys[1], (heads * V_DIM) ** -0.5)

    def values(x: jax.Array) -> jax.Array:
        return absorb(x, kv_b, contract="columns", row_offset=NOPE, rows=V_DIM)

    @jax.jit
    def direct(x: jax.Array) -> jax.Array:
        return linear(values(x).reshape(x.shape[0], -1), o_proj)

    @jax.jit
    def copied(x: jax.Array) -> jax.Array:
        # The bytes of (tokens, heads, dim) taken for (heads, tokens, dim): values differ, work does not.
        head_major = values(x).reshape(heads, x.shape[0], V_DIM)
        return linear(jnp.swapaxes(head_major, 0, 1).reshape(x.shape[0], -1), o_proj)

    return direct, copied


def main() -> None:
    """Prints one row a size."""
    print(f"value half of absorb, then o_proj, MXFP4; milliseconds, median of {ROUNDS} turns")
    for heads, hidden in ((16, 2048), (128, 7168)):
        direct, copied = programs(heads, hidden)
        for tokens in (1, 8, 64, 512):
            x = jax.random.normal(jax.random.key(1), (tokens, heads, RANK), jnp.bfloat16)
            fast, slow = interleaved_ms([partial(direct, x), partial(copied, x)], ROUNDS)
            print(
                f"{heads:4} heads, {tokens:4} tokens: {fast:8.3f}, with the copy {slow:8.3f}: "
                f"{1e3 * (slow - fast):7.1f} us for {2e-3 * tokens * heads * V_DIM:.0f} kB, "
                f"{100 * (slow / fast - 1):.1f} %",
                flush=True,
            )


if __name__ == "__main__":
    main()
