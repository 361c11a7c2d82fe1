"""Every op's native CPU kernel against its plain-JAX form, in one run: ratios, not absolute times, count.

"plain" is what a JAX user would write (einsum over gathered pages, dense dots), not this library's
ragged reference where that does more. Shapes are DeepSeek-V2-Lite's: hidden 2048, 16 heads, latent
512 + 64, 64 experts of 1408, top 6. Usage: python benchmarks/cpu_ops.py [--dtype float32|bfloat16]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.absorb import absorb
from custom_calls.expert_mlp import expert_mlp
from custom_calls.flatten_quantize import flatten_quantize
from custom_calls.linear import linear
from custom_calls.mla_attention import mla_attention
from custom_calls.mla_attention_expanded import mla_attention_expanded
from custom_calls.rmsnorm import rmsnorm
from custom_calls.rmsnorm_quantize import rmsnorm_quantize
from custom_calls.rope_append_latent import rope_append_latent

HIDDEN, HEADS, RANK, ROPE, NOPE, V = 2048, 16, 512, 64, 128, 128
EXPERTS, WIDTH, TOP_K = 64, 1408, 6
PAGE = 64


def plain_fp8(v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows of float32 to e4m3fn in groups of 128, as one would write it in jnp."""
    groups = v.reshape(v.shape[0], v.shape[1] // 128, 128)
    scale = jnp.maximum(jnp.max(jnp.abs(groups), axis=-1), 1e-10) / 448
    codes = jnp.clip(groups / scale[..., None], -448, 448).astype(jnp.float8_e4m3fn)
    return codes.reshape(v.shape), scale


def plain_mxfp4(v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows of float32 to MXFP4, as one would write it in jnp."""
    groups = v.reshape(v.shape[0], v.shape[1] // 32, 32)
    exponent = jnp.floor(jnp.log2(jnp.max(jnp.abs(groups), axis=-1) / 1.75)) - 1
    y = jnp.abs(groups) * jnp.exp2(-exponent)[..., None]
    code = sum((y > limit).astype(jnp.uint8) for limit in (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0))
    code = (code | jnp.where(groups < 0, jnp.uint8(8), jnp.uint8(0))).reshape(v.shape)
    return code[:, ::2] | (code[:, 1::2] << 4), (exponent + 127).astype(jnp.uint8)


GROUPED: dict[str, tuple[int, Callable[[jax.Array], Any]]] = {
    "fp8": (128, plain_fp8),
    "mxfp4": (32, plain_mxfp4),
}


def interleaved_ms(calls: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Median milliseconds of each call; the calls take turns, so that the machine's moods hit all alike."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        jax.block_until_ready(call())
    for _ in range(rounds):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            own.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(own) for own in times]


class Bench:
    """Prints one row a case."""

    def __init__(self, dtype: str, rounds: int) -> None:
        self.dtype = jnp.dtype(dtype)
        self.rounds = rounds
        self.generator = np.random.default_rng(0)

    def array(self, *shape: int) -> jax.Array:
        values = self.generator.standard_normal(shape, np.float32) / np.sqrt(shape[-1])
        return jnp.asarray(values).astype(self.dtype)

    def row(self, name: str, native: Callable[..., Any], plain: Callable[..., Any], *args: Any) -> None:
        ours, theirs = jax.jit(native), jax.jit(plain)
        fast, slow = interleaved_ms([lambda: ours(*args), lambda: theirs(*args)], self.rounds)
        print(f"{name:<46} native {fast:9.3f} ms   plain {slow:9.3f} ms   {slow / fast:6.2f} x", flush=True)

    def linear(self, tokens: int, out: int) -> None:
        x, w = self.array(tokens, HIDDEN), self.array(out, HIDDEN)

        def plain(x: jax.Array, w: jax.Array) -> jax.Array:
            y = jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
            return y.astype(x.dtype)

        self.row(
            f"linear {out}x{HIDDEN}, {tokens} tokens",
            lambda x, w: linear(x, w, kernels="native"),
            plain,
            x,
            w,
        )

    def rmsnorm(self, tokens: int) -> None:
        x, w = self.array(tokens, HIDDEN), self.array(HIDDEN)

        def plain(x: jax.Array, w: jax.Array) -> jax.Array:
            v = x.astype(jnp.float32)
            scale = jax.lax.rsqrt(jnp.mean(v * v, -1, keepdims=True) + 1e-6)
            return (v * scale * w.astype(jnp.float32)).astype(x.dtype)

        self.row(
            f"rmsnorm {HIDDEN}, {tokens} tokens",
            lambda x, w: rmsnorm(x, w, eps=1e-6, kernels="native"),
            plain,
            x,
            w,
        )

    def flatten_quantize(self, tokens: int, heads: int, format: Any) -> None:
        x = self.array(tokens, heads, V)
        group, quantise = GROUPED[format]

        def native(x: jax.Array) -> Any:
            return flatten_quantize(
                x, format=format, group_size=group, scale_layout="row_major", kernels="native"
            )

        def plain(x: jax.Array) -> Any:
            return quantise(x.reshape(tokens, heads * V).astype(jnp.float32))

        self.row(f"flatten_quantize {format}, {heads} heads, {tokens} tokens", native, plain, x)

    def rmsnorm_quantize(self, tokens: int, width: int, format: Any) -> None:
        x, w = self.array(tokens, width), self.array(width)
        group, quantise = GROUPED[format]

        def native(x: jax.Array, w: jax.Array) -> Any:
            return rmsnorm_quantize(
                x, w, eps=1e-6, format=format, group_size=group, scale_layout="row_major", kernels="native"
            )

        def plain(x: jax.Array, w: jax.Array) -> Any:
            v = x.astype(jnp.float32)
            scale = jax.lax.rsqrt(jnp.mean(v * v, -1, keepdims=True) + 1e-6)
            return quantise(v * scale * w.astype(jnp.float32))

        self.row(f"rmsnorm_quantize {format} {width}, {tokens} tokens", native, plain, x, w)

    def absorb(self, tokens: int) -> None:
        x, w = self.array(tokens, HEADS, NOPE + ROPE), self.array(HEADS, NOPE + V, RANK)

        def native(x: jax.Array, w: jax.Array) -> jax.Array:
            return absorb(x, w, contract="rows", row_offset=0, rows=NOPE, kernels="native")

        def plain(x: jax.Array, w: jax.Array) -> jax.Array:
            return jnp.einsum("thd,hdr->thr", x[:, :, :NOPE], w[:, :NOPE])

        self.row(f"absorb, queries, {tokens} tokens", native, plain, x, w)
        latent = self.array(tokens, HEADS, RANK)

        def native_out(x: jax.Array, w: jax.Array) -> jax.Array:
            return absorb(x, w, contract="columns", row_offset=NOPE, rows=V, kernels="native")

        def plain_out(x: jax.Array, w: jax.Array) -> jax.Array:
            return jnp.einsum("thr,hvr->thv", x, w[:, NOPE:])

        self.row(f"absorb, output, {tokens} tokens", native_out, plain_out, latent, w)

    def experts(self, tokens: int) -> None:
        x = self.array(tokens, HIDDEN)
        gate_up, down = self.array(EXPERTS, 2 * WIDTH, HIDDEN), self.array(EXPERTS, HIDDEN, WIDTH)
        ids = np.stack([self.generator.permutation(EXPERTS)[:TOP_K] for _ in range(tokens)]).astype(np.int32)
        weights = jnp.full((tokens, TOP_K), 1 / TOP_K, jnp.float32)

        def native(*a: jax.Array) -> jax.Array:
            return expert_mlp(*a, kernels="native")

        def plain(*a: jax.Array) -> jax.Array:
            return expert_mlp(*a, kernels="reference")

        self.row(f"expert_mlp, {tokens} tokens", native, plain, x, gate_up, down, jnp.asarray(ids), weights)

    def append(self, tokens: int) -> None:
        q, kv_a = self.array(tokens, HEADS, NOPE + ROPE), self.array(tokens, RANK + ROPE)
        pages = -(-tokens // PAGE) + 1
        state = {
            name: jnp.zeros((1, pages, PAGE, RANK + ROPE), self.dtype) for name in ("native", "reference")
        }
        table = self.array(4096, ROPE // 2).astype(jnp.float32)
        at = jnp.arange(tokens, dtype=jnp.int32)
        rest = (q, kv_a, self.array(RANK), table, table, at, at)

        def step(name: str) -> Callable[[], Any]:
            def run(kv: jax.Array, *a: jax.Array) -> Any:
                return rope_append_latent(
                    *a, kv, jnp.int32(0), jnp.ones(2, jnp.float32),
                    eps=1e-6, layout="interleaved", q_offset=NOPE, kernels=name,  # type: ignore[arg-type]
                )  # fmt: skip

            jitted = jax.jit(run, donate_argnums=(0,))

            def call() -> Any:
                out, state[name] = jitted(state[name], *rest)
                return out, state[name]

            return call

        fast, slow = interleaved_ms([step("native"), step("reference")], self.rounds)
        name = f"rope_append_latent, {tokens} tokens"
        print(f"{name:<46} native {fast:9.3f} ms   plain {slow:9.3f} ms   {slow / fast:6.2f} x", flush=True)

    def attention(self, heads: int, keys: int) -> None:
        q, q_rope = self.array(1, heads, RANK), self.array(1, heads, ROPE)
        kv = self.array(1, keys // PAGE, PAGE, RANK + ROPE)
        pages = jnp.arange(keys // PAGE, dtype=jnp.int32)[None]
        lens = jnp.array([keys], jnp.int32)

        def native(q: jax.Array, q_rope: jax.Array, kv: jax.Array) -> Any:
            return mla_attention(
                q, q_rope, kv, jnp.int32(0), jnp.ones(2, jnp.float32), pages, jnp.array([0, 1], jnp.int32), lens,
                softmax_scale=0.1, kernels="native",
            )  # fmt: skip

        def plain(q: jax.Array, q_rope: jax.Array, kv: jax.Array) -> jax.Array:
            rows = kv[0][pages[0]].reshape(keys, RANK + ROPE)
            query = jnp.concatenate([q, q_rope], -1)[0]
            score = jnp.einsum("hw,kw->hk", query, rows, preferred_element_type=jnp.float32) * 0.1
            weight = jax.nn.softmax(score, -1).astype(rows.dtype)
            return jnp.einsum("hk,kr->hr", weight, rows[:, :RANK], preferred_element_type=jnp.float32)

        self.row(f"mla_attention decode, {heads} heads, {keys} keys", native, plain, q, q_rope, kv)

    def expanded(self, tokens: int) -> None:
        q, q_rope = self.array(tokens, HEADS, NOPE + ROPE), self.array(tokens, HEADS, ROPE)
        kv, rows = self.array(tokens, HEADS * (NOPE + V)), self.array(tokens, RANK + ROPE)
        bounds = jnp.array([0, tokens], jnp.int32)

        def native(*a: jax.Array) -> Any:
            return mla_attention_expanded(*a, bounds, nope=NOPE, v=V, softmax_scale=0.07, kernels="native")

        def plain(q: jax.Array, q_rope: jax.Array, kv: jax.Array, rows: jax.Array) -> jax.Array:
            both = kv.reshape(tokens, HEADS, NOPE + V)
            k_rope = jnp.broadcast_to(rows[:, None, RANK:], (tokens, HEADS, ROPE))
            key = jnp.concatenate([both[..., :NOPE], k_rope], -1)
            query = jnp.concatenate([q[..., :NOPE], q_rope], -1)
            score = jnp.einsum("thd,khd->htk", query, key).astype(jnp.float32) * 0.07
            score = jnp.where(jnp.tril(jnp.ones((tokens, tokens), bool)), score, -jnp.inf)
            return jnp.einsum("htk,khv->thv", jax.nn.softmax(score, -1).astype(q.dtype), both[..., NOPE:])

        self.row(f"mla_attention_expanded, {tokens} tokens", native, plain, q, q_rope, kv, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    bench = Bench(options.dtype, options.rounds)
    print(f"{options.dtype}, {len(jax.devices())} device, median of {options.rounds} interleaved rounds")
    for out in (2048, 10944):
        for tokens in (1, 4, 16, 64, 128, 512):
            bench.linear(tokens, out)
    for tokens in (1, 64, 512):
        bench.rmsnorm(tokens)
        bench.absorb(tokens)
        bench.append(tokens)
    for format in GROUPED:
        for tokens in (1, 4, 64, 512):
            for heads in (16, 128):
                bench.flatten_quantize(tokens, heads, format)
            for width in (512, 1536):
                bench.rmsnorm_quantize(tokens, width, format)
    for tokens in (1, 8, 128):
        bench.experts(tokens)
    for heads, keys in ((16, 512), (16, 4096), (128, 4096)):
        bench.attention(heads, keys)
    for tokens in (128, 1024):
        bench.expanded(tokens)


if __name__ == "__main__":
    main()
