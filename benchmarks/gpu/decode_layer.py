"""Times one sparse decoder layer of DeepSeek-V3's width on this machine's GPU, one JSON row a case.

    python benchmarks/gpu/decode_layer.py [--batch N ...] [--context N] [--weights mxfp4 bf16]

A row: op, shape, us (of a layer), launches (kernels a layer, from a profile), bytes and flop (of the layer, each byte
once), and with them floor_us and share against ceilings measured in the same run. The layer is norms, projections,
`rope_append_latent`, attention over the pool, absorb, output projection, router, 8 of 32 experts and a shared expert;
its weights are held as `load` holds them for this GPU.
Layers are unrolled in one jit over one layer's weights, which are larger than the second-level cache; the pool is
donated, so that buffers stay where they are.

Two rows more show what the token-major result of `absorb` saves: the product as it is, and the same product as a
head-major einsum whose result is then copied into token-major order, as `o_proj` reads it.
"""

import argparse
import glob
import gzip
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from custom_calls.absorb import absorb
from mla_jax.bench import WEIGHTS
from mla_jax.bench_weights import random_weights
from mla_jax.cache import init_cache
from mla_jax.config import ModelConfig
from mla_jax.cost import decode_cost
from mla_jax.fp8_format import in_fp8_format, resolve_fp8_format
from mla_jax.layers import DecoderLayer, RopeState
from mla_jax.machine import product_rate, read_rate
from mla_jax.paging import AttentionMetadata, PageTable
from mla_jax.parameters import ParamInfo, Tree, parameter_table, with_storage
from mla_jax.presets import preset_file
from mla_jax.rope import RopeTable
from mla_jax.weight_layout import in_weight_layout, resolve_weight_layout

EXPERTS = 32
"""So many experts are enough for a batch to choose from, and fit into memory beside the pool."""
UNROLLED = 8
ROUNDS = 7


def layer_config() -> ModelConfig:
    """DeepSeek-V3 with one layer, which is sparse, and no vocabulary to speak of."""
    config = ModelConfig.from_file(preset_file("deepseek-v3"))
    router = replace(config.router, n_group=1, topk_group=1) if config.router else None
    return replace(
        config,
        num_hidden_layers=1,
        mlp_layer_types=("sparse",),
        n_routed_experts=EXPERTS,
        router=router,
        vocab_size=128,
        quantization=None,
    )


def layer_weights(table: Tree) -> Tree:
    """Random weights of the layer, in the formats in which `load` holds them for the default device."""
    codes, layout = resolve_fp8_format("auto"), resolve_weight_layout("auto", "bfloat16")
    return jax.tree.map(
        lambda info, weight: in_weight_layout(in_fp8_format(weight, codes), info, layout),
        table["model"]["layers"][0],
        random_weights(table, "bfloat16")["model"]["layers"][0],
        is_leaf=lambda node: isinstance(node, ParamInfo),
    )


def seconds_of(step: Callable[[Any], Any], state: Any) -> tuple[float, Any]:
    """Median seconds of a step that takes what the last one gave."""
    state = jax.block_until_ready(step(step(state)))
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(4):
            state = step(state)
        jax.block_until_ready(state)
        times.append((time.perf_counter() - started) / 4)
    return sorted(times)[ROUNDS // 2], state


def kernels_of(step: Callable[[Any], Any], state: Any) -> tuple[int, float]:
    """Kernels that ran in one step, and the microseconds that they took together."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(step(state))
        (path,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
        events = json.loads(gzip.decompress(Path(path).read_bytes()))["traceEvents"]
    names = {(e["pid"], e.get("tid")): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    ran = [e for e in events if e.get("ph") == "X" and "Stream" in names.get((e["pid"], e.get("tid")), "")]
    return len(ran), sum(e["dur"] for e in ran)


def layer_row(weights: str, batch: int, context: int, read: float, product: float) -> dict[str, Any]:
    config = layer_config()
    table = with_storage(parameter_table(config), WEIGHTS[weights].of)
    rope = RopeTable.from_config(config.rope, context + 64)
    params = layer_weights(table)
    cache = init_cache(config, num_tokens=batch * (context + 64), page_size=64)
    pages = PageTable.allocate(cache, batch, context)
    meta = AttentionMetadata.extend(
        pages,
        jnp.full(batch, context - 1, jnp.int32),
        jnp.ones(batch, jnp.int32),
        num_tokens=batch,
    )
    x = jax.random.normal(jax.random.key(0), (batch, config.hidden_size), jnp.bfloat16)

    def layers(params: Any, rope: RopeTable, x: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        layer = DecoderLayer(config, params, RopeState(rope), 0)
        for _ in range(UNROLLED):
            x, cache = layer(x, cache, meta)
        return x, cache

    compiled = jax.jit(layers, donate_argnums=(2, 3)).lower(params, rope, x, cache).compile()

    def step(state: Any) -> Any:
        return compiled(params, rope, *state)

    seconds, state = seconds_of(step, (x, cache))
    launches, _ = kernels_of(step, state)
    whole = decode_cost(config, table, batch, context, "bfloat16")
    # Of the model's cost, what is no embedding and no output head.
    outside = 2 * config.vocab_size * config.hidden_size
    moved, flop = whole.bytes - outside - 2 * batch * config.hidden_size, whole.flop - outside * batch
    floor = moved / read + flop / product
    us = seconds / UNROLLED * 1e6
    return {
        "op": f"decode layer {weights}",
        "shape": f"batch {batch}, context {context}, 8 of {EXPERTS} experts",
        "us": round(us, 1),
        "launches": launches / UNROLLED,
        "bytes": moved,
        "flop": flop,
        "floor_us": round(floor * 1e6, 1),
        "share": round(floor * 1e6 / us, 3),
    }


def absorb_rows(batch: int) -> list[dict[str, Any]]:
    heads, rank, v = 128, 512, 128
    weights = [
        jax.random.normal(jax.random.key(i), (heads, 2 * v, rank), jnp.bfloat16) for i in range(UNROLLED)
    ]
    x = jax.random.normal(jax.random.key(9), (batch, heads, rank), jnp.bfloat16)

    def token_major(x: jax.Array, weight: jax.Array) -> jax.Array:
        return absorb(x, weight, contract="columns", row_offset=v, rows=v)

    def head_major(x: jax.Array, weight: jax.Array) -> jax.Array:
        y = jnp.einsum("thr,hvr->htv", x, weight[:, v:], preferred_element_type=jnp.float32)
        return jax.lax.optimization_barrier(y.astype(jnp.bfloat16)).swapaxes(0, 1)

    rows = []
    for name, call in (("token-major", token_major), ("head-major and a copy", head_major)):

        def all_layers(state: Any, call: Any = call) -> Any:
            x, weights = state
            for weight in weights:
                y = jax.lax.optimization_barrier(call(x, weight).reshape(batch, heads * v))
                x = x + y.reshape(batch, heads, v)[:, :, :1]
            return x, weights

        step = jax.jit(all_layers)
        seconds_of(step, (x, weights))
        # Of the kernels alone: steps this short wait for their launches.
        launches, us = kernels_of(step, (x, weights))
        rows.append(
            {
                "op": f"absorb, {name}",
                "shape": f"{batch} x {heads} x {rank} to {v}",
                "us": round(us / UNROLLED, 2),
                "launches": launches / UNROLLED,
                "bytes": heads * v * rank * 2 + 2 * batch * heads * (rank + v),
                "flop": 2 * batch * heads * rank * v,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32, 128])
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--weights", nargs="*", choices=sorted(WEIGHTS), default=["mxfp4", "bf16"])
    arguments = parser.parse_args()
    if jax.default_backend() != "gpu":
        parser.error(f"needs a GPU that JAX can use, got the backend {jax.default_backend()!r}")
    read, product = read_rate(), product_rate("bfloat16")
    print(
        json.dumps({"op": "ceilings of XLA", "read_gb_s": read / 1e9, "tflop_s": product / 1e12}), flush=True
    )
    for weights in arguments.weights:
        for batch in arguments.batch:
            print(json.dumps(layer_row(weights, batch, arguments.context, read, product)), flush=True)
    for batch in arguments.batch:
        for row in absorb_rows(batch):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
