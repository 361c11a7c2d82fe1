"""`mla-jax bench`: tokens per second beside what they would be if only bytes and FLOP took time."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from custom_calls.quantized_tensor import QuantizedTensor
from mla_jax.bench_weights import random_weights
from mla_jax.cache import init_cache
from mla_jax.config import ModelConfig
from mla_jax.cost import StepCost, decode_cost, prefill_cost, weight_bytes
from mla_jax.engine.engine import default_decode_steps
from mla_jax.errors import RequestError
from mla_jax.fp8_format import in_fp8_format, resolve_fp8_format
from mla_jax.loading import load
from mla_jax.machine import available_bytes, on_host, peak_bytes, product_rate, read_rate
from mla_jax.models import FrozenModel, MLAForCausalLM, decode_steps, freeze, prefill
from mla_jax.paging import AttentionMetadata, PageTable
from mla_jax.parameters import ParamInfo, Tree, parameter_table, with_storage
from mla_jax.presets import PRESETS, preset_file
from mla_jax.quant import FP8, MXFP4, Storage
from mla_jax.rope import RopeTable
from mla_jax.sampling import sample
from mla_jax.weight_layout import in_weight_layout, resolve_weight_layout


@dataclass(frozen=True)
class RandomStorage:
    """How random weights are stored.

    Attributes:
      layers: of every linear layer but the experts, the routers and the output head.
      experts: of the experts.
      head: of the output head.
    """

    layers: Storage | None
    experts: Storage | None
    head: Storage | None = None

    def of(self, info: ParamInfo) -> Storage | None:
        name = info.sources[0].name
        if name.endswith("lm_head.weight"):
            return self.head
        return self.experts if ".experts." in name else self.layers


@dataclass(frozen=True)
class Timing:
    """What was timed.

    Attributes:
      seconds: of a prefill or of a decode step, one for each program that was timed; of decode steps on a GPU their
        mean alone.
      compile_s: of the compilation before them.
    """

    seconds: tuple[float, ...] = ()
    compile_s: float = 0.0

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None


WEIGHTS: dict[str, RandomStorage] = {
    "mxfp4": RandomStorage(MXFP4, MXFP4),
    "fp8": RandomStorage(FP8, FP8),
    "bf16": RandomStorage(None, None),
    "mxfp4-all": RandomStorage(MXFP4, MXFP4, MXFP4),
    "mxfp4-experts": RandomStorage(FP8, MXFP4, FP8),
}


def bench(
    model: str | None = None,
    *,
    config: str | None = None,
    weights: str | None = None,
    prompt: int = 512,
    decode: int = 32,
    batch: int = 1,
    depth: int = 0,
) -> dict[str, Any]:
    """Measures prefill and decode.

    Args:
      model: a checkpoint; or
      config: a preset's name or a config.json, with random weights.
      weights: one of `WEIGHTS` for random weights: "mxfp4", "fp8" or "bf16" (default) is the storage of every linear
        layer but the output head and the routers; "mxfp4-all" takes the head in, and "mxfp4-experts" stores experts
        as MXFP4 and all else, with the head, as FP8.
      prompt: tokens of each sequence's prefill; 0 leaves it out.
      decode: decode steps that are timed; 0 leaves them out.
      batch: sequences.
      depth: tokens that each sequence already has before the timed steps.

    Returns:
      A dict with the keys prefill_tokens_per_s, decode_tokens_per_s (all sequences together; None where left
      out), bytes_per_step, flop_per_step, flop_of_prefill, read_gb_per_s and product_gflop_per_s (measured in the
      same run), share_of_read_rate (of decode), decode_share_of_floor and prefill_share_of_floor (floor = bytes /
      read rate + FLOP / product rate), load_s, compile_s, peak_rss_bytes, peak_device_bytes (None on a CPU), and
      what was measured.

    Raises:
      RequestError: both or neither of model and config, sizes out of range, or more memory than there is.
    """
    for name, value, low in (
        ("prompt", prompt, 0),
        ("decode", decode, 0),
        ("batch", batch, 1),
        ("depth", depth, 0),
    ):
        if value < low:
            raise RequestError(f"{name}: expected at least {low}, got {value}")
    if (model is None) == (config is None):
        raise RequestError("bench: expected a MODEL or --config, and not both")
    started = time.perf_counter()
    frozen, table = (
        _from_checkpoint(model, weights) if model is not None else random_model(str(config), weights)
    )
    jax.block_until_ready(frozen)
    load_s = time.perf_counter() - started
    settings = frozen.config
    needed = depth + prompt + decode + 1
    if needed > settings.max_context:
        raise RequestError(f"bench: {needed} tokens of one sequence: {settings.context_reason}")
    cost = decode_cost(settings, table, batch, depth + decode // 2, settings.dtype)
    whole = prefill_cost(settings, table, batch, prompt)
    prefills = time_prefill(frozen, prompt, batch)
    steps = time_decode(frozen, decode, batch, depth)
    prefill_s, decode_s = prefills.median, steps.median
    peak_host, peak_device = peak_bytes()  # before the ceilings, whose arrays are not the model's
    read, product = read_rate(), product_rate(settings.dtype)

    def share(cost: StepCost, seconds: float | None) -> float | None:
        return (cost.bytes / read + cost.flop / product) / seconds if seconds else None

    return {
        "model": model or config,
        "weights": "checkpoint" if model else weights or "bf16",
        "prompt": prompt,
        "decode": decode,
        "batch": batch,
        "depth": depth,
        "prefill_tokens_per_s": prompt * batch / prefill_s if prefill_s else None,
        "decode_tokens_per_s": batch / decode_s if decode_s else None,
        "weight_bytes": weight_bytes(table, settings.dtype),
        "bytes_per_step": cost.bytes,
        "flop_per_step": cost.flop,
        "flop_of_prefill": whole.flop,
        "read_gb_per_s": read / 1e9,
        "product_gflop_per_s": product / 1e9,
        "share_of_read_rate": cost.bytes / decode_s / read if decode_s else None,
        "decode_share_of_floor": share(cost, decode_s),
        "prefill_share_of_floor": share(whole, prefill_s),
        "load_s": load_s,
        "compile_s": prefills.compile_s + steps.compile_s,
        "peak_rss_bytes": peak_host,
        "peak_device_bytes": peak_device,
    }


def _from_checkpoint(model: str, weights: str | None) -> tuple[FrozenModel, Tree]:
    if weights is not None:
        raise RequestError("weights: a checkpoint has its own; expected --weights only with --config")
    loaded, _ = load(model)
    frozen = freeze(loaded)
    return frozen, _table_of(frozen)


def _table_of(frozen: FrozenModel) -> Tree:
    """The parameter table with the storage that the arrays have."""

    def stored(info: ParamInfo, array: Any) -> ParamInfo:
        if not isinstance(array, QuantizedTensor):
            return info
        kind = Storage(array.container, array.block, array.scale.dtype.name, array.rounding)
        return replace(info, storage=kind)

    return jax.tree.map(
        stored,
        parameter_table(frozen.config),
        frozen.params,
        is_leaf=lambda node: isinstance(node, ParamInfo),
    )


def random_model(config: str, weights: str | None) -> tuple[FrozenModel, Tree]:
    """A model of random weights and its parameter table, for `config` and `weights` of `bench`."""
    if weights is not None and weights not in WEIGHTS:
        raise RequestError(f"weights: expected one of {', '.join(WEIGHTS)}, got {weights!r}")
    if config not in PRESETS and not os.path.isfile(config):
        raise RequestError(f"config: expected a config.json or one of {', '.join(PRESETS)}, got {config!r}")
    path = preset_file(config) if config in PRESETS else Path(config)
    settings = replace(ModelConfig.from_file(path), quantization=None)
    if settings.dtype == "float16":
        settings = replace(settings, dtype="float32")
    table = with_storage(parameter_table(settings), WEIGHTS[weights or "bf16"].of)
    needed, free = weight_bytes(table, settings.dtype), available_bytes()
    if free is not None and needed > free:
        raise RequestError(
            f"{config} with {weights or 'bf16'} weights needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are available"
        )
    rope = RopeTable.from_config(settings.rope, settings.max_position_embeddings)
    params = _as_loaded(random_weights(table, settings.dtype), table, settings.dtype)
    return freeze(MLAForCausalLM(settings, params, rope)), table


def _as_loaded(params: Tree, table: Tree, dtype: str) -> Tree:
    """Weights in the formats in which `load` holds them for the default device, unless it is told another.

    Each is given up before the next one is made: they are not held twice, if the caller does not hold them.
    """
    codes, layout = resolve_fp8_format("auto"), resolve_weight_layout("auto", dtype)
    infos, structure = jax.tree.flatten(table, is_leaf=lambda node: isinstance(node, ParamInfo))
    weights = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, QuantizedTensor))
    del params
    for at, info in enumerate(infos):
        weights[at] = in_weight_layout(in_fp8_format(weights[at], codes), info, layout)
    return jax.tree.unflatten(structure, weights)


def time_prefill(
    frozen: FrozenModel, prompt: int, batch: int, before_each: Callable[[], None] = lambda: None
) -> Timing:
    """Of prefills of `batch` prompts, before each of which something else may be measured."""
    if prompt == 0:
        return Timing()
    table, cache = _pool(frozen, prompt, batch)
    none, new = jnp.zeros(batch, jnp.int32), jnp.full(batch, prompt, jnp.int32)
    meta = AttentionMetadata.extend(table, none, new)
    tokens = _tokens(frozen, prompt * batch)
    step, compile_s = _compiled(prefill, (2,), frozen, tokens, cache, meta)
    # A GPU's first two calls record command buffers and pick cuBLAS's kernels, and take up to three times as long.
    for _ in range(2):
        logits, cache = step(frozen, tokens, cache, meta)
    jax.block_until_ready(logits)
    times = []
    for _ in range(5):
        before_each()
        started = time.perf_counter()
        logits, cache = step(frozen, tokens, cache, meta)
        jax.block_until_ready(logits)
        times.append(time.perf_counter() - started)
    return Timing(tuple(times), compile_s)


def time_decode(
    frozen: FrozenModel,
    steps: int,
    batch: int,
    depth: int,
    page_size: int = 64,
    before_each: Callable[[], None] = lambda: None,
) -> Timing:
    """Of decode steps of `batch` sequences of `depth` tokens.

    A program has as many steps as the engine's, and draws as it does: greedily, from pages that are there before. On
    a CPU something else may be measured before each program.
    """
    if steps == 0:
        return Timing()
    together = min(default_decode_steps(), steps)
    programs = -(-steps // together)
    table, cache = _pool(frozen, depth + (programs + 2) * together + 1, batch, page_size)
    # The rows of earlier tokens are zeros: attention reads them like any others.
    meta = AttentionMetadata.held(table, jnp.full(batch, depth, jnp.int32))

    def draw(logits: jax.Array, active: jax.Array, carry: None) -> tuple[jax.Array, jax.Array, None]:
        return sample(logits, jax.random.key(0), temperature=0.0), active, carry

    def several(
        model: FrozenModel, tokens: jax.Array, cache: Any, meta: AttentionMetadata
    ) -> tuple[jax.Array, Any, AttentionMetadata]:
        active = jnp.ones(batch, bool)
        done = decode_steps(
            model, tokens, cache, meta, draw, None, num_steps=together, active=active, reserved=True
        )
        return done.next_tokens, done.cache, done.meta

    # All that changes is given away, so that every program finds its buffers where the last one had them: command
    # buffers are recorded once.
    state = jax.tree.map(jnp.array, (_tokens(frozen, batch), cache, meta))
    program, compile_s = _compiled(several, (1, 2, 3), frozen, *state)
    state = jax.block_until_ready(program(frozen, *program(frozen, *state)))
    if not on_host():
        # Programs queue up, as they do where tokens are fetched behind them.
        started = time.perf_counter()
        for _ in range(programs):
            state = program(frozen, *state)
        jax.block_until_ready(state)
        return Timing(((time.perf_counter() - started) / (programs * together),), compile_s)
    times = []
    for _ in range(programs):
        before_each()
        started = time.perf_counter()
        state = jax.block_until_ready(program(frozen, *state))
        times.append((time.perf_counter() - started) / together)
    return Timing(tuple(times), compile_s)


def _compiled(function: Callable[..., Any], donated: tuple[int, ...], *args: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=donated).lower(*args).compile()
    return compiled, time.perf_counter() - started


def _pool(frozen: FrozenModel, tokens: int, batch: int, page_size: int = 64) -> tuple[PageTable, Any]:
    cache = init_cache(frozen.config, num_tokens=batch * (tokens + page_size), page_size=page_size)
    return PageTable.allocate(cache, batch, tokens), cache


def _tokens(frozen: FrozenModel, count: int) -> jax.Array:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, frozen.config.vocab_size, count), jnp.int32)


def format_report(found: dict[str, Any]) -> str:
    """The measurements as lines of text."""
    lines = [
        f"{found['model']}, {found['weights']} weights ({found['weight_bytes'] / 1e9:.2f} GB), batch {found['batch']}, "
        f"depth {found['depth']}"
    ]
    if found["prefill_tokens_per_s"] is not None:
        lines.append(
            f"prefill of {found['prompt']}: {found['prefill_tokens_per_s']:.1f} tokens/s, "
            f"{found['flop_of_prefill'] / 1e9:.0f} GFLOP: {100 * found['prefill_share_of_floor']:.0f} % of what bytes "
            f"and FLOP allow, with large products at {found['product_gflop_per_s']:.0f} GFLOP/s"
        )
    if found["decode_tokens_per_s"] is not None:
        lines.append(
            f"decode: {found['decode_tokens_per_s']:.2f} tokens/s; a step reads {found['bytes_per_step'] / 1e6:.1f} MB "
            f"and computes {found['flop_per_step'] / 1e9:.2f} GFLOP: {100 * found['share_of_read_rate']:.0f} % of "
            f"the {found['read_gb_per_s']:.1f} GB/s at which this machine reads memory, "
            f"{100 * found['decode_share_of_floor']:.0f} % of what bytes and FLOP allow"
        )
    on_device = found["peak_device_bytes"]
    lines.append(
        f"load {found['load_s']:.1f} s, compile {found['compile_s']:.1f} s, peak memory "
        f"{found['peak_rss_bytes'] / 1e9:.2f} GB"
        + (f", {on_device / 1e9:.2f} GB on the device" if on_device else "")
    )
    return "\n".join(lines)
