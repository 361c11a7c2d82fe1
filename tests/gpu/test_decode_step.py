"""A whole decode step on a GPU: in place, and one recorded command buffer with every kernel in it."""

import glob
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from mla_jax import AttentionMetadata, PageTable, advance, decode_step, init_cache
from mla_jax.bench import WEIGHTS
from mla_jax.bench_weights import random_weights
from mla_jax.config import ModelConfig
from mla_jax.models import FrozenModel, MLAForCausalLM, freeze
from mla_jax.parameters import parameter_table, with_storage
from mla_jax.rope import RopeTable
from mla_jax.testing import assert_in_place

CONFIG = Path(__file__).resolve().parents[1] / "goldens" / "deepseek_v2_lite_bf16" / "config.json"
BATCH = 4


@pytest.fixture(scope="module", params=["bf16", "mxfp4"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FrozenModel:
    settings = json.loads(CONFIG.read_text())
    settings |= {"intermediate_size": 64, "moe_intermediate_size": 32, "torch_dtype": "bfloat16"}
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(settings))
    config = ModelConfig.from_file(path)
    table = with_storage(parameter_table(config), WEIGHTS[request.param].of)
    rope = RopeTable.from_config(config.rope, 1024)
    return freeze(MLAForCausalLM(config, random_weights(table, "bfloat16"), rope))


def step(
    model: FrozenModel, tokens: jax.Array, cache: Any, meta: AttentionMetadata
) -> tuple[jax.Array, Any, AttentionMetadata]:
    logits, cache = decode_step(model, tokens, cache, meta)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), cache, advance(meta)


def state_of(model: FrozenModel, num_tokens: int) -> tuple[jax.Array, Any, AttentionMetadata]:
    cache = init_cache(model.config, num_tokens=num_tokens, page_size=16)
    table = PageTable.allocate(cache, BATCH, 128)
    meta = AttentionMetadata.extend(
        table, jnp.full(BATCH, 7, jnp.int32), jnp.ones(BATCH, jnp.int32), num_tokens=BATCH
    )
    # Nothing may be one buffer twice: all of it is given away.
    state: tuple[jax.Array, Any, AttentionMetadata] = jax.tree.map(
        jnp.array, (jnp.zeros(BATCH, jnp.int32), cache, meta)
    )
    return state


def test_the_pool_is_updated_in_place(model: FrozenModel) -> None:
    tokens, cache, meta = state_of(model, 1 << 20)
    jitted = jax.jit(step, donate_argnames=("cache",))
    print(assert_in_place(jitted, model, tokens, cache, meta))


def test_a_step_is_one_command_buffer(model: FrozenModel, tmp_path: Path) -> None:
    state = state_of(model, 4096)
    compiled = jax.jit(step, donate_argnums=(1, 2, 3)).lower(model, *state).compile()
    for _ in range(3):  # the first runs record
        state = compiled(model, *state)
    jax.block_until_ready(state)
    with jax.profiler.trace(str(tmp_path)):
        for _ in range(4):
            state = compiled(model, *state)
        jax.block_until_ready(state)
    (path,) = glob.glob(f"{tmp_path}/**/*.trace.json.gz", recursive=True)
    events = json.loads(gzip.decompress(Path(path).read_bytes()))["traceEvents"]
    calls = Counter(event["name"].split(" ")[0] for event in events if event.get("ph") == "X")
    launched = {name: count for name, count in calls.items() if name.startswith("cuLaunchKernel")}
    kernels = {name: count for name, count in calls.items() if name.startswith("mla_")}
    print(f"{calls['cuGraphLaunch']} graph launches, {launched}, kernels {kernels}")
    assert calls["cuGraphLaunch"] == 4
    assert not launched
    layers = model.config.num_hidden_layers
    assert sum(count for name, count in kernels.items() if name.startswith("mla_rope_append")) == 4 * layers
