"""Times the quantised products on this machine's GPU beside XLA's own bf16 GEMM, one JSON row a case.

    python benchmarks/gpu/quantized_products.py [--op NAME ...] [--repeats N]

A row: op, shape, us (a call), bytes (weights, activations and results, each once), flop, floor_us (the larger of
bytes / 4.3 TB/s and flop / 790 TFLOP/s: what an H200 reads and multiplies), share (floor_us / us), peer_us (the
same product of bf16 weights by XLA, in the same run) and error (largest difference from float32 in units of the
largest result). Calls are unrolled in one jit over weights that rotate, so that nothing stays in the second-level
cache; XLA records them as a command buffer. Times are medians.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.absorb import absorb
from custom_calls.expert_mlp import expert_mlp
from custom_calls.linear import linear
from custom_calls.quantized_tensor import QuantizedTensor, dequantize, shuffle

BYTES_A_SECOND = 4.3e12
FLOP_A_SECOND = 790e12
CACHE = 200 << 20
"""Bytes that the rotating weights exceed."""

BLOCKS: dict[str, tuple[int, int]] = {"mxfp4": (1, 32), "fp8_block": (128, 128), "fp8_channel": (1, 0)}
Call = Callable[[Any, Any], jax.Array]


def random_weight(key: jax.Array, shape: tuple[int, ...], container: str) -> QuantizedTensor:
    codes, scales = jax.random.split(key)
    *lead, n, k = shape
    if container == "mxfp4":
        data = jax.random.bits(codes, (*lead, n, k // 2), jnp.uint8)
        scale = jax.random.randint(scales, (*lead, n, k // 32), 118, 122).astype(jnp.uint8)
    else:
        data = jax.random.normal(codes, shape, jnp.bfloat16).astype(jnp.float8_e4m3fn)
        high, wide = BLOCKS[container]
        scale_shape = (*lead, n) if container == "fp8_channel" else (*lead, -(-n // high), -(-k // wide))
        scale = jax.random.uniform(scales, scale_shape, jnp.float32, 0.01, 0.02)
    return QuantizedTensor(data, scale, container, BLOCKS[container])  # type: ignore[arg-type]


def unrolled(call: Call) -> Callable[..., Any]:
    """One jit of a call a weight, each of which waits for the one before."""

    def run(x: jax.Array, weights: list[Any]) -> list[jax.Array]:
        results = []
        for weight in weights:
            y = call(x, weight)
            x, y = jax.lax.optimization_barrier((x, y))
            results.append(y)
        return results

    return jax.jit(run)


def microseconds(call: Call, x: Any, weights: list[Any], repeats: int) -> float:
    run = unrolled(call)
    jax.block_until_ready(run(x, weights))
    jax.block_until_ready(run(x, weights))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(4):
            out = run(x, weights)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - start) / 4 / len(weights))
    return float(np.median(times)) * 1e6


def measure(
    op: str, shape: str, call: Call, peer: Call | None, x: Any, make: Callable[[jax.Array], Any], flop: float,
    repeats: int, peer_of: Callable[[Any], Any], read: float = 1.0,
) -> None:  # fmt: skip
    """Prints a row; `read` is the part of the weights that the op reads."""
    first = make(jax.random.key(0))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(first))
    count = int(max(16, min(64, -(-CACHE // size))))
    distinct = int(max(2, -(-CACHE // size)))
    weights = [make(jax.random.key(i)) for i in range(min(distinct, count))]
    weights = [weights[i % len(weights)] for i in range(count)]
    out = call(x, first)
    moved = int(size * read) + out.nbytes + sum(leaf.nbytes for leaf in jax.tree.leaves(x))
    us = microseconds(call, x, weights, repeats)
    row: dict[str, Any] = {"op": op, "shape": shape, "us": round(us, 2), "bytes": moved, "flop": flop}
    floor = max(moved / BYTES_A_SECOND, flop / FLOP_A_SECOND) * 1e6
    row |= {"floor_us": round(floor, 2), "share": round(floor / us, 3)}
    if peer is not None:
        dense = peer_of(first)
        want = peer(x, dense).astype(jnp.float32)
        row["error"] = round(float(jnp.abs(out.astype(jnp.float32) - want).max() / jnp.abs(want).max()), 5)
        copies = [dense] if dense.nbytes > CACHE else [dense + 0 for _ in range(-(-CACHE // dense.nbytes))]
        peers = [copies[i % len(copies)] for i in range(count)]
        row["peer_us"] = round(microseconds(peer, x, peers, repeats), 2)
    print(json.dumps(row), flush=True)


def linear_cases(repeats: int, container: str) -> None:
    held: dict[str, Callable[[QuantizedTensor], QuantizedTensor]] = {"row_major": lambda w: w}
    if container == "mxfp4":
        held["shuffled"] = jax.jit(shuffle)
    for n, k in ((18432, 7168), (7168, 18432)):
        for m in (1, 8, 16, 32, 64, 128, 1024):
            for layout, hold in held.items():
                x = jax.random.normal(jax.random.key(9), (m, k), jnp.bfloat16)
                measure(
                    f"linear {container} {layout}", f"({m}, {k}) x ({n}, {k})",
                    lambda x, w: linear(x, w, kernels="native"), lambda x, w: linear(x, w, kernels="native"),
                    x, lambda key, n=n, k=k, hold=hold: hold(random_weight(key, (n, k), container)),
                    2.0 * m * n * k, repeats, lambda w: dequantize(w, "bfloat16"),
                )  # fmt: skip


def absorb_cases(repeats: int, container: str) -> None:
    heads, rank = 128, 512
    for contract, offset, used in (("columns", 128, rank), ("rows", 0, 128)):
        for m in (1, 8, 32, 128):
            x = jax.random.normal(jax.random.key(9), (m, heads, used), jnp.bfloat16)
            static: Any = {"contract": contract, "row_offset": offset, "rows": 128, "kernels": "native"}
            measure(
                f"absorb {container} {contract}", f"({m}, {heads}, {used}) x ({heads}, 128 of 256, {rank})",
                lambda x, w, static=static: absorb(x, w, **static),
                lambda x, w, static=static: absorb(x, w, **static),
                x, lambda key: random_weight(key, (heads * 256, rank), container), 2.0 * m * heads * 128 * rank,
                repeats, lambda w: dequantize(w, "bfloat16").reshape(heads, 256, rank), 0.5,
            )  # fmt: skip


def expert_cases(repeats: int, container: str) -> None:
    hidden, inner, experts, slots = 7168, 2048, 32, 8
    for m in (1, 8, 64):
        keys = jax.random.split(jax.random.key(5), 3)
        x = jax.random.normal(keys[0], (m, hidden), jnp.bfloat16)
        ids = jnp.argsort(jax.random.uniform(keys[1], (m, experts)), axis=1)[:, :slots].astype(jnp.int32)
        routing = jax.random.uniform(keys[2], (m, slots), jnp.float32)
        touched = len(np.unique(np.asarray(ids)))

        def make(key: jax.Array) -> Any:
            one, two = jax.random.split(key)
            return (
                random_weight(one, (experts, 2 * inner, hidden), container),
                random_weight(two, (experts, hidden, inner), container),
            )

        measure(
            f"expert_mlp {container}", f"{m} tokens, {touched} of {experts} experts, {hidden} x {inner}",
            lambda x, w, ids=ids, routing=routing: expert_mlp(x, *w, ids, routing, kernels="native"), None,
            x, make, 6.0 * m * slots * hidden * inner, repeats, lambda w: w, touched / experts,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cases = {"linear": linear_cases, "absorb": absorb_cases, "expert_mlp": expert_cases}
    parser.add_argument("--op", nargs="*", choices=sorted(cases), default=list(cases))
    parser.add_argument("--container", nargs="*", choices=sorted(BLOCKS), default=["mxfp4", "fp8_block"])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if jax.default_backend() != "gpu":
        parser.error(f"needs a GPU that JAX can use, got the backend {jax.default_backend()!r}")
    print(json.dumps({"device": str(jax.devices()[0]), "jax": jax.__version__}), flush=True)
    for op in arguments.op:
        for container in arguments.container:
            cases[op](arguments.repeats, container)


if __name__ == "__main__":
    main()
