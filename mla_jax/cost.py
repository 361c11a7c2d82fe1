"""What a step reads and computes, counted from the parameter table before anything is measured."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mla_jax.config import ModelConfig
from mla_jax.parameters import ParamInfo, Tree, abstract_parameters


@dataclass(frozen=True)
class StepCost:
    """One step of a batch.

    Attributes:
      weight_bytes: weights that are read once, the chosen experts among them.
      cache_bytes: latent rows that attention reads.
      flop: multiplications and additions of matrix products and attention.
    """

    weight_bytes: int
    cache_bytes: int
    flop: int

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes


def weight_bytes(table: Tree, dtype: str) -> int:
    """Of all parameters, in their storage."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_parameters(table, dtype)))


def decode_cost(config: ModelConfig, table: Tree, batch: int, depth: int, cache_dtype: str) -> StepCost:
    """One step of `batch` sequences that have `depth` tokens each.

    Attention, absorbed, costs 2 (2 kv_lora_rank + qk_rope_head_dim) FLOP a head and key.
    """
    read, flop = _weights(config, table, batch, batch)
    keys_seen = batch * (depth + 1) * config.num_hidden_layers
    row = config.kv_lora_rank + config.qk_rope_head_dim
    flop += 2.0 * keys_seen * config.num_attention_heads * (row + config.kv_lora_rank)
    return StepCost(int(read), keys_seen * row * jnp.dtype(cache_dtype).itemsize, int(flop))


def prefill_cost(config: ModelConfig, table: Tree, batch: int, length: int) -> StepCost:
    """Prompts of `length` tokens, of which the last ones alone have logits; the rows that they store not counted.

    Attention, expanded, costs 2 (qk_nope_head_dim + qk_rope_head_dim + v_head_dim) FLOP a head and causal pair.
    """
    read, flop = _weights(config, table, batch * length, batch)
    pairs = batch * length * (length + 1) // 2 * config.num_hidden_layers
    widths = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    flop += 2.0 * pairs * config.num_attention_heads * widths
    return StepCost(int(read), 0, int(flop))


def _weights(config: ModelConfig, table: Tree, tokens: int, answered: int) -> tuple[float, float]:
    """Bytes and FLOP of the weights for `tokens`, of which `answered` have logits.

    Experts are counted as if the router chose at random: E (1 - (1 - k / E)^tokens) of E experts are read.
    A token multiplies each weight that it meets once (2 FLOP).
    """
    read, flop = 0.0, 0.0
    for path, info in jax.tree_util.tree_leaves_with_path(
        table, is_leaf=lambda node: isinstance(node, ParamInfo)
    ):
        nbytes = weight_bytes({"one": info}, config.dtype)
        elements = math.prod(info.shape)
        keys = [getattr(entry, "key", None) for entry in path]
        if "embed_tokens" in keys:
            if not config.tie_word_embeddings:
                read += nbytes / info.shape[0] * tokens
                continue
            flop += 2 * elements * answered
        elif "experts" in keys:
            experts, chosen = config.n_routed_experts, config.num_experts_per_tok
            read += nbytes * (1 - (1 - chosen / experts) ** tokens)
            flop += 2 * elements / experts * chosen * tokens
            continue
        elif len(info.shape) == 2:
            flop += 2 * elements * (answered if "lm_head" in keys else tokens)
        read += nbytes
    return read, flop
