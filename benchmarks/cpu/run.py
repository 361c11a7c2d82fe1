"""CPU kernels and whole steps against what this machine can do, as a table and as JSON.

    make bench-cpu        or: python benchmarks/cpu/run.py [--only PART ...] [--out FILE]

Bytes that all cores read a second (large pages, no cache) and FLOP a second of the library's best large bf16 product
are measured in turns with every row, since a shared machine moves. A share is a median over turns: "of read" is bytes /
seconds over the first, "of product" FLOP / seconds over the second, "of floor" (bytes / read + FLOP / product) /
seconds.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.linear import linear
from custom_calls.mla_attention import mla_attention
from custom_calls.mla_attention_expanded import mla_attention_expanded
from custom_calls.quantized_tensor import to_vnni
from custom_calls.registry import library
from mla_jax.bench import random_model, time_decode, time_prefill
from mla_jax.checkpoints.streaming import aligned_array
from mla_jax.cost import decode_cost, prefill_cost
from mla_jax.errors import RequestError
from mla_jax.machine import large_products, peak_bytes, seconds_of
from mla_jax.presets import preset_file
from mla_jax.quant import FP8, MXFP4, Storage, random_scale
from mla_jax.weight_layout import resolve_weight_layout

HERE = Path(__file__).resolve().parent
ROUNDS = 7
STOLEN_ROUNDS = 5
STEPS = 32
READ_BYTES = 256 << 20
FAR_BYTES = 160 << 20  # Copies of a weight that no cache holds together.
Row = dict[str, Any]


class Ceilings:
    """ceilings.cc, compiled for this machine."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "ceilings.so"
            compiler = os.environ.get("CXX", "g++")
            subprocess.run(
                [
                    compiler,
                    "-O2",
                    "-std=c++17",
                    "-shared",
                    "-fPIC",
                    "-pthread",
                    HERE / "ceilings.cc",
                    "-o",
                    library,
                ],
                check=True,
            )
            self.library = ctypes.CDLL(str(library))
        self.library.ceilings_allocate.restype = ctypes.c_void_p
        self.library.ceilings_read_rate.restype = ctypes.c_double
        self.library.ceilings_product_rate.restype = ctypes.c_double
        self.memory = ctypes.c_void_p(self.library.ceilings_allocate(ctypes.c_int64(READ_BYTES)))
        if not self.memory:
            sys.exit("run.py: no memory for the read rate")

    def read(self, several: bool = False) -> float:
        """Bytes a second, each thread's at one place of memory or at several at once."""
        return float(
            self.library.ceilings_read_rate(
                self.memory, ctypes.c_int64(READ_BYTES), self.threads, int(several)
            )
        )

    def peak(self) -> float:
        """FLOP a second of bf16 pairs in registers; 0 where the processor does not multiply them."""
        return float(self.library.ceilings_product_rate(ctypes.c_int64(1_000_000), self.threads))


def held(values: jax.Array) -> jax.Array:
    """In memory as `load` takes it, which the system backs by large pages where it can."""
    array = aligned_array(values.shape, np.dtype(values.dtype))
    array[...] = values
    return jax.device_put(array)


@dataclass
class Turns:
    """What the machine read and multiplied a second, before each turn of the work beside it."""

    read: Callable[[], float]
    product: Callable[[], float]
    reads: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        self.reads.append(self.read())
        self.products.append(self.product())

    def row(self, op: str, shape: str, seconds: Sequence[float], nbytes: float, flop: float) -> Row:
        turns = list(zip(self.reads, self.products, seconds, strict=True))
        return {
            "op": op,
            "shape": shape,
            "us": statistics.median(seconds) * 1e6,
            "bytes": nbytes,
            "flop": flop,
            "read_gb_s": statistics.median(self.reads) / 1e9,
            "product_gflop_s": statistics.median(self.products) / 1e9,
            "of_read": statistics.median(nbytes / read / s for read, _, s in turns),
            "of_product": statistics.median(flop / product / s for _, product, s in turns),
            "of_floor": statistics.median((nbytes / read + flop / product) / s for read, product, s in turns),
        }


class Bench:
    def __init__(self, threads: int) -> None:
        self.ceilings = Ceilings(threads)
        self.rng = np.random.default_rng(0)
        self.product_flop, calls = large_products("bfloat16")
        self.large_product = min(calls, key=lambda call: seconds_of(call, ROUNDS))

    def turns(self) -> Turns:
        # Of two products the first may wait for what the read took from the caches.
        return Turns(self.ceilings.read, lambda: self.product_flop / seconds_of(self.large_product, 1))

    def array(self, *shape: int) -> jax.Array:
        values = self.rng.standard_normal(shape, np.float32) / np.sqrt(shape[-1])
        return jnp.asarray(values).astype(jnp.bfloat16)

    def weight(self, storage: Storage | None, n: int, k: int) -> Any:
        if storage is None:
            return held(self.array(n, k))
        codes = self.rng.integers(0, 120, storage.data_shape((n, k)), dtype=np.uint8)
        data = jnp.asarray(codes).view(storage.data_dtype)
        weight = storage.tensor(data, random_scale(storage, (n, k), 1.0))
        if storage is MXFP4 and resolve_weight_layout("auto", "bfloat16") == "vnni":
            weight = to_vnni(weight)
        return jax.tree.map(held, weight)

    def row(
        self, op: str, shape: str, call: Callable[[], Any], nbytes: float, flop: float, calls: int = 1
    ) -> Row:
        """`calls` of the same work at a time."""
        jax.block_until_ready(call())
        turns, seconds = self.turns(), []
        for _ in range(ROUNDS):
            turns()
            started = time.perf_counter()
            jax.block_until_ready(call())
            seconds.append((time.perf_counter() - started) / calls)
        return turns.row(op, shape, seconds, nbytes, flop)

    def products(self) -> Iterator[Row]:
        product = jax.jit(lambda x, weights: [linear(x, w, kernels="native") for w in weights])
        for name, storage in (("mxfp4", MXFP4), ("bf16", None), ("fp8", FP8)):
            for n, k in ((10944, 2048), (18432, 7168)):
                one = self.weight(storage, n, k)
                nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(one))
                weights = [one] + [self.weight(storage, n, k) for _ in range(FAR_BYTES // nbytes)]
                for rows in (1, 2, 4, 8, 32, 128, 512):
                    x = self.array(rows, k)
                    yield self.row(
                        f"linear {name}",
                        f"{n}x{k}, {rows} rows",
                        lambda x=x, weights=weights: product(x, weights),
                        nbytes,
                        2.0 * rows * n * k,
                        len(weights),
                    )

    def attention(self) -> Iterator[Row]:
        rank, rope, page, context = 512, 64, 64, 4096
        for heads in (16, 128):
            for batch in (1, 8):
                pages = batch * context // page
                # One call after the other, each over another layer, as in a model: no cache holds them all.
                layers = 1 + FAR_BYTES // (2 * batch * context * (rank + rope))
                pool = jnp.tile(self.array(1, pages, page, rank + rope), (layers, 1, 1, 1))
                order = jnp.asarray(self.rng.permutation(pages).reshape(batch, -1), jnp.int32)
                call = jax.jit(
                    lambda latent, rotated, pool, order, start, length: [
                        mla_attention(
                            latent, rotated, pool, jnp.int32(layer), jnp.ones(2, jnp.float32), order, start, length,
                            softmax_scale=0.07, kernels="native",
                        )
                        for layer in range(pool.shape[0])
                    ]
                )  # fmt: skip
                args = (
                    self.array(batch, heads, rank),
                    self.array(batch, heads, rope),
                    pool,
                    order,
                    jnp.arange(batch + 1, dtype=jnp.int32),
                    jnp.full(batch, context, jnp.int32),
                )
                keys = batch * context
                yield self.row(
                    f"mla_attention {heads} heads",
                    f"{batch} x {context}",
                    lambda call=call, args=args: call(*args),
                    2.0 * keys * (rank + rope),
                    2.0 * keys * heads * (2 * rank + rope),
                    layers,
                )
        heads, nope, v = 16, 128, 128
        expanded = jax.jit(
            lambda q, rotated, kv, rows, start: mla_attention_expanded(
                q, rotated, kv, rows, start, nope=nope, v=v, softmax_scale=0.07, kernels="native"
            )
        )
        for tokens in (512, 4096):
            args = (
                self.array(tokens, heads, nope + rope),
                self.array(tokens, heads, rope),
                self.array(tokens, heads * (nope + v)),
                self.array(tokens, rank + rope),
                jnp.asarray([0, tokens], jnp.int32),
            )
            yield self.row(
                f"mla_attention_expanded {heads} heads",
                f"{tokens} tokens",
                lambda args=args: expanded(*args),
                2.0 * tokens * heads * (nope + rope + nope + v + v),
                1.0 * tokens * (tokens + 1) * heads * (nope + rope + v),
            )

    @staticmethod
    def small_settings() -> dict[str, Any]:
        """The config.json of DeepSeek-V2-Lite cut to four layers and a vocabulary of 32,000."""
        settings: dict[str, Any] = json.loads(preset_file("deepseek-v2-lite").read_text())
        return settings | {"num_hidden_layers": 4, "vocab_size": 32000}

    @staticmethod
    def small_model(weights: str) -> tuple[Any, Any]:
        """Of these settings: its model and parameter table."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            path.write_text(json.dumps(Bench.small_settings()))
            return random_model(str(path), weights)

    def decode(self, op: str, frozen: Any, table: Any, batch: int, depth: int, page: int = 64) -> Row:
        cost = decode_cost(frozen.config, table, batch, depth + STEPS // 2, "bfloat16")
        turns = self.turns()
        timing = time_decode(frozen, STEPS, batch, depth, page, before_each=turns)
        shape = f"batch {batch}, depth {depth}, pages of {page}"
        row = turns.row(op, shape, timing.seconds, cost.bytes, cost.flop)
        return row | {"tokens_per_s": batch / statistics.median(timing.seconds)}

    def prefill(self, op: str, frozen: Any, table: Any, prompt: int) -> Row:
        cost = prefill_cost(frozen.config, table, 1, prompt)
        turns = self.turns()
        timing = time_prefill(frozen, prompt, 1, before_each=turns)
        row = turns.row(op, f"{prompt} tokens", timing.seconds, cost.bytes, cost.flop)
        return row | {"tokens_per_s": prompt / statistics.median(timing.seconds)}

    def steps(self) -> Iterator[Row]:
        for weights in ("mxfp4-all", "mxfp4-experts", "bf16"):
            frozen, table = self.small_model(weights)
            for batch, depth in ((1, 0), (1, 4096), (8, 0), (32, 0)):
                yield self.decode(f"decode {weights}", frozen, table, batch, depth)
            for prompt in (512, 4096):
                yield self.prefill(f"prefill {weights}", frozen, table, prompt)

    def whole(self) -> Iterator[Row]:
        """All of DeepSeek-V2-Lite; nothing, with the reason, where it does not fit into memory."""
        try:
            frozen, table = random_model("deepseek-v2-lite", "mxfp4-all")
        except RequestError as error:
            print(f"run.py: left out: {error}", file=sys.stderr)
            return
        row = self.decode("decode all of DeepSeek-V2-Lite", frozen, table, 1, 0)
        yield row | {"peak_rss_bytes": peak_bytes()[0]}

    def stolen(self) -> Iterator[Row]:
        """Decode steps alone, and while another process spins on one of the cores; in turns, since machines move."""
        frozen, table = self.small_model("mxfp4-all")
        core = max(os.sched_getaffinity(0))
        spin = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
        alone, taken = [], []
        for _ in range(STOLEN_ROUNDS):
            alone.append(self.decode("decode mxfp4-all", frozen, table, 1, 0))
            other = subprocess.Popen([sys.executable, "-c", spin])
            try:
                time.sleep(0.5)  # until it spins
                taken.append(self.decode("decode mxfp4-all, a core taken", frozen, table, 1, 0))
            finally:
                other.kill()
                other.wait()
        kept = statistics.median(
            b["tokens_per_s"] / a["tokens_per_s"] for a, b in zip(alone, taken, strict=True)
        )
        yield alone[-1]
        yield taken[-1] | {"kept": kept}

    def growth(self) -> Iterator[Row]:
        """Decode steps of the same cut model against depth, batch and page size, all in MXFP4."""
        frozen, table = self.small_model("mxfp4-all")
        for name, cases in (
            ("depth", [(1, depth, 64) for depth in (0, 1024, 2048, 4096, 8192, 16384, 32768)]),
            ("batch", [(batch, 512, 64) for batch in (1, 2, 4, 8, 16, 32, 64)]),
            ("page size", [(4, 4096, page) for page in (1, 16, 64, 256)]),
        ):
            for batch, depth, page in cases:
                yield self.decode(f"decode by {name}", frozen, table, batch, depth, page)


def processor() -> str:
    """The system's name of the processor and the kernels chosen for it."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return f"{names[0] if names else 'a processor'} ({library('cpu').abi['isa']})"


def line_of(row: Row) -> str:
    speed = f"{row['tokens_per_s']:.1f} tokens/s" if "tokens_per_s" in row else f"{row['us'] / 1e3:.3f} ms"
    return (
        f"{row['op'] + ', ' + row['shape']:<60} {speed:>16}   of read {row['of_read']:.2f}   "
        f"of product {row['of_product']:.2f}   of floor {row['of_floor']:.2f}"
        + (f"   of alone {row['kept']:.2f}" if "kept" in row else "")
        + (f"   peak memory {row['peak_rss_bytes'] / 1e9:.1f} GB" if "peak_rss_bytes" in row else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("whole", "products", "attention", "steps", "stolen", "growth")
    parser.add_argument("--only", nargs="*", choices=parts, default=list(parts))
    parser.add_argument("--out", type=Path, default=Path("build/cpu_benchmarks.json"))
    arguments = parser.parse_args()
    if jax.default_backend() != "cpu":
        parser.error(
            f"measures CPU kernels, got the backend {jax.default_backend()!r}: set JAX_PLATFORMS=cpu"
        )
    bench = Bench(len(os.sched_getaffinity(0)))
    peak = max(bench.ceilings.peak() for _ in range(3))
    at_first, several = bench.turns(), []
    for _ in range(ROUNDS):
        at_first()
        several.append(bench.ceilings.read(several=True))
    plain, product, places = map(statistics.median, (at_first.reads, at_first.products, several))
    print(
        f"{bench.ceilings.threads} threads; at first large bf16 products {product / 1e9:.0f} GFLOP/s"
        + (f" of {peak / 1e9:.0f} in registers" if peak else "")
        + f", plain read {plain / 1e9:.1f} GB/s, {places / 1e9:.1f} at eight places of memory a thread at once",
        flush=True,
    )
    rows = []
    for part in arguments.only:
        for row in getattr(bench, part)():
            rows.append(row)
            print(line_of(row), flush=True)
    if not rows:
        sys.exit("run.py: nothing was measured")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "device": f"{bench.ceilings.threads} threads of {processor()}",
        "jax": jax.__version__,
        "read_several_bytes_per_s": places,
        "read_bytes_per_s": statistics.median(row["read_gb_s"] for row in rows) * 1e9,
        "matrix_flop_per_s": statistics.median(row["product_gflop_s"] for row in rows) * 1e9,
        "peak_flop_per_s": peak,
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
