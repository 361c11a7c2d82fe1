"""What XLA:CPU runs for a decode step of DeepSeek-V2-Lite cut to four layers: custom calls and everything between them.

`python step_thunks.py` prints the counts of a layer for each kind of weights. Nothing is run: weights are abstract.
"""

import dataclasses
import functools
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp

from mla_jax.bench import WEIGHTS
from mla_jax.cache import init_cache
from mla_jax.config import ModelConfig
from mla_jax.models import MLAForCausalLM, decode_step, freeze
from mla_jax.paging import AttentionMetadata, PageTable, advance
from mla_jax.parameters import parameter_table, with_storage
from mla_jax.presets import preset_file
from mla_jax.sampling import sample

LAYERS = 4
_FREE = {"parameter", "bitcast", "get-tuple-element", "constant", "tuple"}
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%\S+ = .*? ([a-z][a-z-]*)\(")


@functools.cache
def compiled_step(weights: str, batch: int) -> str:
    """The compiled module's text: `advance`, `decode_step` and a greedy draw."""
    config = ModelConfig.from_file(preset_file("deepseek-v2-lite"))
    kinds = config.mlp_layer_types[:LAYERS]
    config = dataclasses.replace(
        config, num_hidden_layers=LAYERS, mlp_layer_types=kinds, vocab_size=32000, quantization=None
    )
    table = with_storage(parameter_table(config), WEIGHTS[weights].of)
    model = freeze(MLAForCausalLM.abstract(config, table=table, kernels="native"))
    cache = jax.eval_shape(lambda: init_cache(config, num_tokens=batch * 320, page_size=64))
    pages = jax.eval_shape(
        lambda: PageTable.empty(init_cache(config, num_tokens=batch * 320, page_size=64), batch, 256)
    )
    row = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def step(model: Any, tokens: Any, cache: Any, table: PageTable, seq_lens: Any) -> Any:
        meta = advance(AttentionMetadata.held(table, seq_lens), reserved=True)
        logits, cache = decode_step(model, tokens, cache, meta)
        return sample(logits, jax.random.key(0), temperature=0.0), cache, meta.seq_lens

    return jax.jit(step, donate_argnums=(2,)).lower(model, row, cache, pages, row).compile().as_text()


def thunks(module: str) -> dict[str, tuple[Counter[str], Counter[str]]]:
    """By layer ("" is none): the project's custom calls by op, and what else XLA runs by kind.

    An instruction that JAX did not name, such as a copy that XLA put in, is of no layer.
    """
    entry = module[module.index("\nENTRY") :]
    found: dict[str, tuple[Counter[str], Counter[str]]] = {}
    for line in entry.splitlines()[2:]:
        kind = _INSTRUCTION.match(line)
        if kind is None or kind.group(1) in _FREE:
            continue
        layer = re.search(r'op_name="[^"]*/(layer_\d+)/', line)
        calls, other = found.setdefault(layer.group(1) if layer else "", (Counter(), Counter()))
        target = re.search(r'custom_call_target="([^"]*)"', line)
        if target is None:
            other[kind.group(1)] += 1
        elif target.group(1).startswith("mla_jax."):
            calls[target.group(1).split(".")[1]] += 1
        else:
            other[target.group(1)] += 1
    return found


if __name__ == "__main__":
    for weights in ("mxfp4-all", "mxfp4-experts", "bf16"):
        for batch in (1, 8):
            print(weights, "batch", batch)
            for layer, (calls, other) in sorted(thunks(compiled_step(weights, batch)).items()):
                print(f"  {layer or 'no layer':9} {calls.total():3} custom calls {dict(calls)}")
                print(f"            {other.total():3} other {dict(other)}")
